"""The system calls of a commit, as strace lists them, and the faults that each is given.

A commit begins at the first call that makes something in the folder where the result goes, or takes or moves a name in
it, and ends with the process. What comes before only reads.
Calls about memory and waiting threads are left out: what they do to the process no file shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tests.support.strace import inject, lines

_LEFT_OUT = {
    "brk", "clock_nanosleep", "futex", "getpid", "gettid", "madvise", "mmap", "mprotect", "mremap", "munmap",
    "rseq", "sched_getaffinity", "sched_yield", "set_robust_list",
}  # fmt: skip
# what each may give on a disk that is full, broken, read-only, remote or another user's, after their manual pages;
# calls about signals, and those that cannot fail, have none
_ERRORS = {
    "chmod": ("EIO", "EPERM", "EROFS"),
    "clone3": ("EAGAIN",),
    "close": ("EIO", "ENOSPC"),
    "dup": ("EMFILE",),
    "fallocate": ("EIO", "ENOSPC", "EOPNOTSUPP"),
    "fchmod": ("EIO", "EPERM", "EROFS"),
    "fcntl": ("ENOLCK", "EIO"),
    "flock": ("ENOLCK", "EIO", "EOPNOTSUPP"),
    "fstat": ("EIO",),
    "fstatfs": ("EIO",),
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "EINVAL"),
    "ftruncate": ("EIO", "ENOSPC", "EFBIG", "EPERM"),
    "getcwd": ("ENOENT",),
    "getdents64": ("EIO",),
    "ioctl": ("EIO",),
    "link": ("EIO", "ENOSPC", "EACCES", "EPERM", "EEXIST", "EMLINK", "EROFS"),
    "linkat": ("EIO", "ENOSPC", "EACCES", "EPERM", "EEXIST", "ENOENT", "EROFS"),
    "lseek": ("EIO",),
    "lstat": ("EIO", "EACCES"),
    "mkdir": ("EIO", "ENOSPC", "EACCES", "EEXIST", "EROFS"),
    "mkdirat": ("EIO", "ENOSPC", "EACCES", "EEXIST", "EROFS"),
    "newfstatat": ("EIO", "EACCES"),
    "open": ("EIO", "ENOSPC", "EACCES", "EMFILE", "ENOENT", "EROFS"),
    "openat": ("EIO", "ENOSPC", "EACCES", "EMFILE", "EOPNOTSUPP", "EROFS"),
    "pread64": ("EIO",),
    "preadv": ("EIO",),
    "preadv2": ("EIO",),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT", "EFBIG"),
    "read": ("EIO",),
    "rename": ("EIO", "ENOSPC", "EACCES", "EPERM", "EROFS"),
    "renameat": ("EIO", "ENOSPC", "EACCES", "EPERM", "EROFS"),
    "renameat2": ("EIO", "ENOSPC", "EACCES", "EINVAL", "ENOSYS", "EEXIST"),
    "rmdir": ("EIO", "EACCES", "EBUSY", "ENOTEMPTY"),
    "stat": ("EIO", "EACCES"),
    "statfs": ("EIO", "EACCES"),
    "statx": ("EIO", "EACCES"),
    "sync_file_range": ("EIO", "ENOSPC", "ESPIPE"),
    "unlink": ("EIO", "EACCES", "EPERM", "EROFS"),
    "unlinkat": ("EIO", "EACCES", "EPERM", "EROFS"),
    "write": ("EIO", "ENOSPC", "EPIPE"),
}
_ONLY_LOOK = {
    "fcntl", "getdents64", "ioctl", "lseek", "lstat", "newfstatat", "open", "openat", "read", "stat", "statx"
}  # fmt: skip
_OPENS = re.compile(r"^(?:\d+ +)?open(?:at)?\((.*)\) += (\d+)$")
_CLOSES = re.compile(r"^(?:\d+ +)?close\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Call:
    """The `number`-th `name` of a thread since strace attached. `shown`: as strace prints it.

    `in_thread`: made by another thread than the first; then the first thread to come that far is meant. `is_late`: made
    after the last call that names the folder where the result goes. `only_reads`: of a descriptor that is not written.
    """

    name: str
    number: int
    shown: str
    in_thread: bool = False
    is_late: bool = False
    only_reads: bool = False

    @property
    def changes_names(self) -> bool:
        """Whether it gives, takes or moves the name of something."""
        return self.name.startswith(("link", "rename", "unlink", "mkdir", "rmdir"))


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a call: `kind` is `kill`, `interrupt` or `error`, `what` the signal or the error."""

    call: Call
    kind: str
    what: str

    def options(self) -> list[str]:
        """Those of strace that make it happen, if calls of that name are traced."""
        how = f"error={self.what}" if self.kind == "error" else f"signal={self.what}"
        name, number = self.call.name, self.call.number
        follow = ["-f"] if self.call.in_thread else []
        return [*follow, *inject(name, how, number)]

    def happened(self, trace: str) -> bool:
        """Whether the run came to that call."""
        marks = {"error": "(INJECTED)", "kill": "killed by SIGKILL"}
        return marks.get(self.kind, f"--- {self.what} {{") in trace


