"""Publishing with the real client: one commit or none, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from publishing import CANARY, REPO, refused, shard
from server import Fault, HubServer, status

from converter.errors import CaptureError, ConverterError
from converter.hub import Failure, Retry, attempt
from converter.publish.card import mark_unverified
from converter.publish.commit import Publication, publish


class Clock:
    """Seconds that were waited for, without waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lines: list[str] = []

    def retry(self, attempts: int = 5) -> Retry:
        return Retry(attempts=attempts, sleep=self.seconds.append)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def go(folder: Path, clock: Clock, **options: Any) -> Publication:
    return publish(folder, REPO, retry=clock.retry(), say=clock.lines.append, **options)


def files_at(hub: HubServer, revision: str = "main") -> dict[str, str]:
    """sha256 of every file of a revision."""
    commit = hub.repository(REPO).find(revision)
    assert commit is not None
    return {path: hashlib.sha256(hub.content(REPO, path, revision)).hexdigest() for path in commit.files}


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def change_card(folder: Path, more: str = "More of it.\n") -> None:
    """Still of these weights."""
    with (folder / "README.md").open("a") as file:
        file.write(more)


def is_published(hub: HubServer, folder: Path, revision: str = "main") -> bool:
    there = files_at(hub, revision)
    there.pop(".gitattributes")
    return there == files_of(folder)


def commits(hub: HubServer, revision: str = "main") -> list[str]:
    """Titles, newest first."""
    repository = hub.repository(REPO)
    head = repository.find(revision)
    assert head is not None
    return [commit.title for commit in repository.history(head)]


# What is published


def test_a_folder_becomes_one_commit_of_a_private_repository(folder: Path, hub: HubServer, clock: Clock) -> None:
    done = go(folder, clock, message="GLIP")
    assert is_published(hub, folder)
    assert commits(hub) == ["GLIP", "initial commit"]
    assert hub.repository(REPO).private
    assert (done.is_new, done.private, done.commit) == (True, True, hub.repository(REPO).head.id)
    assert done.verified == len(done.uploaded) == 6
    assert clock.seconds == []


def test_a_new_repository_is_public_only_if_asked(folder: Path, hub: HubServer, clock: Clock) -> None:
    assert not go(folder, clock, private=False).private
    assert not hub.repository(REPO).private


def test_shards_are_published(sharded: Path, hub: HubServer, clock: Clock) -> None:
    go(sharded, clock)
    assert is_published(hub, sharded)


