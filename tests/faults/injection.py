"""One fault: the disk before it, the run, the disk after it, and what the same command makes of that."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tests.faults.calls import Call, Fault, calls_of_commit
from tests.faults.disk import Reference, Seen, Tensors, look, reads_as, same
from tests.faults.scenarios import SOURCES, TABLE, Scenario, empty_destination, make_sources
from tests.support.jobs import listing
from tests.support.program import PROGRAM, Program, Run


@dataclass(frozen=True, slots=True)
class System:
    """What the system cannot do: `without` are calls that always fail, with `error`.

    `before`: Python that a run executes first, for what its Python lacks.
    """

    name: str
    without: tuple[str, ...] = ()
    error: str = ""
    before: str = ""

    def options(self, *traced: str) -> list[str]:
        """Those of strace: calls that are to fail have to be traced, like those that are `traced` besides."""
        calls = ",".join((*traced, *self.without))
        fails = ["-e", f"inject={','.join(self.without)}:error={self.error}"] if self.without else []
        return ["-e", f"trace={calls}", *fails]


_SECONDS = 10  # a run takes less than one
_LESS = "import os; del os.O_TMPFILE"
WHOLE = System("whole")
NO_TMPFILE = System("no O_TMPFILE", before=_LESS)
NO_LINKS = System("no O_TMPFILE, no hard links", ("link", "linkat"), "EPERM", before=_LESS)
NO_EXCHANGE = System("no RENAME_EXCHANGE", ("renameat2",), "EINVAL")


class Broken(Exception):
    """A scenario does not work on a system, without any fault."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault. `state`: old, new, mixed, or recoverable: no file is torn and the same command gives new.

    `wrong`: what is not as promised, each in a few words. `removed`: leftovers that the next run took away.
    """

    scenario: Scenario
    system: System
    fault: Fault
    state: str
    wrong: tuple[str, ...]
    removed: tuple[str, ...]
    answer: Run
    found: tuple[str, ...]

    def __str__(self) -> str:
        """For who has to reproduce it."""
        call = self.fault.call
        where = f"{call.name} #{call.number}{' in a thread' if call.in_thread else ''}"
        said = self.answer.err.strip().rpartition("\n")[2]
        return (
            f"[{self.scenario.name} | {self.system.name}] {self.fault.what} at {where}: {self.state}, exit "
            f"{self.answer.code}, {'; '.join(self.wrong) or 'as promised'}\n    {call.shown}\n    there: "
            f"{', '.join(self.found)}\n    said: {said}"
        )


@dataclass
class Workplace:
    """A folder with a server of its own: what is to be converted, and where results go.

    `instead`: what the server runs in place of the program, `module:function`.
    """

    folder: Path
    instead: str = PROGRAM
    _references: dict[Scenario, Reference] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        make_sources(self.folder)
        # the same order of names in each run
        self._program = Program(environment={"PYTHONHASHSEED": "0"})
        try:
            self._prepare()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._program.__exit__(kind, error, traceback)

    def _prepare(self) -> None:
        """The sources in the other format."""
        for source in SOURCES:
            files = ("--src", f"in/{source}.pth", "--dst", f"in/{source}.safetensors")
            self._succeed(["convert", *files, "--table", TABLE, "--keep-residue"])

    def reference(self, scenario: Scenario) -> Reference:
        """What lies there before a run and after one without faults: made once, and checked against the sources."""
        if scenario not in self._references:
            self._references[scenario] = self._make_reference(scenario)
        return self._references[scenario]

    def _make_reference(self, scenario: Scenario) -> Reference:
        empty_destination(self.folder)
        if scenario.force:
            self._succeed(scenario.command(scenario.old))
        old, old_tensors = listing(self.folder / "d"), self._read(scenario) if scenario.force else None
        place = self.folder / "states" / scenario.name
        shutil.copytree(self.folder / "d", place)
        self._succeed(scenario.command())
        new, new_tensors = listing(self.folder / "d"), self._read(scenario)
        assert new_tensors is not None
        for tensors, source in ((old_tensors, scenario.old), (new_tensors, "new")):
            if tensors is not None:
                _check_whole(tensors, torch.load(self.folder / "in" / f"{source}.pth"), scenario)
        return Reference(old, new, old_tensors, new_tensors)

    def calls(self, scenario: Scenario, system: System = WHOLE) -> list[Call]:
        """Those of the commit, from a run without faults. Raises Broken if that run fails."""
        self.restore(scenario)
        answer = self.run(scenario.command(), ["-f", *system.options("all")], system, self.instead)
        seen = look(listing(self.folder / "d"), self.reference(scenario))
        if answer.code != 0 or seen != Seen("new", ()):
            raise Broken(f"[{scenario.name} | {system.name}] fails without a fault: {seen}, {answer}")
        return [call for call in calls_of_commit(answer.trace, "d") if call.name not in system.without]

    def inject(self, scenario: Scenario, fault: Fault, system: System = WHOLE) -> Outcome | None:
        """What comes of a fault; None if the run did not come to it."""
        self.restore(scenario)
        answer = self.run(
            scenario.command(), [*system.options(fault.call.name), *fault.options()], system, self.instead
        )
        if not fault.happened(answer.trace) and answer.code is not None:
            return None
        found = listing(self.folder / "d")
        return self._judge(scenario, fault, system, answer, look(found, self.reference(scenario)), tuple(found))

    def _judge(
        self, scenario: Scenario, fault: Fault, system: System, answer: Run, seen: Seen, found: tuple[str, ...]
    ) -> Outcome:
        reference = self.reference(scenario)
        state, wrong, removed = seen.state, [], seen.leftovers
        if state == "between" and "pair" in scenario.name:
            state = reads_as(self._read(scenario), reference) or state
        exact = seen.is_exact
        again = seen if exact else self._again(scenario, system, state)
        if state in ("between", "torn"):
            state = "recoverable" if state == "between" and again == Seen("new", ()) else "mixed"
        elif not exact and again != Seen("new", ()):
            wrong.append(f"the next run leaves {again.state}, and {', '.join(again.leftovers) or 'nothing else'}")
        if state == "mixed":
            wrong.append("mixed")
        wrong += _wrong_in(answer, fault, state)
        if fault.kind == "interrupt" and seen.leftovers:
            wrong.append(f"leftover: {', '.join(seen.leftovers)}")
        return Outcome(scenario, system, fault, state, tuple(wrong), removed, answer, found)

    def _again(self, scenario: Scenario, system: System, state: str) -> Seen:
        """What the same command, without a fault, makes of what lies there.

        Where the result is there it may refuse that without --force, which then has to tidy up.
        """
        command = scenario.command()
        answer = self.run(command, system.options() if system.without else None, system)
        if answer.code == 6 and state == "new" and not scenario.force:
            command = [*command, "--force"]
            answer = self.run(command, system.options() if system.without else None, system)
        seen = look(listing(self.folder / "d"), self.reference(scenario))
        return seen if answer.code == 0 else Seen(f"{seen.state} (exit {answer.code}: {answer.err.strip()})", ())

    def run(self, arguments: list[str], strace: list[str] | None, system: System, instead: str = PROGRAM) -> Run:
        """Run the program once."""
        run = self._program.start(*arguments, cwd=self.folder, before=system.before, program=instead)
        if strace is not None:
            run.traced(*strace)
        run.release(_SECONDS)
        return run.wait()

    def _read(self, scenario: Scenario) -> Tensors | None:
        """What lies at the destination, as torch.load sees it; None where there is nothing that can be read.

        It is read from a copy: who reads may tidy up.
        """
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "d", copy / "d")
        shutil.copytree(self.folder / "in", copy / "in")
        path = copy / scenario.layout.destination
        if not scenario.layout.is_archive:
            path = copy / "back.pth"
            if self._program(*scenario.back("back.pth"), cwd=copy).code != 0:
                return None
        return dict(torch.load(path, weights_only=True)) if path.exists() else None

    def restore(self, scenario: Scenario) -> None:
        """What lies there before a run."""
        self.reference(scenario)
        shutil.rmtree(self.folder / "d")
        shutil.copytree(self.folder / "states" / scenario.name, self.folder / "d")

    def _succeed(self, arguments: list[str]) -> None:
        answer = self.run(arguments, None, WHOLE)
        assert answer.code == 0, answer


def _wrong_in(answer: Run, fault: Fault, state: str) -> list[str]:
    """What the exit code and stderr say that they should not. A killed process says nothing."""
    if answer.code is None:
        return ["hangs"]
    wrong = ["traceback"] if "Traceback" in answer.err else []
    if fault.kind == "kill":
        return wrong
    if (answer.code == 0) != (state == "new"):
        wrong.append(f"wrong exit: {answer.code}")
    if state != "new" and answer.code not in _codes(fault):
        wrong.append(f"no exit code for that: {answer.code}")
    return wrong


def _codes(fault: Fault) -> Collection[int]:
    """Those of a command that did not do its work."""
    if fault.kind == "error":
        return range(2, 10)
    number = signal.Signals[fault.what]
    # of several threads each gets a signal, the last perhaps when the program no longer waits for any
    return {128 + number, *([-number] if fault.call.in_thread else [])}


def _check_whole(tensors: Tensors, source: Tensors, scenario: Scenario) -> None:
    """What a run without faults wrote reads as its source: all of it, or all that a table keeps of it."""
    if scenario.layout.keeps:
        assert same(tensors, source), scenario
    else:
        short = {name.removeprefix("module."): tensor for name, tensor in source.items()}
        assert same(tensors, {name: short[name] for name in tensors}), scenario
        assert short.keys() - tensors.keys() == {"position_ids", "training.weight"}, scenario