def calls_of_commit(trace: str, destination_folder: str) -> list[Call]:
    """The calls in what `strace -f` wrote of a whole run, from the first one of the commit on."""
    folder = re.escape(destination_folder)
    begins = re.compile(rf'open(at)?\(.*"{folder}["/].*(O_TMPFILE|O_CREAT)|(mkdir|unlink|link|rename)\w*\(.*"{folder}/')
    calls: list[Call] = []
    found = list(lines(trace))
    last = max((i for i, line in enumerate(found) if re.search(rf'"{folder}["/]', line.text)), default=0)
    began, reading = False, set[str]()
    for i, line in enumerate(found):
        if opened := _OPENS.match(line.text):
            (reading.add if "O_RDONLY" in opened[1] else reading.discard)(opened[2])
        began = began or begins.search(line.text) is not None
        if began and line.name not in _LEFT_OUT:
            shown = line.text.removeprefix(line.thread).strip()[:160]
            closes = _CLOSES.match(line.text)
            reads = closes is not None and closes[1] in reading
            in_thread = line.thread != found[0].thread
            calls.append(Call(line.name, line.number, shown, in_thread, i > last, reads))
    return [call for call in calls if not call.in_thread] + _of_threads(call for call in calls if call.in_thread)


def _of_threads(calls: Iterable[Call]) -> list[Call]:
    """One for each name and number: which thread makes it first is chance."""
    found: dict[tuple[str, int], Call] = {}
    for call in calls:
        found.setdefault((call.name, call.number), call)
    return list(found.values())


def kills(calls: Iterable[Call]) -> list[Fault]:
    """Each call is not made, for the process is killed as it begins."""
    return [Fault(call, "kill", "SIGKILL") for call in calls]


def interrupts(calls: Iterable[Call]) -> list[Fault]:
    """Each call is interrupted, most by SIGINT, as Ctrl-C does, the others by SIGTERM or SIGHUP in turn.

    Not the last one: who has left is not interrupted. And none by the signal that it lets the program ignore, for then
    the system drops it.
    """
    signals = itertools.cycle(("SIGINT", "SIGINT", "SIGTERM", "SIGINT", "SIGINT", "SIGHUP"))
    there = [call for call in calls if not call.name.startswith("exit")]
    return [Fault(call, "interrupt", next(name for name in signals if not _ignores(call, name))) for call in there]


def _ignores(call: Call, name: str) -> bool:
    return call.shown.startswith(f"rt_sigaction({name}, {{sa_handler=SIG_IGN")


def errors(calls: Iterable[Call]) -> list[Fault]:
    """Each call that can fail fails, with each error that it may have.

    To close what was only read cannot fail: nothing still has to be written. It must not be made to, either: strace
    then leaves it open, with the lock that is held on it. Of late calls that change nothing, one error is enough.
    """
    return [Fault(call, "error", error) for call in calls if not call.only_reads for error in _errors_of(call)]


def _errors_of(call: Call) -> tuple[str, ...]:
    found = _ERRORS.get(call.name, ())
    return found[:1] if call.is_late and call.name in _ONLY_LOOK else found
