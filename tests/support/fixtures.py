"""Where tests start from: an empty Hub with one user, a certified model to publish, tables of a small model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.hub.server import HubServer, clear
from tests.support.publishing import CANARY, Clock, shard
from tests.support.saved_glip import ledger, save
from tests.support.small_capture import small_capture
from tests.support.small_formats import small_tables
from tests.support.small_glip import small_glip, subject
from tests.support.strace import why_not


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip, with the reason, where no system call can be stopped or made to fail."""
    if why := why_not():
        pytest.skip(why)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The small model's products are too small to share out: threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_mappings(tmp_path: Path) -> Iterator[None]:
    """The built-in tables with a spec whose only variant is small."""
    with small_tables(tmp_path / "mappings"):
        yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(running: HubServer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that huggingface_hub wanted to sleep between its own attempts; it does not."""
    seconds: list[float] = []
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def hub(
    running: HubServer,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[HubServer]:
    """An empty Hub and one user; afterwards it is checked that the token was shown nowhere."""
    running.reset(tmp_path / "hub")
    running.tokens[CANARY] = ("somebody", "write")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    for logger in ("huggingface_hub", "httpx", "httpx2", "converter"):
        caplog.set_level(logging.DEBUG, logger)
    yield running
    out, err = capfd.readouterr()
    assert CANARY not in out + err + caplog.text
    assert not running.count("unknown"), [request for request in running.requests if request[0] == "unknown"]
    clear(tmp_path / "hub")


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model with its certificate, as it is published."""
    from converter.glip import GLIP
    from converter.parity.certificate import certify
    from converter.parity.run import parity
    from tests.support.certifying import read_weights

    folder = tmp_path_factory.mktemp("certified")
    model = small_glip()
    save(model, folder / "model.safetensors")
    config = {"model": "glip", "variant": "small", "config": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    record = ledger(folder / "model.safetensors")
    (folder / "conversion.json").write_text(json.dumps(record))
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n# GLIP\n\nOf tensors {record['sha256']}.\n")
    (folder / "report.html").write_text("<!doctype html>\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of layers as small as these, several threads make ten times the work
    with small_capture(tmp_path_factory.mktemp("capture")) as capture:
        weights = read_weights(folder)
        double = GLIP.from_pretrained(folder).double()
        certify(weights, [capture], [parity(subject(double), capture)], None, subject(double))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(certified, tmp_path / "glip-small"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    return shard(folder)
