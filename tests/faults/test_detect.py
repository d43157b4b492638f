"""`converter detect` stopped anywhere: what is done is kept and named, and the same command makes the rest of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.detecting import DETECTED, Stage, at_entry, stage
from tests.support.jobs import Listing
from tests.support.program import Run
from tests.support.stopping import sample
from tests.support.strace import inject, lines

PICTURES = 4
# what writing results consists of; of each the number-th call of a run
CALLS = (
    "mkdir",
    "flock",
    "ftruncate",
    "pwrite64",
    "fsync",
    "link",
    "linkat",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
)
JOURNAL = "detections.partial.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("detect"), PICTURES) as made:
        yield made


@pytest.fixture(scope="module")
def whole(place: Stage) -> tuple[Run, Listing]:
    """A run that nothing stopped, and what it wrote."""
    shutil.rmtree(place.out, ignore_errors=True)
    run = place.run("--out", "found")
    assert run.code == 0, run.err
    found = place.found()
    shutil.rmtree(place.out)
    assert sorted(found) == ["0.jpg", "1.png", "2.jpg", "3.png", "detections.json"]
    return run, found


@pytest.fixture(autouse=True)
def _empty(place: Stage) -> Iterator[None]:
    yield
    shutil.rmtree(place.out, ignore_errors=True)


def batches(run: Run) -> list[int]:
    return [int(number) for number in re.findall("batch of ([0-9]+)", run.err)]


def test_what_is_found_is_told_at_once(place: Stage) -> None:
    """Each picture before the next one is looked at, though nobody waits at a terminal."""
    for options in ([], ["--format", "jsonl"], ["--format", "csv"]):
        run = place.run(*options, before=DETECTED)
        ends = [int(number) for number in re.findall("after ([0-9]+) bytes", run.err)]
        assert ends[0] == 0
        assert len(set(ends)) == PICTURES
        assert all(run.out[:end].endswith("\n") for end in ends[1:])


@pytest.mark.parametrize(
    ("stop", "number"), [("KILL", 1), ("KILL", 3), ("INT", 1), ("INT", 3), ("TERM", 4), ("HUP", 2)]
)
def test_what_is_done_is_kept_and_the_same_command_goes_on(
    stop: str, number: int, place: Stage, whole: tuple[Run, Listing]
) -> None:
    expected, files = whole
    done = number - 1
    stopped = place.run("--out", "found", before=at_entry(number, f"os.kill(os.getpid(), signal.SIG{stop})"))
    assert stopped.code == {"KILL": -signal.SIGKILL, "INT": 130, "TERM": 143, "HUP": 129}[stop]
    if stop != "KILL":
        word = "interrupted" if stop == "INT" else "terminated"
        kept = " and kept in found; the same command goes on" * (done > 0)
        assert f"{word}; {done} of 4 pictures are done{kept}\n" in stopped.err
        assert expected.out.startswith(stopped.out)
    again = place.run("--out", "found", before=DETECTED)
    assert again.code == 0, again.err
    assert (f"{done} of 4 pictures are done already; going on" in again.err) == (done > 0)
    assert batches(again) == [1] * (PICTURES - done)
    assert again.out == expected.out
    assert place.found() == files


def test_killed_at_any_system_call(place: Stage, whole: tuple[Run, Listing], strace: None, every_point: bool) -> None:
    """Whatever of a line or a file was written: never half of one is taken for whole, nothing else is left."""
    expected, files = whole
    traced = place.start("--out", "found")
    traced.traced("-f", "-e", f"trace={','.join(CALLS)}")
    traced.release()
    assert traced.wait().code == 0
    shutil.rmtree(place.out)
    points = [(line.name, line.number) for line in lines(traced.trace)]
    assert len(points) > 40
    assert {"ftruncate", "pwrite64", "fsync"} < {name for name, _ in points}
    kept = set()
    for name, number in sample(points, None if every_point else 8):
        run = place.start("--out", "found")
        run.traced("-f", "-e", f"trace={name}", *inject(name, "signal=SIGKILL", number))
        run.release()
        at = f"{name} {number}"
        if run.wait().code != -signal.SIGKILL:  # another thread's
            assert (run.code, place.found()) == (0, files), at
            shutil.rmtree(place.out)
            continue
        kept.add(len(place.found()))
        is_whole = place.out.exists() and bool(place.found()) and JOURNAL not in place.found()
        again = place.run("--out", "found", *["--force"] * is_whole)
        assert again.code == 0, (at, again.err)
        assert again.out == expected.out, at
        assert place.found() == files, at
        shutil.rmtree(place.out)
    assert len(kept) > 3


def test_a_batch_is_the_same_batch_again(place: Stage) -> None:
    """Of one of 3 pictures, all are run again: what is found may depend on which are run at once."""
    options = ("--batch", "3", "--out", "found", "--format", "jsonl")
    expected = place.run(*options, before=DETECTED)
    assert batches(expected) == [2, 1, 1]  # one of the first three is of another size
    files = place.found()
    assert sorted(files)[-1] == "detections.jsonl"
    shutil.rmtree(place.out)
    stopped = place.run(*options, before=at_entry(2, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert stopped.code == -signal.SIGKILL
    again = place.run(*options, before=DETECTED)
    assert batches(again) == [2, 1, 1]
    assert (again.out, place.found()) == (expected.out, files)


def test_a_full_disk_keeps_what_is_done(place: Stage, whole: tuple[Run, Listing]) -> None:
    full = "import errno; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"
    stopped = place.run("--out", "found", before=at_entry(3, full))
    assert "2 of 4 pictures are done and kept in found" in stopped.err
    assert place.run("--out", "found").code == 0
    assert place.found() == whole[1]


def stopped_after(place: Stage, number: int) -> Path:
    """Have so many pictures done; the journal."""
    run = place.run("--out", "found", before=at_entry(number + 1, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert run.code == -signal.SIGKILL
    return place.out / JOURNAL


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--threshold", "0.4"], "threshold"),
        (["--batch", "2"], "batch"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--line-width", "5"], "drawings.line_width"),
        (["--prompt", "person."], "prompt.captions, prompt.phrases"),
    ],
)
def test_other_settings_are_refused(options: list[str], named: str, place: Stage) -> None:
    before = stopped_after(place, 2).read_bytes()
    run = place.run("--out", "found", *options)
    assert run.code == 6
    assert f"that differed in {named}" in run.err
    assert "--force starts over" in run.err
    assert (place.out / JOURNAL).read_bytes() == before


def test_another_model_is_refused_and_force_begins_anew(place: Stage, whole: tuple[Run, Listing]) -> None:
    model = place.folder / "small" / "model.safetensors"
    content = model.read_bytes()
    stopped_after(place, 2)
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = place.run("--out", "found")
    model.write_bytes(content)
    assert run.code == 6
    assert "that differed in model. Give" in run.err
    again = place.run("--out", "found", "--force", before=DETECTED)
    assert batches(again) == [1] * PICTURES
    assert place.found() == whole[1]


def test_a_picture_that_changed_is_done_again(place: Stage, whole: tuple[Run, Listing]) -> None:
    picture = place.folder / "photos" / "0.jpg"
    stopped_after(place, 2)
    content = picture.read_bytes()
    picture.write_bytes(content)  # its time alone is another
    again = place.run("--out", "found", before=DETECTED)
    assert "1 of 4 pictures are done already" in again.err
    assert batches(again) == [1] * 3
    assert place.found() == whole[1]


def test_a_drawing_that_is_gone_is_made_again(place: Stage, whole: tuple[Run, Listing]) -> None:
    stopped_after(place, 2)
    (place.out / "1.png").unlink()
    assert place.run("--out", "found").code == 0
    assert place.found() == whole[1]


@pytest.mark.parametrize("half", [b'{"image": "photos/2.j', b'{"image": "photos/2.jpg"}', b"\0" * 4096])
def test_half_a_line_is_dropped(half: bytes, place: Stage, whole: tuple[Run, Listing]) -> None:
    journal = stopped_after(place, 2)
    with journal.open("ab") as file:
        file.write(half)
    assert place.run("--out", "found").code == 0
    assert place.found() == whole[1]


def test_a_damaged_line_is_refused_and_one_of_other_content_is_not_used(
    place: Stage, whole: tuple[Run, Listing]
) -> None:
    journal = stopped_after(place, 2)
    settings, first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(settings + first[:20] + b"\n" + second)
    refused = place.run("--out", "found")
    assert refused.code == 6
    assert "line 2 cannot be read" in refused.err
    assert "--force starts over" in refused.err
    entry = json.loads(second)
    for odd in ({"boxes": 5}, {"boxes": entry["boxes"][1:]}, {"scores": ["x"] * 3}, {"drawing": "../../other.png"}):
        journal.write_bytes(settings + json.dumps(entry | odd).encode() + b"\n")
        assert place.run("--out", "found").code == 0
        assert place.found() == whole[1]
        stopped_after_again(place, journal, settings)


def stopped_after_again(place: Stage, journal: Path, settings: bytes) -> None:
    shutil.rmtree(place.out)
    place.out.mkdir()
    journal.write_bytes(settings)


def test_two_runs_into_one_folder(place: Stage, whole: tuple[Run, Listing]) -> None:
    stopped_after(place, 1)
    inner = (
        "import subprocess, sys; done = subprocess.run([sys.executable, '-m', 'converter', *sys.argv[1:]],"
        " capture_output=True, text=True, env=os.environ); print(done.returncode, done.stderr, file=sys.stderr)"
    )
    run = place.run("--out", "found", before=at_entry(1, inner))
    assert run.code == 0, run.err
    assert "another run is at work on it" in run.err
    assert place.found() == whole[1]


def test_when_nobody_reads_on_it_ends_unless_it_writes(place: Stage, whole: tuple[Run, Listing]) -> None:
    """As with `| head`."""
    unread = "import os\nreading, writing = os.pipe()\nos.close(reading)\nos.dup2(writing, 1)\n" + DETECTED
    run = place.run(before=unread)
    assert (run.code, batches(run)) == (128 + signal.SIGPIPE, [1])
    run = place.run("--out", "found", before=unread)
    assert (run.code, batches(run)) == (0, [1] * PICTURES)
    assert place.found() == whole[1]


def test_without_a_folder_nothing_is_kept_and_that_is_said(place: Stage, whole: tuple[Run, Listing]) -> None:
    stop = (
        DETECTED + "import os, signal\ndef tell(self, entry, tell=__import__('converter.cli.detect_run', "
        "fromlist=['Run']).Run.tell):\n    tell(self, entry)\n    if len(self.found) == 2: os.kill(os.getpid(), 2)\n"
        "from converter.cli.detect_run import Run\nRun.tell = tell\n"
    )
    run = place.run(before=stop)
    assert run.code == 130
    assert "interrupted; 2 of 4 pictures are done and printed; with --out FOLDER they are kept" in run.err
    assert run.out.count("found\n") == 2
    run = place.run("--json", before=stop)
    assert "2 of 4 pictures are done, but lost; with --out FOLDER they are kept" in run.err
