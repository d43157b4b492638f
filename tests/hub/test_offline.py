"""No network: every way to be without one ends in one sentence, within seconds; a Hub that stumbles is asked again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner
from huggingface_hub import close_session
from PIL import Image

from converter.cli import main
from converter.cli.families import family_of
from converter.errors import HubError
from converter.glip import GLIP, Detector
from converter.hub.resolve import resolve
from converter.publish.commit import publish
from tests.support.alone import alone
from tests.support.hub.faults import Fault, status
from tests.support.hub.offline import WAYS, a_host_that_never_answers
from tests.support.hub.server import HubServer
from tests.support.publishing import CANARY, REPO, Clock, refused

COMMIT = "0123456789" * 4
REFERENCES = ["org/name", f"org/name@{COMMIT}", "hf://org/name/glip.pth", f"hf://org/name/glip.pth@{COMMIT}"]
SECONDS = 1.0  # that the first answer is waited for here


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Gives this process what a program would find in its environment; the client has read its own already."""

    def have(settings: dict[str, str]) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", settings["HF_ENDPOINT"])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", SECONDS)
        monkeypatch.setenv("HF_TOKEN", CANARY)
        close_session()

    yield have
    close_session()


@pytest.mark.parametrize("way", WAYS)
def test_no_network_is_one_sentence_within_seconds(
    way: str, environment: Callable[[dict[str, str]], None], clock: Clock, tmp_path: Path
) -> None:
    with WAYS[way]() as settings:
        environment(settings)
        start = time.monotonic()
        said = refused(lambda: resolve("org/name", cache_dir=tmp_path, say=clock.lines.append))
        assert time.monotonic() - start < 2 * SECONDS
    assert said.endswith("Check the connection, or set HF_HUB_OFFLINE=1 to use what is in the cache.")
    assert (said.count(". "), clock.lines) == (1, [])


PICTURE = "picture.png"
COMMANDS: dict[str, list[str]] = {
    "convert": ["convert", "--src", "hf://org/name/official.pth", "--dst", "here.safetensors"],
    "inspect": ["inspect", "org/name"],
    "detect": ["detect", "org/name", PICTURE, "--prompt", "person."],
    "verify": ["verify", "org/name"],
    "parity": ["parity", "org/name", "--reference", "capture.safetensors"],
    "diff": ["diff", "org/name", "org/other"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_asks_the_hub_ends_soon(
    command: str, environment: Callable[[dict[str, str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save(PICTURE)
    with a_host_that_never_answers() as settings:
        environment(settings)
        start = time.monotonic()
        result = CliRunner().invoke(main, COMMANDS[command])
        assert time.monotonic() - start < 2 * SECONDS
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: org/name: ")
    assert "the Hub did not answer within 1 s (HF_HUB_ETAG_TIMEOUT=60 waits longer)" in line
    assert (result.exit_code, result.stdout, [path.name for path in tmp_path.iterdir()]) == (9, "", [PICTURE])


@pytest.mark.parametrize("way", ["a_host_that_never_answers", "a_port_that_nobody_listens_at", "a_wall_that_resets"])
def test_nothing_is_published_without_a_network(
    way: str, environment: Callable[[dict[str, str]], None], folder: Path
) -> None:
    with WAYS[way]() as settings:
        environment(settings)
        start = time.monotonic()
        for dry_run in (False, True):
            said = refused(lambda: publish(folder, REPO, family_of, dry_run=dry_run))  # noqa: B023  called at once
            assert f"run: converter publish {folder} {REPO}" in said.replace("run again: ", "run: ")
        assert time.monotonic() - start < 4 * SECONDS


@pytest.mark.parametrize("load", [GLIP.from_pretrained, Detector.from_pretrained])
def test_python_is_told_as_soon(load: Callable[[str], object], environment: Callable[[dict[str, str]], None]) -> None:
    with a_host_that_never_answers() as settings:
        environment(settings)
        start = time.monotonic()
        with pytest.raises(HubError, match="no such file or folder here, and the Hub did not answer within 1 s"):
            load("org/name")
        assert time.monotonic() - start < 2 * SECONDS


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_refused_connection_is_not_tried_again(
    reference: str, waits: list[float], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WAYS["a_port_that_nobody_listens_at"]() as settings:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", settings["HF_ENDPOINT"])
        said = refused(lambda: resolve(reference, cache_dir=tmp_path, retry=clock.retry()))
    assert "127.0.0.1 cannot be reached: [Errno 111] Connection refused. Check the connection" in said
    assert (waits, clock.seconds) == ([], [])


def test_a_name_server_that_never_answers_is_not_waited_for(
    environment: Callable[[dict[str, str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system waits half a minute for it, and no timeout of a connection begins before."""
    ended = threading.Event()

    def getaddrinfo(*arguments: object, **options: object) -> NoReturn:
        ended.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    environment({"HF_ENDPOINT": "http://nowhere.invalid"})
    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    start = time.monotonic()
    assert "the Hub did not answer within 1 s" in refused(lambda: resolve("org/name", cache_dir=tmp_path))
    assert time.monotonic() - start < 2 * SECONDS
    ended.set()


def test_a_program_ends_within_ten_seconds_where_nothing_answers(tmp_path: Path) -> None:
    """As it is used: nothing is set, and what it left waiting does not keep it."""
    with a_host_that_never_answers() as settings:
        start = time.monotonic()
        done = alone("inspect", "org/nothing", HF_HOME=str(tmp_path), **settings)
        assert time.monotonic() - start < 10
    (line,) = done.stderr.splitlines()
    assert "the Hub did not answer within 5 s" in line
    assert (done.returncode, done.stdout) == (9, "")


@pytest.mark.parametrize("reference", ["org/nothing", "hf://org/nothing/glip.pth"])
def test_a_program_without_a_network_says_one_sentence(reference: str, tmp_path: Path) -> None:
    done = alone("inspect", reference, HF_ENDPOINT="http://nowhere.invalid", HF_HOME=str(tmp_path))
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: org/nothing: ")
    assert "nowhere.invalid cannot be reached: a name look-up failed" in line
    assert (done.returncode, done.stdout) == (9, "")


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


# A Hub that stumbles


STUMBLES = {
    "busy": status(503),
    "a reset": Fault("drop-before"),
    "silence": Fault("slow", seconds=3),
}


@pytest.mark.parametrize("stumble", STUMBLES)
def test_a_first_answer_that_fails_is_asked_for_again(
    stumble: str, hub: HubServer, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 4.0)
    hub.fail("info", STUMBLES[stumble])
    assert "no such repository" in refused(lambda: resolve("org/name", cache_dir=tmp_path, retry=clock.retry()))
    assert (hub.count("info"), clock.seconds) == (2, [] if stumble == "silence" else [1])


def test_a_busy_hub_is_asked_as_often_as_ever(hub: HubServer, clock: Clock, tmp_path: Path) -> None:
    hub.fail("info", *[status(503)] * 5)
    assert "the Hub answered 503" in refused(lambda: resolve("org/name", cache_dir=tmp_path, retry=clock.retry()))
    assert (hub.count("info"), clock.seconds) == (5, [1, 2, 4, 8])
