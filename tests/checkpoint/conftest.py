"""Files to read, a canary that dies if one of them is executed, and a process that may crash in our place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.support.craft_files import Pack, Write, torch_legacy, torch_zip
from tests.support.craft_pickle import SIX
from tests.support.reading import Apart, Outcome

# Opens and reads each file given, and says how that ended, how long this process worked, whatever else the machine did
# meanwhile, and by how much memory it grew at most. The kernel's own peak, reset before each file: getrusage would give
# that of the parent, which has torch in it.
_CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024  # MiB

for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before, start, error = memory("VmRSS"), time.process_time(), None
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
            for name in (*checkpoint.unsupported, *checkpoint.objects):
                checkpoint.read(name)
    except CheckpointError as caught:
        error = str(caught)
    print(json.dumps([path, error, time.process_time() - start, memory("VmHWM") - before]), flush=True)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes bytes to a file `crafted.pth`."""

    def write(data: bytes) -> Path:
        path = tmp_path / "crafted.pth"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(params=["zip", "legacy"])
def pack(request: pytest.FixtureRequest, write: Write) -> Pack:
    """Writes an item, or a pickle as plain bytes, with the float32 storages it refers to, in the layout under test."""

    def pack(item: object, blobs: Mapping[str, bytes] = MappingProxyType({"0": SIX})) -> Path:
        if request.param == "zip":
            return write(torch_zip(item, blobs))
        return write(torch_legacy(item, [(key, len(data) // 4, data) for key, data in blobs.items()]))

    return pack


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile payloads try to create. It must not be there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from the file was executed"


@pytest.fixture
def apart() -> Apart:
    """Reads files in a process with 2 GiB of address space, where a crash or a hang is a failure."""

    def read(*paths: Path) -> list[Outcome]:
        command = [sys.executable, "-c", _CHILD, *map(str, paths)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        outcomes = [json.loads(line) for line in done.stdout.splitlines()]
        assert [outcome[0] for outcome in outcomes] == [str(path) for path in paths]
        return [Outcome(*outcome[1:]) for outcome in outcomes]

    return read