def test_old_shards_go_in_the_same_commit(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    hub.push(REPO, {"notes.md": b"kept", "tokenizer.json": b"{}"})
    shard(folder)
    done = go(folder, clock)
    assert done.deleted == ("model.safetensors", "tokenizer.json")
    assert set(files_at(hub)) - {".gitattributes", "notes.md"} == set(files_of(folder))
    assert len(commits(hub)) == 4


def test_a_licence_stays_where_the_folder_has_none(folder: Path, hub: HubServer, clock: Clock) -> None:
    (folder / "LICENSE").write_text("MIT")
    go(folder, clock)
    (folder / "LICENSE").unlink()
    again = go(folder, clock)
    assert (again.commit, again.other) == (None, ("LICENSE",))
    assert "LICENSE" in files_at(hub)


def test_what_else_is_there_is_told(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    hub.push(REPO, {"pytorch_model.bin": b"", "notes/of mine.md": b"", "tokenizer.json": b"{}"})
    done = go(folder, clock, dry_run=True)
    assert (done.deleted, done.other) == (("tokenizer.json",), ("notes/of mine.md", "pytorch_model.bin"))


def test_what_is_there_is_not_sent_again(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    change_card(folder)
    hub.requests.clear()
    done = go(folder, clock)
    assert [file.name for file in done.uploaded] == ["README.md"]
    assert hub.writes == ["commit"]
    assert is_published(hub, folder)


def test_publishing_twice_makes_one_commit(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    hub.requests.clear()
    done = go(folder, clock)
    assert (done.commit, done.uploaded, len(done.unchanged), done.verified) == (None, (), 6, 6)
    assert hub.writes == []
    assert len(commits(hub)) == 2


def test_a_dry_run_writes_nothing(folder: Path, hub: HubServer, clock: Clock) -> None:
    done = go(folder, clock, dry_run=True)
    assert (done.is_new, done.head, len(done.uploaded)) == (True, None, 6)
    assert hub.storage.repositories == {}
    go(folder, clock)
    shard(folder)
    hub.requests.clear()
    done = go(folder, clock, dry_run=True)
    assert (len(done.uploaded), done.deleted) == (3, ("model.safetensors",))
    assert hub.writes == []


def test_a_branch_is_published_to(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, True, "somebody")
    hub.repository(REPO).refs["refs/heads/fp16"] = hub.repository(REPO).head.id
    go(folder, clock, revision="fp16")
    assert is_published(hub, folder, "fp16")
    assert set(files_at(hub)) == {".gitattributes"}


def test_a_branch_that_is_not_there_is_named(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, True, "somebody")
    said = refused(lambda: go(folder, clock, revision="fp16"))
    assert f"hf repos branch create {REPO} fp16" in said
    assert hub.writes == []


def test_no_repository_is_made_for_a_branch_that_it_has_not(folder: Path, hub: HubServer, clock: Clock) -> None:
    for dry_run in (True, False):
        said = refused(lambda dry_run=dry_run: go(folder, clock, revision="fp16", dry_run=dry_run))  # type: ignore[misc]
        assert "no branch fp16 to commit to" in said
        assert said.endswith(f"converter publish {folder} {REPO} --revision fp16")
    assert hub.writes == []


def test_a_tag_is_no_branch(folder: Path, hub: HubServer, clock: Clock) -> None:
    repository = hub.storage.create(REPO, True, "somebody")
    repository.refs["refs/tags/v1"] = repository.head.id
    hub.push(REPO, {"notes.md": b""})
    for name in ("v1", "refs/tags/v1"):
        assert "is a tag" in refused(lambda name=name: go(folder, clock, revision=name))  # type: ignore[misc]
    assert hub.writes == []


def test_what_is_no_text_is_named(folder: Path, hub: HubServer, clock: Clock) -> None:
    assert "--message: 'GLIP \\udcff' is not UTF-8" in refused(lambda: go(folder, clock, message="GLIP \udcff"))
    assert "--revision: '\\udcff' is not UTF-8" in refused(lambda: go(folder, clock, revision="\udcff"))
    assert "names no branch" in refused(lambda: go(folder, clock, revision=""))
    assert hub.requests == []
    failure = attempt(lambda: "\udcff".encode())
    assert isinstance(failure, Failure)
    assert failure.kind == "other"  # not the token's fault


def test_a_commit_is_no_branch(folder: Path, hub: HubServer, clock: Clock) -> None:
    head = hub.storage.create(REPO, True, "somebody").head.id
    assert "a commit cannot be changed" in refused(lambda: go(folder, clock, revision=head))


def test_a_pull_request_leaves_main_alone(folder: Path, hub: HubServer, clock: Clock) -> None:
    done = go(folder, clock, create_pr=True)
    assert done.pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert set(files_at(hub)) == {".gitattributes"}
    assert is_published(hub, folder, "refs/pr/1")


def test_an_open_pull_request_with_the_same_files_is_not_opened_twice(
    folder: Path, hub: HubServer, clock: Clock
) -> None:
    first = go(folder, clock, create_pr=True)
    again = go(folder, clock, create_pr=True)
    assert (again.pull_request, again.commit) == (first.pull_request, first.commit)
    assert list(hub.repository(REPO).pull_requests) == [1]
    hub.repository(REPO).closed.add(1)
    assert go(folder, clock, create_pr=True).pull_request == f"{hub.url}/{REPO}/discussions/2"


def test_large_files_go_in_parts(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.chunk_size = 100_000
    go(folder, clock)
    assert hub.count("part") == -(-(folder / "model.safetensors").stat().st_size // 100_000)
    assert (hub.count("part") > 2, hub.count("complete"), hub.count("upload")) == (True, 1, 0)
    assert is_published(hub, folder)


def test_a_listing_of_many_pages_is_read_whole(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.page = 2
    go(folder, clock)
    assert go(folder, clock).commit is None


def test_a_file_that_was_received_is_not_sent_again_by_another_run(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.fail("commit", status(403))
    refused(lambda: go(folder, clock))
    hub.requests.clear()
    go(folder, clock)
    assert hub.count("upload") == 0
    assert is_published(hub, folder)


# What is refused before anything is sent


def link_to_blobs(folder: Path) -> None:
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    (blobs / "key").write_text("secret")
    (folder / "LICENSE").symlink_to(blobs / "key")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (lambda folder: (folder / "parity.json").unlink(), "converter certify"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no ledger": (lambda folder: (folder / "conversion.json").unlink(), "has no conversion.json. `converter package"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "has no README.md. `converter package CONVERSION OUT`"),
    "a card of other weights": (lambda folder: (folder / "README.md").write_text("# GLIP"), "is not of these weights"),
    "a card that says UNVERIFIED": (
        lambda folder: change_card(folder, "\n> **UNVERIFIED.** Nothing shows"),
        "says UNVERIFIED, but there is parity",
    ),
    "a card that is no text": (lambda folder: (folder / "README.md").write_bytes(b"\xff"), "is no UTF-8 text"),
    "a link": (
        lambda folder: (folder / "LICENSE").symlink_to(Path(__file__).resolve()),
        "LICENSE linked to files elsewhere",
    ),
    "a link to somebody's blobs": (lambda folder: link_to_blobs(folder), "LICENSE linked to files elsewhere"),
    "the token": (lambda folder: (folder / "NOTICE").write_text(f"login {CANARY}"), "NOTICE holds the token"),
    "a foreign file": (lambda folder: (folder / "optimizer.pt").touch(), "optimizer.pt"),
    "a hidden file": (lambda folder: (folder / ".env").touch(), ".env"),
    "a folder": (lambda folder: (folder / "logs").mkdir(), "logs"),
    "weights of no index": (
        lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b""),
        "is not of this model",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_not_right_is_refused(what: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    change, expected = WRONG[what]
    change(folder)
    assert expected in refused(lambda: go(folder, clock))
    assert hub.requests == []


def test_weights_that_are_not_the_certified_ones_are_refused(folder: Path, hub: HubServer, clock: Clock) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        go(folder, clock)
    said = str(caught.value)
    assert "differ from what conversion.json says in 1 tensor" in said
    assert hub.requests == []


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CONTRADICTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no certificate": ("parity.json", lambda c: c.clear(), "is no certificate"),
    "a certificate of another tensor": (
        "parity.json", lambda c: c["weights"]["tensors"].update({"head.bias": "0" * 64}), "the certificate says in 1"
    ),
    "a certificate of another hash": ("parity.json", lambda c: c["weights"].update(sha256="0" * 64), "says 000"),
    "a fingerprint of no base64": ("parity.json", lambda c: c.update(fingerprint="!!!!"), "fingerprint is damaged"),
    "a fingerprint of nothing": ("parity.json", lambda c: c.update(fingerprint="AAAA"), "fingerprint is damaged"),
    "no ledger": ("conversion.json", lambda c: c.clear(), "its record 'conversion' is none"),
    "a ledger of another tensor": (
        "conversion.json", lambda c: c["tensors"].update({"head.bias": "0" * 64}), "conversion.json says in 1 tensor"
    ),
    "a ledger of another hash": ("conversion.json", lambda c: c.update(sha256="0" * 64), "conversion.json says 000"),
    "no configuration": ("config.json", lambda c: c.clear(), "its record 'config' is none"),
    "another architecture": ("config.json", lambda c: c["config"].update(embed_dim=16), "not that of its weights"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_documents_that_are_not_of_the_weights_are_refused(
    what: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    file, change, expected = CONTRADICTIONS[what]
    edit(folder / file, change)
    with pytest.raises(ConverterError) as caught:
        go(folder, clock)
    assert expected in str(caught.value)
    if file != "parity.json":
        (folder / "parity.json").unlink()
        with pytest.raises(ConverterError):
            go(folder, clock, unverified=True)
    assert hub.requests == []


def test_a_file_that_is_exchanged_between_two_looks_is_refused(folder: Path, hub: HubServer, clock: Clock) -> None:
    weights, other = folder / "model.safetensors", folder.with_name("other")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    said = refused(lambda: go(folder, clock, on_bytes=lambda count: other.exists() and other.replace(weights)))
    assert "model.safetensors changed while it was read" in said
    assert hub.requests == []


def test_a_snapshot_of_the_cache_is_published(folder: Path, hub: HubServer, clock: Clock) -> None:
    """As huggingface_hub lays it out: links into `blobs`, and the Hub's own `.gitattributes`."""
    (folder / ".gitattributes").write_text("*.png filter=lfs\n")
    repository = folder.with_name("models--somebody--glip-small")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    folder.rename(repository / "blobs")
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    go(snapshot, clock)
    assert b"*.png" not in hub.content(REPO, ".gitattributes")
    (snapshot / ".gitattributes").unlink()
    assert is_published(hub, snapshot)


def test_a_link_inside_the_folder_is_published(folder: Path, hub: HubServer, clock: Clock) -> None:
    (folder / "LICENSE").write_text("MIT")
    (folder / "NOTICE").symlink_to("LICENSE")
    go(folder, clock)
    assert hub.content(REPO, "NOTICE") == b"MIT"


@pytest.mark.parametrize(
    "says", ["# GLIP\n", "These weights are not unverified at all.\n", "<!-- > **UNVERIFIED.** -->\n"]
)
def test_without_a_certificate_the_card_is_marked(says: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    assert "Leave out --unverified" in refused(lambda: go(folder, clock, unverified=True))
    (folder / "parity.json").unlink()
    (folder / "README.md").write_text(says)
    go(folder, clock, unverified=True)
    assert (folder / "README.md").read_text() == says
    there = hub.content(REPO, "README.md").decode()
    assert there == mark_unverified(says) != says
    assert go(folder, clock, unverified=True).commit is None
    (folder / "README.md").write_text(there)
    assert is_published(hub, folder)
    assert go(folder, clock, unverified=True).commit is None


@pytest.mark.parametrize(
    "name",
    ["glip", "a/b/c", "hf://somebody/x", "somebody/x@main", "../x", "", "a/b--c", "a/b.git", "a/b."],
)
def test_a_name_that_is_none_is_refused(name: str, folder: Path, hub: HubServer) -> None:
    (folder / "config.json").unlink()  # it is the first thing looked at
    assert "Expected org/name" in refused(lambda: publish(folder, name))


def test_a_public_repository_is_not_taken_for_a_private_one(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, False, "somebody")
    assert "is public, and was to be published as private" in refused(lambda: go(folder, clock, private=True))
    assert hub.writes == []


def test_a_card_that_the_hub_refuses(folder: Path, hub: HubServer, clock: Clock) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("\n---\n", "\n"))
    said = refused(lambda: go(folder, clock))
    assert "does not end" in said
    assert f"Change what it names, then run: converter publish {folder} {REPO}" in said
    assert set(files_at(hub)) == {".gitattributes"}


# Who may

STRANGERS: dict[str, tuple[str | None, str]] = {
    "no token": (None, "hf auth login"),
    "an unknown token": ("hf_UnknownTokenOfNobody00", "hf auth login"),
    "a token that may only read": ("hf_ReadOnlyTokenOfSomebody", "may only read"),
    "a token of somebody else": ("hf_TokenOfAStranger0000000", "hf auth login"),
    "a token that is no header": ("hf_TokenWithAnÄccent000000", "hf auth login"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_who_may_not_write_is_told_so(
    who: str, folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens |= {"hf_ReadOnlyTokenOfSomebody": ("somebody", "read"), "hf_TokenOfAStranger0000000": ("else", "write")}
    token, expected = STRANGERS[who]
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    said = refused(lambda: go(folder, clock))
    assert expected in said
    assert token is None or token not in said
    assert hub.storage.repositories == {}


def test_a_pull_request_is_proposed_where_there_is_something_to_change(
    folder: Path, hub: HubServer, clock: Clock
) -> None:
    hub.fail("create", status(403))
    assert "--create-pr" not in refused(lambda: go(folder, clock))
    hub.storage.create(REPO, True, "somebody")
    hub.fail("preupload", status(403))
    assert "propose it with --create-pr" in refused(lambda: go(folder, clock))
    hub.fail("preupload", status(403))
    assert "propose it" not in refused(lambda: go(folder, clock, create_pr=True))


def test_a_dry_run_without_a_token_does_not_know_what_it_cannot_see(
    folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage.create(REPO, True, "somebody")
    monkeypatch.delenv("HF_TOKEN")
    done = go(folder, clock, dry_run=True)
    assert (done.is_new, done.private, done.head) == (None, None, None)


# Faults

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


# Answers to a commit that are lost


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
    assert "looking whether the commit was made" in said
    hub.faults.clear()
    assert go(folder, clock).commit is None
    assert len(commits(hub)) == 2


# Others


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


# Read back


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


# The token


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
