"""Whatever goes wrong, a repository holds the old version or the new one, and the next run finds out which."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from converter.hub.requests import Retry
from tests.support.hub.faults import Fault, status
from tests.support.hub.server import HubServer
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

STEPS = ["whoami", "info", "create", "tree", "validate", "preupload", "batch", "upload", "verify", "commit"]


PARTS = ["part", "complete"]


PASSING: dict[str, Fault] = {
    "500": status(500),
    "503": status(503),
    "429": status(429, Retry_After="3"),
    "dropped before": Fault("drop-before"),
    "dropped after": Fault("drop-after"),
    "no JSON": Fault("status", 502, body="<html>"),
}


LASTING = {
    **{name: PASSING[name] for name in ("500", "dropped before", "dropped after")},
    "401": status(401),
    "403": status(403),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("step", STEPS + PARTS)
def test_one_fault_is_got_over(
    step: str, fault: str, folder: Path, hub: HubServer, clock: Clock, waits: list[float]
) -> None:
    hub.chunk_size = 100_000 if step in PARTS else None
    hub.fail(step, PASSING[fault])
    done = go(folder, clock)
    assert done.verified == 6
    assert is_published(hub, folder)
    assert len(commits(hub)) == 2
    if fault == "429":
        assert 3 <= (clock.seconds + waits)[0] <= 4


# done although no answer ever says so: the verification need not be repeated, the commit is looked for (see below)
DONE = {("verify", "dropped after"), ("commit", "dropped after")}


@pytest.mark.parametrize(("step", "fault"), [pair for pair in product(STEPS + PARTS, LASTING) if pair not in DONE])
def test_a_fault_that_lasts_leaves_nothing_half_published(
    step: str, fault: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    hub.chunk_size = 100_000 if step in PARTS else None
    hub.fail(step, *[LASTING[fault]] * 60)
    said = refused(lambda: go(folder, clock))
    assert said.startswith(f"{REPO}: ")
    assert f"converter publish {folder} {REPO}" in said
    assert ("kept" in said) == (fault not in ("401", "403"))
    if REPO in hub.storage.repositories:
        assert set(files_at(hub)) == {".gitattributes"}
    assert len(clock.seconds) <= 4
    hub.faults.clear()
    go(folder, clock)
    assert is_published(hub, folder)
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("fault", ["500", "dropped before", "403"])
def test_an_old_version_stays_whole_when_a_new_one_fails(
    fault: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    go(folder, clock)
    before = files_at(hub)
    shard(folder)
    hub.fail("commit", *[LASTING[fault]] * 60)
    refused(lambda: go(folder, clock))
    assert files_at(hub) == before


def test_waiting_doubles_and_ends(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("whoami", *[status(503)] * 60)
    refused(lambda: go(folder, clock))
    assert clock.seconds == [1, 2, 4, 8]
    assert hub.count("whoami") == 5


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("whoami", status(429, Retry_After="3600"))
    refused(lambda: go(folder, clock))
    assert clock.seconds == []


def test_the_headers_of_the_rate_limit_are_obeyed(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("whoami", status(429, RateLimit='"api";r=0;t=7'))
    go(folder, clock)
    assert clock.seconds == [7]


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_lost_answer_is_found_again(create_pr: bool, folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("commit", Fault("drop-after"))
    done = go(folder, clock, create_pr=create_pr, message="GLIP \n\nIn two lines.")
    revision = "refs/pr/1" if create_pr else "main"
    assert is_published(hub, folder, revision)
    assert hub.count("commit") == 1
    found = hub.repository(REPO).find(revision)
    assert found is not None
    assert done.commit == found.id
    assert (done.pull_request is not None) == create_pr


def test_a_commit_that_was_not_made_is_made_again(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("commit", Fault("drop-before"))
    go(folder, clock)
    assert hub.count("commit") == 2
    assert len(commits(hub)) == 2


def test_a_commit_that_is_made_late_is_not_made_twice(folder: Path, hub: HubServer) -> None:
    """The connection is closed, the history does not show it yet, and the second attempt meets its own first."""
    import threading

    made = threading.Event()

    class Late(Clock):
        def retry(self, attempts: int = 5) -> Retry:
            return Retry(sleep=lambda seconds: made.wait(5))

    hub.fail("commit", Fault("late", seconds=0.3))
    threading.Timer(0.6, made.set).start()
    done = go(folder, Late())
    assert done.commit == hub.repository(REPO).head.id
    assert len(commits(hub)) == 2


def test_a_lost_answer_is_found_under_what_others_pushed_on_top(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    change_card(folder)
    hub.fail("commit", Fault("drop-after"))
    hub.fail("commits", lambda: hub.push(REPO, {"notes.md": b"on top"}) and None)
    done = go(folder, clock)
    assert commits(hub)[0] == "by somebody else"
    assert done.commit == hub.repository(REPO).head.parent


def test_it_is_not_taken_for_ours_what_another_pushed(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    change_card(folder)
    title = hub.repository(REPO).head.title
    hub.fail("commit", Fault("drop-before"))
    hub.fail("commits", lambda: hub.push(REPO, {"README.md": b"theirs"}, title) and None)
    assert "somebody else changed main" in refused(lambda: go(folder, clock))
    assert hub.content(REPO, "README.md") == b"theirs"


def test_a_pull_request_that_cannot_be_found_is_not_opened_again(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("commit", Fault("drop-before"))
    said = refused(lambda: go(folder, clock, create_pr=True))
    assert "no pull request with these files is to be seen" in said
    assert hub.count("commit") == 1
    go(folder, clock, create_pr=True)
    assert list(hub.repository(REPO).pull_requests) == [1]


def test_a_history_that_cannot_be_read_leaves_it_to_the_next_run(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("commit", Fault("drop-after"))
    hub.fail("commits", *[status(500)] * 60)
    said = refused(lambda: go(folder, clock))
    assert "checking whether the commit was made" in said
    hub.faults.clear()
    assert go(folder, clock).commit is None
    assert len(commits(hub)) == 2


@pytest.mark.parametrize("step", ["preupload", "upload", "commit"])
def test_a_head_that_moved_is_not_overwritten(step: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, True, "somebody")
    hub.fail(step, partial(_push, hub))
    said = refused(lambda: go(folder, clock))
    assert "somebody else changed main" in said
    assert f"converter publish {folder} {REPO}" in said
    assert commits(hub) == ["by somebody else", "initial commit"]
    go(folder, clock)
    assert len(commits(hub)) == 3
    assert hub.content(REPO, "notes.md") == b"theirs"


def _push(hub: HubServer) -> None:
    hub.push(REPO, {"notes.md": b"theirs"})


def test_a_refusal_of_the_parent_is_reported(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, True, "somebody")
    hub.fail("commit", status(412))
    assert "somebody else changed main" in refused(lambda: go(folder, clock))


def test_a_file_that_changes_while_it_is_uploaded_is_not_committed(folder: Path, hub: HubServer, clock: Clock) -> None:
    def change() -> None:
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")

    hub.fail("whoami", change)
    assert "changed while it was uploaded" in refused(lambda: go(folder, clock))
    assert set(files_at(hub)) == {".gitattributes"}


def test_what_arrives_otherwise_is_noticed(folder: Path, hub: HubServer, clock: Clock) -> None:
    def spoil() -> None:
        head = hub.repository(REPO).head
        head.files["config.json"] = hub.storage.add(b"{}")

    hub.fail("tree", lambda: None, spoil)
    said = refused(lambda: go(folder, clock))
    assert "does not hold what was sent: config.json has" in said


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_what_is_missing_is_noticed(name: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("tree", lambda: None, lambda: hub.repository(REPO).head.files.pop(name) and None)
    assert f"{name} is missing" in refused(lambda: go(folder, clock))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"create_pr": True, "message": "Two words"}, " --create-pr --message 'Two words'"),
        ({"private": False}, " --public"),
    ],
)
def test_the_next_command_is_the_same_again(
    options: dict[str, Any], said: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    hub.fail("batch", status(400))
    assert refused(lambda: go(folder, clock, **options)).endswith(f"converter publish {folder} {REPO}{said}")


@pytest.mark.parametrize("token", [CANARY, "tokens.of.other-kinds.do.not.begin.so"])
def test_the_token_goes_to_the_hub_alone_and_is_shown_nowhere(
    token: str, folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens[token] = ("somebody", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    hub.fail("upload", status(500))
    hub.fail("commit", Fault("status", 500, body=json.dumps({"error": f"told {token} to fail"})))
    done = go(folder, clock)
    assert token not in repr(done)
    assert "told [token] to fail" in "\n".join(clock.lines)
    hub.fail("whoami", Fault("status", 403, body=json.dumps({"error": f"told {token} to fail"})))
    said = refused(lambda: go(folder, clock))
    assert "told [token] to fail" in said
    assert token not in "\n".join([said, *clock.lines])
