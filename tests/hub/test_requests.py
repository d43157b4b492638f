"""A Hub that cannot be reached: how often it is asked, and what a program says of it on stderr, which is ours alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from huggingface_hub import close_session

from converter.cli.families import family_of
from converter.hub.resolve import resolve
from converter.publish.commit import publish
from tests import ROOT
from tests.support.hub.faults import Fault, status
from tests.support.hub.server import HubServer
from tests.support.publishing import CANARY, REPO, Clock, refused
from tests.support.tiny import tiny_weights

COMMIT = "0123456789" * 4
REFERENCES = ["org/name", f"org/name@{COMMIT}", "hf://org/name/glip.pth", f"hf://org/name/glip.pth@{COMMIT}"]


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up; none has an address."""
    names: list[str] = []

    def getaddrinfo(host: str, *rest: object, **options: object) -> NoReturn:
        names.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    close_session()  # a connection that is open needs no address
    return names


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_name_is_looked_up_once(
    reference: str, look_ups: list[str], waits: list[float], clock: Clock, tmp_path: Path
) -> None:
    said = refused(lambda: resolve(reference, cache_dir=tmp_path, retry=clock.retry(), say=clock.lines.append))
    assert (
        "127.0.0.1 cannot be reached: a name look-up failed ([Errno -3] Temporary failure in name resolution). " in said
    )
    assert said.endswith("Check the connection, or set HF_HUB_OFFLINE=1 to use what is in the cache.")
    assert ("no such file or folder here" in said) == (not reference.startswith("hf://"))
    assert (len(look_ups), waits, clock.seconds, clock.lines) == (1, [], [], [])


def test_nothing_is_published_where_no_name_is_found(
    folder: Path, look_ups: list[str], waits: list[float], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    said = refused(lambda: publish(folder, REPO, family_of, retry=clock.retry()))
    assert "cannot be reached: a name look-up failed" in said
    assert f"Check the connection, and run: converter publish {folder} {REPO}" in said
    assert (len(look_ups), waits, clock.seconds) == (1, [], [])


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_refused_connection_is_tried_again_for_fifteen_seconds(
    reference: str, waits: list[float], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        said = refused(lambda: resolve(reference, cache_dir=tmp_path, retry=clock.retry()))
    assert "the connection was lost ([Errno 111] Connection refused). Check the connection" in said
    assert (waits, sum(clock.seconds)) == ([], 15)


def test_a_hub_that_says_nothing_is_not_waited_for(
    hub: HubServer, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.fail("info", *[Fault("slow", seconds=1)] * 5)
    assert "the connection was lost" in refused(lambda: resolve("org/name", cache_dir=tmp_path, retry=clock.retry()))
    assert (hub.count("info"), clock.seconds) == (5, [1, 2, 4, 8])


def program(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """`converter` as a process of its own, in which huggingface_hub is not imported yet."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "converter", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, **settings},
    )


@pytest.mark.parametrize("reference", ["org/nothing", "hf://org/nothing/glip.pth"])
def test_a_program_without_a_network_says_one_sentence(reference: str, tmp_path: Path) -> None:
    done = program("inspect", reference, HF_ENDPOINT="http://nowhere.invalid", HF_HOME=str(tmp_path))
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: org/nothing: ")
    assert "nowhere.invalid cannot be reached: a name look-up failed" in line
    assert (done.returncode, done.stdout) == (9, "")


@pytest.mark.parametrize("step", ["info", "head"])
def test_what_a_program_says_of_a_busy_hub_is_its_own(step: str, hub: HubServer, tmp_path: Path) -> None:
    torch.save(tiny_weights(), tmp_path / "tiny.pth")
    hub.storage.create(REPO, False, "somebody")
    commit = hub.push(REPO, {"tiny.pth": (tmp_path / "tiny.pth").read_bytes()})
    hub.fail(step, *[status(500)] * (2 if step == "head" else 1))  # the client forgives the first of a file
    done = program("inspect", f"hf://{REPO}/tiny.pth", HF_HOME=str(tmp_path / "home"))
    *again, using = done.stderr.splitlines()
    assert using == f"using hf://{REPO}/tiny.pth@{commit.id}"
    assert all(line.startswith("the Hub answered 500: ") for line in again), again
    assert done.returncode == 0
    assert not hub.faults[step]
