"""File systems of their own kinds, mounted where only the tests see them; gone when the test is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# each is run with the mount point as $1 and an image of 128 MiB, empty and sparse, as $2
_MOUNT = {
    "tmpfs": 'mount -t tmpfs -o size=1m tmpfs "$1"',
    "ext4": 'mkfs.ext4 -q "$2" && mount -o loop "$2" "$1"',
    # neither hard links, nor files without a name, nor an exchange of two names; times in whole seconds. It is no part
    # of the kernel here: a process of its own serves it
    "exfat": 'mkfs.exfat "$2" && loop=$(losetup -f --show "$2") && mount.exfat-fuse "$loop" "$1"; losetup -d "$loop"',
    "btrfs": 'mkfs.btrfs -q --mixed "$2" && mount -o loop "$2" "$1" && btrfs quota enable "$1"',
}  # fmt: skip
_NEEDED = {"exfat": ("mkfs.exfat", "mount.exfat-fuse"), "btrfs": ("mkfs.btrfs",), "ext4": ("mkfs.ext4",)}


@dataclass(frozen=True)
class Mount:
    """A mounted file system. `path`: where it is for commands that begin with `prefix`; `seen`: where it is for us."""

    prefix: tuple[str, ...]
    path: Path
    seen: Path

    def run(self, *command: object) -> str:
        """What a command prints that is run where it is mounted, in its mount point."""
        done = subprocess.run(
            [*self.prefix, "sh", "-c", 'cd "$0" && exec "$@"', self.path, *map(str, command)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Mount]:
    """Mount one in an empty folder below `folder`; the test is skipped where this is not possible."""
    if lacking := [tool for tool in ("unshare", "nsenter", *_NEEDED.get(kind, ())) if shutil.which(tool) is None]:
        pytest.skip(f"to mount {kind}, {' and '.join(lacking)} must be installed")
    point, image = folder / "mount", folder / "image"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    root = os.geteuid() == 0
    script = f'{{ {_MOUNT[kind]}; }} >&2 && mountpoint -q "$1" && echo ready && read _; umount "$1"'
    holder = subprocess.Popen(
        ["unshare", "-m" if root else "-rm", "sh", "-c", script, "sh", point, image],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin
    assert holder.stdout
    try:
        if holder.stdout.readline() != "ready\n":
            said = holder.communicate()[1].strip().splitlines() or [""]
            needed = "CAP_SYS_ADMIN" if kind == "tmpfs" else "CAP_SYS_ADMIN and a loop device"
            pytest.skip(f"to mount {kind} takes {needed}: {said[0]}")
        user = () if root else ("-U", "--preserve-credentials")
        prefix = ("nsenter", "-t", str(holder.pid), "-m", *user, "--")
        yield Mount(prefix, point, Path(f"/proc/{holder.pid}/root{point}"))
    finally:
        holder.communicate(timeout=30)
