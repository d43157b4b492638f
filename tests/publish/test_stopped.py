"""A publication that is killed, interrupted or cut off anywhere: the old version or the new one, then the new one."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.publish.card import mark_unverified
from tests.support.hub.server import HubServer
from tests.support.program import Program, Run
from tests.support.publishing import CANARY, REPO, change_card, shard
from tests.support.stopping import (
    STOPPED,
    Point,
    Tally,
    Watch,
    call_points,
    carry_out,
    request_points,
    sample,
)

# what `converter publish` imports on its way
MODULES = (
    "converter.cli", "converter.cli.families", "converter.publish.commit", "jsonschema", "multiprocessing.synchronize",
    "encodings.idna", "huggingface_hub.hf_api", "huggingface_hub._commit_api", "huggingface_hub.lfs",
)  # fmt: skip
SCENARIOS = ("new", "existing", "pull request")
Files = dict[str, bytes]


@dataclass
class Stage:
    """A folder to publish, and a Hub as it was before: without the repository, or with another version of it."""

    name: str
    hub: HubServer
    program: Program
    folder: Path
    output: Path
    old: Files | None
    is_proposed: bool

    def reset(self) -> None:
        shutil.rmtree(self.hub.storage.folder)
        self.hub.reset(self.hub.storage.folder)
        self.hub.tokens[CANARY] = ("somebody", "write")
        if self.old is not None:
            self.hub.storage.create(REPO, True, "somebody")
            self.hub.push(REPO, self.old)

    def start(self) -> Run:
        options = ["--create-pr"] * self.is_proposed
        arguments = ["publish", "--unverified", str(self.folder), REPO, *options]
        return self.program.start(*arguments, cwd=self.output)

    def files(self, revision: str) -> Files | None:
        repository = self.hub.storage.repositories.get(REPO)
        commit = repository.find(revision) if repository else None
        if commit is None:
            return None
        return {name: self.hub.content(REPO, name, revision) for name in commit.files if name != ".gitattributes"}

    @property
    def new(self) -> Files:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def state(self) -> str:
        """`old`, `new`, or what neither is."""
        main = self.files("main") or None
        repository = self.hub.storage.repositories.get(REPO)
        made = len(repository.commits) - (1 if self.old is None else 2) if repository else 0
        if self.is_proposed:
            proposed = self.files("refs/pr/1")
            if main != self.old or (proposed is not None and proposed != self.new):
                return "half-published"
        elif main not in (self.old, self.new):
            return "half-published"
        if made > 1:
            return "published twice"
        return "new" if made else "old"


@pytest.fixture
def stage(request: pytest.FixtureRequest, folder: Path, hub: HubServer, tmp_path: Path) -> Iterator[Stage]:
    (folder / "parity.json").unlink()  # reading it takes longer than all the rest

    card = folder / "README.md"
    card.write_text(mark_unverified("---\nlicense: mit\n---\n# GLIP\n"))
    old = None
    if request.param != "new":
        old = {path.name: path.read_bytes() for path in folder.iterdir()}
        shard(folder)  # two large files arrive, one goes
        change_card(folder)
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": CANARY, "HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    (tmp_path / "output").mkdir()
    with Program(MODULES, environment) as program:
        yield Stage(request.param, hub, program, folder, tmp_path / "output", old, request.param == "pull request")


def problems(stage: Stage, point: Point, run: Run, watch: Watch) -> Iterator[str]:
    """What is wrong with how a run ended that was stopped at a point."""
    state, code, said = stage.state(), run.code, run.err
    if state not in ("old", "new"):
        yield state
    if code is None:
        yield "it hangs"
    if code == 0 and state != "new":
        yield "exit 0, and nothing is published"
    if CANARY in said + run.out:
        yield "the token is told"
    if point.how == "cut" or (code in (1, -signal.SIGINT) and not stage.hub.requests):
        return  # Python's own and click's way to end, before the command began
    if "Traceback" in said:
        yield "a traceback"
    if code not in (0, STOPPED[point.how]) and not watch.is_ended_again:
        yield f"exit {code}"
    if code == 0 and watch.is_early:
        yield "stopped before the commit, and it was made"
    if code != 0 and point.how != "kill":
        yield from _what_is_said(stage, state, said)


def _what_is_said(stage: Stage, state: str, said: str) -> Iterator[str]:
    line = said.strip().splitlines()[-1] if said.strip() else ""
    if "nothing was published" in line or "nothing is half-written" in line:
        if state != "old":
            yield "it says that nothing was published"
    elif match := re.search(r"commit ([0-9a-f]{40}) was made, but not read back", line):
        repository = stage.hub.storage.repositories.get(REPO)
        head = repository and repository.find("refs/pr/1" if stage.is_proposed else "main")
        if head is None or head.id != match[1]:
            yield "it names another commit"
    elif "whether the commit was made is not known" not in line:
        yield "it does not say what is known"


def stop(stage: Stage, point: Point, tally: Tally) -> None:
    """Stop a run there, look at what is left, and run the same command again."""
    stage.reset()
    run = stage.start()
    watch = carry_out(stage.hub, run, point)
    state, code, said = stage.state(), run.code, run.err
    found = list(problems(stage, point, run, watch))
    if not watch.fired:
        tally.notes["not reached"] += 1
    again = stage.start()
    carry_out(stage.hub, again, None)
    if again.code != 0:
        found.append(f"the same command again: exit {again.code}: {again.err}")
    if stage.state() != "new":
        found.append(f"the same command again: {stage.state()}")
    tally.add(point, state, code, found, said)


@pytest.mark.parametrize("stage", SCENARIOS, indirect=True)
def test_a_publication_stopped_at_any_request(stage: Stage, every_point: bool) -> None:
    stage.reset()
    carry_out(stage.hub, stage.start(), None)
    points = request_points(stage.hub.requests)
    tally = Tally(f"publish, {stage.name}, at its {len(stage.hub.requests)} requests")
    for point in sample(points, None if every_point else 10):
        stop(stage, point, tally)
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong)


@pytest.mark.parametrize("stage", SCENARIOS, indirect=True)
@pytest.mark.usefixtures("strace")
def test_a_publication_stopped_at_any_system_call(stage: Stage, every_point: bool) -> None:
    stage.reset()
    whole = stage.start()
    whole.traced("-f")
    carry_out(stage.hub, whole, None)
    tally = Tally(f"publish, {stage.name}, at its system calls")
    for point in sample(call_points(whole.trace), None if every_point else 10):
        stop(stage, point, tally)
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong)
