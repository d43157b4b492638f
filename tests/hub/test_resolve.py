"""Models and files of the Hub as local paths: downloaded once, checked always, and from the cache alone if asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from converter.checkpoint import open_checkpoint
from converter.cli.families import family_of
from converter.errors import CheckpointError
from converter.hub.reference import Reference, is_on_hub, parse_reference
from converter.hub.requests import Retry
from converter.hub.resolve import Resolved, resolve
from converter.publish.commit import publish
from tests.support.hub.faults import Fault, status
from tests.support.hub.server import HubServer
from tests.support.publishing import REPO, refused, shard

REFERENCES = {
    "org/name": Reference("org/name"),
    "org/name@v1": Reference("org/name", None, "v1"),
    "org/name@refs/pr/1": Reference("org/name", None, "refs/pr/1"),
    "hf://org/name": Reference("org/name"),
    "hf://org/name/glip.pth": Reference("org/name", "glip.pth"),
    "hf://org/name/MODEL/glip.pth@0123abc": Reference("org/name", "MODEL/glip.pth", "0123abc"),
}
NO_REFERENCES = [
    "", "name", "a/b/c.pth", "/a/b", "./a", "hf://a", "hf://a/b/../c", "hf://a/b/", "a b/c", "https://x/y",
    "hf://datasets/org/name/a.pth", "https://huggingface.co/org/name",
]  # fmt: skip


@pytest.mark.parametrize("text", REFERENCES)
def test_a_reference_names_repository_file_and_revision(text: str) -> None:
    assert parse_reference(text) == REFERENCES[text]


@pytest.mark.parametrize("text", NO_REFERENCES)
def test_what_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None
    assert "names nothing on the Hub" in refused(lambda: resolve(text))


class Seconds:
    def __init__(self) -> None:
        self.waited: list[float] = []
        self.retry = Retry(sleep=self.waited.append)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def published(folder: Path, hub: HubServer) -> Path:
    publish(folder, REPO, family_of)
    hub.push(REPO, {"original.pth": bytes(range(256)) * 400}, "add the checkpoint")
    hub.requests.clear()
    return folder


def get(reference: str, cache: Path, **options: str) -> Resolved:
    return resolve(reference, cache_dir=cache, retry=Retry(sleep=lambda seconds: None), **options)  # type: ignore[arg-type]


def blob(path: Path) -> Path:
    """The file in the cache that a path of a snapshot links to."""
    return path.resolve()


def test_a_model_is_downloaded_into_an_empty_cache(published: Path, hub: HubServer, cache: Path) -> None:
    found = get(REPO, cache)
    assert found.commit == hub.repository(REPO).head.id
    assert {path.name for path in found.path.iterdir()} == {
        "config.json", "conversion.json", "model.safetensors", "parity.json",
    }  # fmt: skip
    assert (found.path / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_it_loads_and_verifies(published: Path, hub: HubServer, cache: Path) -> None:
    from converter.parity.certificate import compare_tensors
    from converter.parity.evidence import read_evidence

    found = get(REPO, cache)
    with open_checkpoint(found.path) as checkpoint:
        assert compare_tensors(checkpoint, read_evidence(found.path / "parity.json")) == ((), (), ())


def test_shards_are_downloaded(folder: Path, hub: HubServer, cache: Path) -> None:
    publish(shard(folder), REPO, family_of)
    found = get(f"hf://{REPO}", cache)
    assert len(list(found.path.glob("model-*.safetensors"))) == 2


def test_the_second_time_nothing_is_downloaded(published: Path, hub: HubServer, cache: Path) -> None:
    get(REPO, cache)
    hub.requests.clear()
    get(REPO, cache)
    assert hub.count("download") == hub.count("resolve") == 0


def test_a_file_is_downloaded(published: Path, hub: HubServer, cache: Path) -> None:
    found = get(f"hf://{REPO}/original.pth", cache)
    assert found.path.read_bytes() == hub.content(REPO, "original.pth")
    assert found.commit == hub.repository(REPO).head.id
    assert hub.count("download") == 1


def test_an_older_revision_is_another_commit(published: Path, hub: HubServer, cache: Path) -> None:
    head = hub.repository(REPO).head
    assert head.parent is not None
    assert get(f"{REPO}@{head.parent}", cache).commit == head.parent
    assert get(REPO, cache, revision=head.parent).commit == head.parent
    assert "Give one of them" in refused(lambda: get(f"{REPO}@main", cache, revision="v1"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_download_is_noticed_and_got_again(name: str, published: Path, hub: HubServer, cache: Path) -> None:
    found = get(REPO, cache)
    path = found.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    blob(path).write_bytes(content)
    get(REPO, cache)
    assert path.read_bytes() == (published / name).read_bytes()


def test_a_flipped_byte_on_the_way_is_noticed(published: Path, hub: HubServer, cache: Path) -> None:
    hub.fail("download", Fault("flip"))
    found = get(f"hf://{REPO}/original.pth", cache)
    assert found.path.read_bytes() == hub.content(REPO, "original.pth")
    assert hub.count("download") == 2


def test_a_file_that_is_damaged_every_time_is_refused(published: Path, hub: HubServer, cache: Path) -> None:
    hub.fail("download", Fault("flip"), Fault("flip"))
    said = refused(lambda: get(f"hf://{REPO}/original.pth", cache))
    assert "is damaged, and was again" in said
    assert f"Remove {cache}" in said


def test_a_download_that_ends_too_early_is_continued(published: Path, hub: HubServer, cache: Path) -> None:
    hub.fail("download", Fault("truncate"))
    found = get(f"hf://{REPO}/original.pth", cache)
    assert found.path.read_bytes() == hub.content(REPO, "original.pth")


def test_a_range_is_answered(published: Path, hub: HubServer) -> None:
    from huggingface_hub.utils import get_session

    content = hub.content(REPO, "original.pth")
    url = f"{hub.url}/cdn/{hashlib.sha256(content).hexdigest()}"
    for asked, start, end in (("bytes=10-19", 10, 20), ("bytes=100-", 100, None), ("bytes=-5", -5, None)):
        answer = get_session().get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, content[start:end])
    assert get_session().get(url, headers={"Range": f"bytes={len(content)}-"}).status_code == 416


FAULTS = {
    "500": status(500),
    "503": status(503),
    "429": status(429, Retry_After="1"),
    "dropped": Fault("drop-before"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", ["info", "tree", "head", "resolve", "download"])
def test_one_fault_is_got_over(step: str, fault: str, published: Path, hub: HubServer, cache: Path) -> None:
    hub.fail(step, FAULTS[fault])
    found = get(REPO, cache)
    assert (found.path / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", ["info", "tree", "head", "resolve", "download"])
def test_a_fault_that_lasts_is_named(step: str, fault: str, published: Path, hub: HubServer, cache: Path) -> None:
    hub.fail(step, *[FAULTS[fault]] * 200)
    assert "HF_HUB_OFFLINE=1" in refused(lambda: get(REPO, cache))
    hub.faults.clear()
    assert get(REPO, cache).commit == hub.repository(REPO).head.id


def test_what_is_not_there_is_named(published: Path, hub: HubServer, cache: Path) -> None:
    assert "no such repository" in refused(lambda: get("somebody/else", cache))
    assert "no such revision" in refused(lambda: get(f"{REPO}@v9", cache))
    assert "no file 'other.pth'" in refused(lambda: get(f"hf://{REPO}/other.pth", cache))


def test_a_private_repository_needs_a_token(
    published: Path, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(lambda: get(REPO, cache))
    hub.repository(REPO).private = False
    assert get(REPO, cache).path.is_dir()


def test_a_repository_without_a_model_says_what_it_has(hub: HubServer, cache: Path) -> None:
    hub.storage.create(REPO, True, "somebody")
    assert "holds no converted model" in refused(lambda: get(REPO, cache))
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    hub.push(REPO, dict.fromkeys((*shards, "optimizer.pt"), b"x"))
    assert "Check the name and the revision." in refused(lambda: get(REPO, cache))
    hub.push(REPO, {"pytorch_model.bin.index.json": b"{}"})
    assert f"It has shards: hf download {REPO} --local-dir model, then convert --src model." in refused(
        lambda: get(REPO, cache)
    )
    for name in ("pytorch_model.bin", "checkpoints/model.pt", "glip.pth"):
        hub.push(REPO, {name: b"x"})
        assert refused(lambda: get(REPO, cache)).endswith(f"It has {name}: convert --src hf://{REPO}/{name}.")
    assert refused(lambda: get(f"{REPO}@main", cache)).endswith(f"convert --src hf://{REPO}/glip.pth@main.")


def test_an_index_without_its_shards_is_refused(folder: Path, hub: HubServer, cache: Path) -> None:
    publish(shard(folder), REPO, family_of)
    hub.repository(REPO).head.files.pop("model-00002-of-00002.safetensors")
    found = get(REPO, cache)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        open_checkpoint(found.path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_every_file_that_came_damaged_is_got_again(name: str, folder: Path, hub: HubServer, cache: Path) -> None:
    publish(shard(folder), REPO, family_of)
    commit = hub.repository(REPO).head
    kept = hub.storage.path_of(commit.files[name])
    content = kept.read_bytes()
    kept.write_bytes(content[:-20] + bytes(byte ^ 1 for byte in content[-20:]))
    assert "is damaged, and was again" in refused(lambda: get(REPO, cache))
    kept.write_bytes(content)
    assert (get(REPO, cache).path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["snapshots/x/glip.pth", "snapshots/y.pth", "a/b.pth"])
def test_a_file_in_any_folder_is_found(name: str, published: Path, hub: HubServer, cache: Path) -> None:
    hub.push(REPO, {name: b"content"})
    found = get(f"hf://{REPO}/{name}", cache)
    assert found.path.read_bytes() == b"content"
    assert found.reference == f"hf://{REPO}/{name}@{hub.repository(REPO).head.id}"
    assert found.files == {name: hashlib.sha256(b"content").hexdigest()}


def test_a_pinned_file_is_asked_for_once(published: Path, hub: HubServer, cache: Path) -> None:
    reference = f"hf://{REPO}/original.pth@{hub.repository(REPO).head.id}"
    found = get(reference, cache)
    hub.requests.clear()
    assert get(reference, cache) == found
    assert hub.requests == []
    blob(found.path).write_bytes(b"damaged")
    assert get(reference, cache).path.read_bytes() == hub.content(REPO, "original.pth")


def test_where_a_text_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "here").touch()
    on_hub = ["org/name", "org/name@v1", "hf://org/name", "hf://org/here", "https://huggingface.co/org/name"]
    assert [is_on_hub(text) for text in on_hub] == [True] * 5
    assert not any(map(is_on_hub, ["org/here", "org/glip.pth", "org/glip.safetensors", "glip-t", "./a/b", "/a/b"]))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_offline_the_cache_is_enough(
    published: Path, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online, file = get(REPO, cache), get(f"hf://{REPO}/original.pth", cache)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get(REPO, cache) == online
    assert get(f"hf://{REPO}/original.pth", cache) == file
    assert hub.requests == []
    blob(online.path / "config.json").write_text("{}")
    assert "damaged in the cache" in refused(lambda: get(REPO, cache))


@pytest.mark.parametrize("reference", [REPO, f"hf://{REPO}/original.pth", f"{REPO}@v1"])
def test_offline_without_a_cache_says_so(reference: str, hub: HubServer, offline: None, cache: Path) -> None:
    assert "HF_HUB_OFFLINE is set" in refused(lambda: get(reference, cache))
    assert hub.requests == []


def test_offline_nothing_is_published(folder: Path, hub: HubServer, offline: None) -> None:
    assert "Unset HF_HUB_OFFLINE" in refused(lambda: publish(folder, REPO, family_of))
