"""Destinations on file systems that are full, read-only, limited, or lack what others have."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import FORMS, Jobs, listing
from tests.support.mounts import Mount, mounted
from tests.support.program import Program, Run

EVERY = os.environ.get("FAULTS") == "all"  # every number of free blocks, not some of them
REPLACING = pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
FORM = pytest.mark.parametrize("form", FORMS)


class Place:
    """A mounted file system, the program there, and a folder for each test."""

    def __init__(self, kind: str, mount: Mount, program: Program, jobs: Jobs) -> None:
        self.kind, self.mount, self.program, self.jobs = kind, mount, program, jobs
        self._count = 0
        self.folder = Path()

    def fresh(self) -> None:
        """Another folder; what was in the one before makes no difference to it."""
        if self._count and self.kind != "btrfs":
            shutil.rmtree(self.mount.seen / self.folder)
        self._count += 1
        self.folder = Path(str(self._count))
        if self.kind == "btrfs":  # where it can have a limit of its own
            self.mount.run("btrfs", "subvolume", "create", self.folder)
        else:
            (self.mount.seen / self.folder).mkdir()

    def convert(self, form: str, seed: int, *, force: bool = False) -> Run:
        return self.program(*self.jobs.arguments(form, seed, force=force), cwd=self.mount.path / self.folder)

    def seed(self, form: str) -> int | None:
        return self.jobs.seed(form, self.mount.seen / self.folder)

    def free(self) -> int:
        status = os.statvfs(self.mount.seen)
        return status.f_bavail * status.f_frsize

    def inodes(self) -> int:
        status = os.statvfs(self.mount.seen)
        return status.f_files - status.f_ffree

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        with (self.mount.seen / "filler").open("wb") as file:
            file.write(bytes(max(0, self.free() - left)))

    def empty(self) -> None:
        (self.mount.seen / "filler").unlink()


def place_of(kind: str, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with mounted(kind, tmp_path_factory.mktemp(kind)) as mount, Program(prefix=mount.prefix) as program:
        yield Place(kind, mount, program, jobs)


@pytest.fixture(scope="module")
def memory(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of("tmpfs", jobs, tmp_path_factory)


@pytest.fixture(scope="module")
def ext4(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of("ext4", jobs, tmp_path_factory)


@pytest.fixture(scope="module")
def exfat(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of("exfat", jobs, tmp_path_factory)


@pytest.fixture(scope="module")
def btrfs(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of("btrfs", jobs, tmp_path_factory)


def prepare(place: Place, form: str, force: bool) -> int | None:
    """A folder, with the result of one source in it if it is to be replaced by that of the other."""
    place.fresh()
    if not force:
        return None
    place.jobs.put(form, 0, place.mount.seen / place.folder)
    return 0


def check(place: Place, form: str, before: int | None, done: Run, reason: str) -> bool:
    """Whether it succeeded; what is on the disk and what is said are as they must be."""
    found = place.seed(form)
    if done.code == 0:
        assert found == 1, done
        assert done.err == ""
        return True
    assert found == before, done
    assert done.code == 6, done
    assert re.fullmatch(rf"error: [^\n]*(?:{reason})[^\n]*; [^\n]+\n", done.err), done.err
    return False


@FORM
@REPLACING
def test_where_there_is_no_space(form: str, force: bool, memory: Place) -> None:
    page = os.sysconf("SC_PAGESIZE")
    outcomes = []
    for pages in range(25) if EVERY else (0, 3, 24):
        before = prepare(memory, form, force)
        memory.fill(pages * page)
        done = memory.convert(form, 1, force=force)
        memory.empty()
        outcomes.append(check(memory, form, before, done, "No space left on device|GB free"))
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


@FORM
@REPLACING
def test_where_there_is_no_room_for_another_name(form: str, force: bool, memory: Place) -> None:
    outcomes = []
    for free in range(12) if EVERY else (0, 1, 3, 11):
        before = prepare(memory, form, force)
        memory.mount.run("mount", "-o", f"remount,nr_inodes={memory.inodes() + free}", ".")
        done = memory.convert(form, 1, force=force)
        memory.mount.run("mount", "-o", "remount,nr_inodes=100000", ".")
        outcomes.append(check(memory, form, before, done, "No space left on device"))
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


@FORM
@REPLACING
def test_where_nothing_can_be_written(form: str, force: bool, memory: Place) -> None:
    before = prepare(memory, form, force)
    memory.mount.run("mount", "-o", "remount,ro", ".")
    done = memory.convert(form, 1, force=force)
    memory.mount.run("mount", "-o", "remount,rw", ".")
    assert not check(memory, form, before, done, "Read-only file system")


@FORM
@REPLACING
def test_where_a_quota_is_used_up(form: str, force: bool, btrfs: Place) -> None:
    """`df` shows space enough there: the first file, or a later one, or the folder of them is refused."""
    outcomes = []
    for limit in (*range(0, 512, 16), 1024) if EVERY else (16, 128, 1024):
        before = prepare(btrfs, form, force)
        btrfs.mount.run("sync")
        btrfs.mount.run("btrfs", "qgroup", "limit", f"{limit}k", btrfs.folder)
        done = btrfs.convert(form, 1, force=force)
        outcomes.append(check(btrfs, form, before, done, "Disk quota exceeded"))
    assert outcomes[0] is False
    assert outcomes[-1] is True


@FORM
@REPLACING
def test_without_links_and_files_without_a_name(form: str, force: bool, exfat: Place) -> None:
    before = prepare(exfat, form, force)
    assert check(exfat, form, before, exfat.convert(form, 1, force=force), "")
    if not force:
        again = exfat.convert(form, 0)
        assert again.code == 6
        assert "--force replaces it" in again.err
        assert exfat.seed(form) == 1


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_a_mount_point_is_no_folder_to_replace(form: str, memory: Place) -> None:
    """As an empty volume of a container is: `rename` cannot replace it."""
    memory.fresh()
    out = memory.folder / FORMS[form].name
    (memory.mount.seen / out).mkdir()
    memory.mount.run("mount", "-t", "tmpfs", "tmpfs", out)
    done = memory.convert(form, 1)
    memory.mount.run("umount", out)
    assert done.code == 6
    assert re.fullmatch(r"error: out is a mount point, [^\n]+\n", done.err), done.err
    assert listing(memory.mount.seen / memory.folder) == {"out": None}


@pytest.mark.parametrize("form", ["file", "archive"])
def test_a_folder_that_only_takes(form: str, ext4: Place) -> None:
    """What is append-only takes new names and gives none back: a file without a name needs no more."""
    ext4.fresh()
    ext4.mount.run("chattr", "+a", ext4.folder)
    done = ext4.convert(form, 1)
    ext4.mount.run("chattr", "-a", ext4.folder)
    assert check(ext4, form, None, done, "")


@FORM
@REPLACING
def test_a_disk_that_fails(form: str, force: bool, jobs: Jobs, tmp_path: Path) -> None:
    """ext4 stops all writing at its first error; this option of its own brings that about, half-way."""
    stop = f"""
import importlib, subprocess, contextlib
command = importlib.import_module("converter.cli.convert")
@contextlib.contextmanager
def progress(total, description):
    abort = ["mount", "-o", "remount,abort", {str(tmp_path / "mount")!r}]
    yield lambda count: subprocess.run(abort, capture_output=True)
command.progress = progress
"""
    with mounted("ext4", tmp_path) as mount, Program(prefix=mount.prefix) as program:
        place = Place("ext4", mount, program, jobs)
        before = prepare(place, form, force)
        mount.run("sync", "-f", ".")
        done = program(*jobs.arguments(form, 1, force=force), cwd=mount.path / place.folder, before=stop)
        assert not check(place, form, before, done, "Read-only file system|Input/output error")
