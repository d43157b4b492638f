"""What else happens to a download: Ctrl-C while the Hub is silent, leftovers, a cache that takes nothing."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import WeakFileLock

from converter.hub.requests import Retry
from converter.hub.resolve import Resolved, resolve
from tests.support.hub.server import HubServer
from tests.support.publishing import REPO, refused


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def published(folder: Path, hub: HubServer) -> HubServer:
    hub.storage.create(REPO, True, "somebody")
    hub.push(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    return hub


def get(cache: Path, reference: str = REPO) -> Resolved:
    return resolve(reference, cache_dir=cache, retry=Retry(sleep=lambda seconds: None))


@pytest.mark.parametrize("step", ["info", "tree", "head", "resolve", "download"])
def test_ctrl_c_ends_a_download_at_once_though_the_hub_is_silent(step: str, published: HubServer, cache: Path) -> None:
    main, ended = threading.main_thread().ident, threading.Event()
    assert main is not None

    def interrupt() -> None:
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)
        ended.wait(30)

    published.fail(step, interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        get(cache)
    assert time.monotonic() - start < 8  # the client itself gives up after 10
    ended.set()
    assert (get(cache).path / "config.json").is_file()


def test_what_a_killed_download_left_goes_with_the_next_one(published: HubServer, cache: Path) -> None:
    blob = (get(cache).path / "model.safetensors").resolve()
    left = [blob.with_name(f"{blob.name}{suffix}") for suffix in (".incomplete", ".0123abcd.incomplete")]
    other = blob.with_name(f"{'0' * 64}.incomplete")  # of a file that is not there yet: the client may go on with it
    for path in (*left, other):
        path.write_bytes(b"half")
    get(cache)
    assert [path.exists() for path in (*left, other)] == [False, False, True]


def test_what_another_process_downloads_stays(published: HubServer, cache: Path) -> None:
    blob = (get(cache).path / "model.safetensors").resolve()
    left = blob.with_name(f"{blob.name}.0123abcd.incomplete")
    left.write_bytes(b"half")
    with WeakFileLock(cache / ".locks" / blob.parents[1].name / f"{blob.name}.lock"):
        get(cache)
        assert left.exists()


@pytest.mark.parametrize("reference", [REPO, f"hf://{REPO}/model.safetensors"])
def test_a_cache_that_cannot_be_written(reference: str, published: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(lambda: get(tmp_path / "file" / "cache", reference))
    assert "the cache cannot be written: Not a directory" in said
    assert "HF_HOME" in said


@pytest.mark.parametrize("reference", [REPO, f"hf://{REPO}/model.safetensors"])
def test_a_full_disk_is_named_and_leaves_nothing(
    reference: str, published: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        assert "the cache cannot be written: No space left on device" in refused(lambda: get(cache, reference))
    assert list(cache.rglob("*.incomplete")) == []
    get(cache, reference)


def test_a_file_that_is_replaced_while_it_is_downloaded_is_of_one_commit(published: HubServer, cache: Path) -> None:
    """Somebody pushes between two files: all are of the commit that the revision is at in the end."""
    changed = b"---\n{}\n"
    published.fail("head", lambda: published.push(REPO, {"config.json": changed, "conversion.json": changed}) and None)
    found = get(cache)
    assert found.commit == published.repository(REPO).head.id
    assert [(found.path / name).read_bytes() for name in ("config.json", "conversion.json")] == [changed] * 2
