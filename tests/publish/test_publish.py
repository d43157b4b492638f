"""Publishing with the real client: one commit or none, of what is not there already."""

from __future__ import annotations

from pathlib import Path

from converter.hub.requests import Failure, attempt
from tests.support.hub.faults import status
from tests.support.hub.server import HubServer
from tests.support.publishing import (
    REPO,
    Clock,
    change_card,
    commits,
    files_at,
    files_of,
    go,
    is_published,
    refused,
    shard,
)

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


def test_graphs_that_others_put_there_stay(folder: Path, hub: HubServer, clock: Clock) -> None:
    go(folder, clock)
    graphs = ("onnx/model.onnx", "onnx/model.onnx.data", "theirs.onnx", "theirs.onnx.data")
    hub.push(REPO, dict.fromkeys(graphs, b"graph"))
    done = go(folder, clock)
    assert (done.deleted, done.other) == ((), graphs)
    assert set(graphs) < set(files_at(hub))


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
    assert "is not the name of a branch" in refused(lambda: go(folder, clock, revision=""))
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
