"""What else happens to a publication: signals in a pause or twice, others at the same time, files that change."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from converter.hub.requests import Retry
from converter.publish.card import mark_unverified
from tests.support.hub.faults import Fault, status
from tests.support.hub.server import HubServer
from tests.support.program import Program, Run
from tests.support.publishing import (
    CANARY,
    REPO,
    Clock,
    change_card,
    commits,
    files_at,
    go,
    is_published,
    refused,
    shard,
)
from tests.support.stopping import carry_out

MODULES = ("converter.cli.families", "converter.publish.commit", "huggingface_hub.hf_api", "huggingface_hub.lfs")


class Interrupted(Clock):
    """Ctrl-C comes while it waits."""

    def retry(self, attempts: int = 5) -> Retry:
        def sleep(seconds: float) -> None:
            signal.raise_signal(signal.SIGINT)

        return Retry(sleep=sleep)


@pytest.mark.parametrize(
    ("step", "said"), [("whoami", "nothing was published"), ("commit", "whether the commit was made is not known")]
)
def test_an_interruption_while_it_waits_to_try_again(step: str, said: str, folder: Path, hub: HubServer) -> None:
    hub.fail(step, status(503))
    with pytest.raises(KeyboardInterrupt, match=said):
        go(folder, Interrupted())
    go(folder, Clock())
    assert is_published(hub, folder)
    assert len(commits(hub)) == 2


def test_a_token_that_cannot_be_read_is_none(
    folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    said = refused(lambda: go(folder, clock))
    assert f"converter publish {folder} {REPO}" in said
    assert hub.storage.repositories == {}


def edit(path: Path) -> None:
    """As many bytes as before, and the same time."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("step", ["tree", "batch", "upload", "verify", "validate"])
def test_weights_edited_after_they_were_hashed_are_not_published(
    step: str, folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the storage believes whatever it gets."""
    path = folder / "model.safetensors"
    before = path.read_bytes()

    def keep(self: object, received: Path, sha256: str, oid: str) -> None:
        received.rename(hub.storage.lfs_path(oid))

    monkeypatch.setattr("tests.support.hub.writing.Writing._keep", keep)
    hub.fail(step, lambda: edit(path))
    if step == "validate":  # it was sent by then
        go(folder, clock)
        assert hub.content(REPO, "model.safetensors") == before
        return
    said = refused(lambda: go(folder, clock))
    assert "model.safetensors: changed while it was uploaded; nothing was published" in said
    assert set(files_at(hub)) == {".gitattributes"}


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("step", ["tree", "batch", "upload", "verify"])
@pytest.mark.parametrize("change", [cut, grow, Path.unlink])
def test_weights_cut_off_extended_or_removed_after_they_were_hashed(
    change: Callable[[Path], object], step: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    """Whatever the client says of it."""
    hub.fail(step, lambda: change(folder / "model.safetensors"))
    said = refused(lambda: go(folder, clock))
    how = "cannot be read: No such file" if change is Path.unlink else "changed while it was uploaded"
    assert f"model.safetensors: {how}" in said
    assert re.search("[Nn]othing was published", said)
    assert set(files_at(hub)) == {".gitattributes"}


def test_an_empty_file_is_what_it_was_when_it_was_read(folder: Path, hub: HubServer, clock: Clock) -> None:
    """As every document is, which the program holds; weights are read again."""
    (folder / "NOTICE").touch()
    hub.fail("batch", lambda: (folder / "NOTICE").write_text("later") and None)
    go(folder, clock)
    assert hub.content(REPO, "NOTICE") == b""


def test_a_folder_whose_name_the_client_would_expand(
    folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename("~")
    go(Path("~"), clock)
    assert is_published(hub, folder.parent / "~")


def test_an_error_of_the_client_after_the_commit(
    folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the history says that it was made."""
    from huggingface_hub import HfApi

    real = HfApi.create_commit

    def create(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[call-overload]
        raise RuntimeError("the client's own")

    monkeypatch.setattr(HfApi, "create_commit", create)
    assert go(folder, clock).commit == hub.repository(REPO).head.id


def test_the_history_cannot_be_asked_any_more_after_a_lost_answer(folder: Path, hub: HubServer, clock: Clock) -> None:
    """The commit was made, its answer lost, and then Ctrl-C comes before it is found."""
    hub.fail("commit", Fault("drop-after"))
    main = threading.main_thread().ident
    assert main is not None
    hub.fail("commits", lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="whether the commit was made is not known"):
        go(folder, clock)
    assert go(folder, clock).commit is None
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("is_same", [True, False])
def test_two_publications_at_once(is_same: bool, folder: Path, hub: HubServer, clock: Clock) -> None:
    """The other one commits after this one compared and before it commits."""
    go(folder, clock)
    change_card(folder)
    before = (folder / "README.md").read_text()

    def other() -> None:
        if not is_same:
            change_card(folder, "Otherwise.\n")
        go(folder, Clock())
        (folder / "README.md").write_text(before)

    hub.fail("commit", other)
    if is_same:
        assert go(folder, clock).commit == hub.repository(REPO).head.id
    else:
        assert "somebody else changed main meanwhile" in refused(lambda: go(folder, clock))
    assert len(commits(hub)) == 3


def test_it_is_done_once_it_was_read_back(folder: Path, hub: HubServer, clock: Clock) -> None:
    done: list[str] = []
    go(folder, clock, on_done=lambda: done.append(hub.requests[-1][0]))
    hub.fail("tree", *[status(403)] * 9)
    refused(lambda: go(folder, clock, on_done=lambda: done.append("refused")))
    assert done == ["tree"]


# In a process of its own


@pytest.fixture
def run(folder: Path, hub: HubServer, tmp_path: Path) -> Iterator[Run]:
    """`converter publish` of two large files, before it begins."""
    shard(folder)
    (folder / "parity.json").unlink()
    (folder / "README.md").write_text(mark_unverified("---\nlicense: mit\n---\n# GLIP\n"))
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": CANARY, "HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    (tmp_path / "output").mkdir()
    with Program(MODULES, environment) as program:
        yield program.start("publish", "--unverified", folder, REPO, cwd=tmp_path / "output")


@pytest.mark.parametrize("step", ["whoami", "upload", "commit"])
def test_ctrl_c_ends_it_at_once_though_the_hub_does_not_answer(step: str, run: Run, hub: HubServer) -> None:
    ended = threading.Event()
    hub.fail(step, lambda: _interrupt(run, ended))
    run.release(timeout=8)  # the client itself gives up after 10
    assert run.wait().code == 130
    ended.set()
    assert run.err.startswith("interrupted; ")


def _interrupt(run: Run, ended: threading.Event) -> None:
    time.sleep(0.2)
    os.kill(run.pid, signal.SIGINT)
    ended.wait(20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_come_twice_or_are_not_waited_for(number: signal.Signals, run: Run, hub: HubServer) -> None:
    def twice() -> None:
        for _ in range(2):
            with suppress(ProcessLookupError):
                os.kill(run.pid, number)
            time.sleep(0.01)

    hub.fail("upload", twice)
    carry_out(hub, run, None)
    assert run.code != 0
    assert set(files_at(hub)) == {".gitattributes"}
