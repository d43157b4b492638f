"""A download that is killed, interrupted or cut off anywhere: nothing in the cache is taken for what it is not."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.hub.server import HubServer
from tests.support.hub.storage import blob_sha1
from tests.support.program import Program, Run
from tests.support.publishing import CANARY, REPO
from tests.support.stopping import SIGNALS, STOPPED, Point, Tally, Watch, call_points, carry_out, request_points, sample
from tests.support.tiny import tiny_weights, write_table

MODULES = (
    "converter.cli", "converter.cli.sources", "converter.hub.resolve", "converter.writing.convert", "jsonschema",
    "encodings.idna", "multiprocessing.synchronize", "huggingface_hub.hf_api", "huggingface_hub._snapshot_download",
    "huggingface_hub.file_download",
)  # fmt: skip
SCENARIOS = ("file", "model")


@dataclass
class Stage:
    """A command that downloads a file, or a model, of a Hub that has both, into a cache that is empty."""

    hub: HubServer
    program: Program
    offline: Program
    folder: Path
    command: tuple[str, ...]
    result: tuple[str, bytes | None] = ("", None)
    requests: int = 0

    @property
    def cache(self) -> Path:
        return self.folder / "home"

    @property
    def destination(self) -> Path:
        return self.folder / "out.safetensors"

    def reset(self) -> None:
        self.hub.restart()
        shutil.rmtree(self.cache, ignore_errors=True)
        self.destination.unlink(missing_ok=True)

    def start(self, program: Program | None = None) -> Run:
        return (program or self.program).start(*self.command, cwd=self.folder)

    def made(self, run: Run) -> tuple[str, bytes | None]:
        """What a run told and wrote."""
        return run.out, self.destination.read_bytes() if self.destination.exists() else None

    def damaged(self) -> list[str]:
        """Files of the cache that are named by a hash which is not theirs."""
        found = []
        for path in self.cache.glob("hub/*/blobs/*"):
            content = path.read_bytes()
            hashes = (hashlib.sha256(content).hexdigest(), blob_sha1(content))
            is_probe = path.name.startswith("tmp_") and not content  # the client's, to see what a new file may be
            if not path.name.endswith(".incomplete") and not is_probe and path.name not in hashes:
                found.append(path.name)
        return found

    def leftovers(self) -> list[Path]:
        """Parts of files. (Of a client killed as it asks for the umask, an empty `tmp_...` stays for ever.)"""
        return list(self.cache.rglob("*.incomplete"))


@pytest.fixture
def stage(request: pytest.FixtureRequest, folder: Path, hub: HubServer, tmp_path: Path) -> Iterator[Stage]:
    place = tmp_path / "run"
    place.mkdir()
    torch.save(tiny_weights(), tmp_path / "tiny.pth")
    (folder / "parity.json").unlink()
    # which format a model's hundreds of names are of takes a second to find out, each time
    save_file({"weight": torch.arange(9.0)}, folder / "model.safetensors", {"format": "pt"})
    hub.storage.create(REPO, True, "somebody")
    hub.push(REPO, {path.name: path.read_bytes() for path in (*folder.iterdir(), tmp_path / "tiny.pth")})
    command = {
        "file": (
            "convert",
            "--src",
            f"hf://{REPO}/tiny.pth",
            "--dst",
            "out.safetensors",
            "--table",
            str(write_table(tmp_path)),
        ),
        "model": ("inspect", REPO, "--json"),
    }[request.param]
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(place / "home"), "HF_TOKEN": CANARY, "HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    with ExitStack() as stack:
        program, offline = (
            stack.enter_context(Program(MODULES, environment | more)) for more in ({}, {"HF_HUB_OFFLINE": "1"})
        )
        yield Stage(hub, program, offline, place, command)


def problems(stage: Stage, point: Point, run: Run, watch: Watch) -> Iterator[str]:
    """What is wrong with how a run ended that was stopped at a point."""
    made, code = stage.made(run), run.code
    if code is None:
        yield "it hangs"
    if code == 0 and made[1] != stage.result[1]:
        yield "exit 0, and it is another file"
    if code == 0 and made[0] != stage.result[0] and "is complete; what came then" not in run.err:
        yield "exit 0, and it tells something else"
    if made[1] not in (None, stage.result[1]):
        yield "half a file was written"
    if CANARY in run.err + run.out:
        yield "the token is told"
    if point.how == "cut" or (code in (1, -signal.SIGINT) and not stage.hub.requests):
        return  # Python's own and click's way to end, before the command began
    if stage.result[1] is None and run.out == stage.result[0] and code in (0, -SIGNALS[point.how]):
        return  # it writes nothing, all was told, and the interpreter was on its way out
    if "Traceback" in run.err:
        yield "a traceback"
    if code not in (0, STOPPED[point.how]) and not watch.is_ended_again:
        yield f"exit {code}"
    if code == 0 and not point.call and watch.fired and point.number < stage.requests:
        yield "stopped, and it goes on"
    is_told = re.search(r"^(interrupted|terminated); .*\n\Z", run.err, re.MULTILINE)
    if code not in (0, -signal.SIGKILL) and not is_told:
        yield "it does not say what happened"


def stop(stage: Stage, point: Point, tally: Tally) -> None:
    """Stop a run there, look at the cache, use it without the Hub, and run the same command again."""
    stage.reset()
    run = stage.start()
    watch = carry_out(stage.hub, run, point)
    code, said = run.code, run.err
    found = list(problems(stage, point, run, watch))
    if damaged := stage.damaged():
        found.append(f"damaged in the cache: {damaged}")
    left = stage.leftovers()
    state = f"{'whole' if stage.made(run)[1] or code == 0 else 'nothing'}{', leftovers' if left else ''}"
    if not watch.fired:
        tally.notes["not reached"] += 1
    stage.destination.unlink(missing_ok=True)
    for what, program, codes in (("offline", stage.offline, (0, 9)), ("again", stage.program, (0,))):
        again = stage.start(program)
        carry_out(stage.hub, again, None)
        if again.code not in codes:
            found.append(f"{what}: exit {again.code}: {again.err}")
        elif again.code == 0 and stage.made(again) != stage.result:
            found.append(f"{what}: another result")
        if again.code == 0:
            tally.notes[f"{what}: succeeds"] += 1
        stage.destination.unlink(missing_ok=True)
    if stage.leftovers():
        found.append(f"again: {stage.leftovers()} stay")
    tally.add(point, state, code, found, said)


def expect(stage: Stage, *options: str) -> Run:
    """Run it once, undisturbed; under strace, if there are options for it."""
    stage.reset()
    run = stage.start()
    if options:
        run.traced(*options)
    carry_out(stage.hub, run, None)
    assert run.code == 0, run.err
    stage.result = stage.made(run)
    stage.requests = len(stage.hub.requests)
    return run


@pytest.mark.parametrize("stage", SCENARIOS, indirect=True)
def test_a_download_stopped_at_any_request(stage: Stage, every_point: bool) -> None:
    expect(stage)
    requests = stage.hub.requests
    tally = Tally(f"download, {stage.command[0]}, at its {len(requests)} requests")
    for point in sample(request_points(requests), None if every_point else 8):
        stop(stage, point, tally)
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.parametrize("stage", SCENARIOS, indirect=True)
@pytest.mark.usefixtures("strace")
def test_a_download_stopped_at_any_system_call(stage: Stage, every_point: bool) -> None:
    whole = expect(stage, "-f")
    tally = Tally(f"download, {stage.command[0]}, at its system calls")
    for point in sample(call_points(whole.trace), None if every_point else 8):
        stop(stage, point, tally)
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong)
