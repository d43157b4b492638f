"""`converter publish` as it is run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

import converter
from converter.cli import main
from tests.support.hub.faults import status
from tests.support.hub.server import HubServer
from tests.support.publishing import CANARY, REPO


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["publish", *arguments])
    assert done.exit_code == code, done.output
    assert CANARY not in done.output
    return str(done.output)


def test_what_was_published_is_said(folder: Path, hub: HubServer) -> None:
    said = run(str(folder), REPO)
    assert "(private, made now), main" in said
    assert "uploaded   model.safetensors, " in said
    assert f"commit: {hub.repository(REPO).head.id}" in said
    assert "checked on the Hub: 6 files, the same hashes as here" in said


def test_that_nothing_changed_is_said(folder: Path, hub: HubServer) -> None:
    run(str(folder), REPO)
    assert "no commit was made" in run(str(folder), REPO)
    hub.push(REPO, {"notes.md": b"", "pytorch_model.bin": b""})
    said = run(str(folder), REPO)
    assert "also there, left alone: notes.md, pytorch_model.bin\n" in said
    assert json.loads(run(str(folder), REPO, "--json"))["other"] == ["notes.md", "pytorch_model.bin"]


def test_a_dry_run_lists_sizes(folder: Path, hub: HubServer) -> None:
    said = run(str(folder), REPO, "--dry-run")
    assert "would be uploaded   model.safetensors, " in said
    assert "nothing was changed" in said
    assert hub.writes == []


def test_what_is_not_known_without_a_token_is_said(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = run(str(folder), REPO, "--dry-run")
    assert f"{REPO} (no such repository, or one that is not visible without a token), main" in said
    done = json.loads(run(str(folder), REPO, "--dry-run", "--json"))
    assert (done["new"], done["private"]) == (None, None)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("upload", "interrupted; nothing was published"),
        ("commit", "interrupted; whether the commit was made is not known; running the same command again looks"),
        ("tree", "was made, but not read back"),
    ],
)
def test_what_an_interruption_leaves_is_said(step: str, expected: str, folder: Path, hub: HubServer) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    skipped = [lambda: None] if step == "tree" else []
    hub.fail(step, *skipped, lambda: signal.pthread_kill(main_thread, signal.SIGINT))
    assert expected in run(str(folder), REPO, code=130)
    run(str(folder), REPO)
    assert len(hub.repository(REPO).history(hub.repository(REPO).head)) == 2


def test_json_says_the_same(folder: Path, hub: HubServer) -> None:
    done = json.loads(run(str(folder), REPO, "--public", "--json"))
    assert (done["new"], done["private"], done["verified"]) == (True, False, 6)
    assert done["commit"] == hub.repository(REPO).head.id
    assert {file["name"] for file in done["uploaded"]} == {path.name for path in folder.iterdir()}


def test_a_pull_request_is_linked(folder: Path, hub: HubServer) -> None:
    assert f"pull request: {hub.url}/{REPO}/discussions/1" in run(str(folder), REPO, "--create-pr")


@pytest.mark.parametrize("arguments", [["--revision", "v1", "--create-pr"], []])
def test_a_refusal_is_exit_code_9(arguments: list[str], folder: Path, hub: HubServer) -> None:
    hub.fail("commit", status(403))
    assert "error: " in run(str(folder), REPO, *arguments, code=9)
    error = json.loads(run(str(folder), "glip", "--json", code=9))["error"]
    assert error["type"] == "HubError"


def test_a_folder_that_is_none_is_named(tmp_path: Path, hub: HubServer) -> None:
    assert "is not a folder that can be read" in run(str(tmp_path / "none"), REPO, code=9)


def test_a_process_of_its_own_shows_no_token(folder: Path, hub: HubServer) -> None:
    """With the client's debug output and an answer that repeats the token."""
    hub.fail("preupload", status(400, X_Error_Message=f"no, {CANARY}"))
    done = subprocess.run(
        [sys.executable, "-m", "converter", "publish", str(folder), REPO],
        cwd=Path(converter.__file__).parent.parent,
        env={**os.environ, "HF_DEBUG": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 9, done.stderr
    assert "no, [token]" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_without_huggingface_hub_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils.tqdm", None)
    said = "publish needs huggingface_hub, which is not installed: pip install 'converter[detect]'"
    assert said in run(str(folder), REPO, code=9)
