"""What lies on the Hub is read by name, as if it were here, and what is made of it says where it was read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from converter.cli import main
from converter.cli.families import family_of
from converter.errors import HubError
from converter.glip import GLIP
from converter.publish.commit import publish
from tests.support.hub.faults import status
from tests.support.hub.server import HubServer
from tests.support.publishing import CANARY, REPO
from tests.support.tiny import tiny_weights, write_table


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    assert CANARY not in done.output
    return done


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(folder: Path, hub: HubServer) -> Path:
    publish(folder, REPO, family_of)
    torch.save({"model": tiny_weights()}, folder.parent / "tiny.pth")
    hub.push(REPO, {"tiny.pth": (folder.parent / "tiny.pth").read_bytes()}, "add the checkpoint")
    return folder


def test_the_provenance_pins_a_checkpoint(published: Path, hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables")
    options = ["--from", table, "--json"]
    run("convert", "--src", f"hf://{REPO}/tiny.pth@main", "--dst", tmp_path / "a.safetensors", *options)
    done = run("convert", "--src", tmp_path / "tiny.pth", "--dst", tmp_path / "b.safetensors", *options)
    a, b = (json.loads(run("inspect", tmp_path / f"{n}.safetensors", "--json").stdout)["metadata"] for n in "ab")
    source = json.loads(a["conversion"])["source"]
    assert source.pop("origin") == {
        "reference": f"hf://{REPO}/tiny.pth@{hub.repository(REPO).head.id}",
        "files": {"tiny.pth": hashlib.sha256((tmp_path / "tiny.pth").read_bytes()).hexdigest()},
    }
    assert source == json.loads(b["conversion"])["source"] == json.loads(done.stdout)["source"]


def test_a_model_is_verified_compared_and_loaded(published: Path, hub: HubServer) -> None:
    reference = f"hf://{REPO}@{hub.repository(REPO).head.id}"
    done = run("verify", REPO, "--json")
    verdict = json.loads(done.stdout)
    assert (verdict["verdict"], verdict["origin"]["reference"]) == ("pass", reference)
    assert f"using {reference}" in done.stderr
    assert "tensors" in run("inspect", f"hf://{REPO}/tiny.pth").stdout
    run("diff", REPO, published, "--no-table")
    models = [GLIP.from_pretrained(REPO), GLIP.from_pretrained(REPO, revision="main"), GLIP.from_pretrained(published)]
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.equal(parameters[0], other) for other in parameters[1:])


def test_a_pickle_of_the_hub_is_not_executed(published: Path, hub: HubServer) -> None:
    hub.push(REPO, {"evil.pth": b"cos\nsystem\n(S'touch executed'\ntR."})
    done = run("inspect", f"hf://{REPO}/evil.pth", code=3)
    assert "evil.pth" in done.stderr
    assert not Path("executed").exists()


def test_one_file_has_no_certificate(published: Path) -> None:
    assert "verify that" in run("verify", f"hf://{REPO}/model.safetensors", code=8).stderr


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["explain", "key", "--src"], ["diff", "a.pth"]])
def test_what_is_neither_here_nor_there_is_said(command: list[str], hub: HubServer) -> None:
    assert (
        "no such file or folder here, and on the Hub no such repository" in run(*command, "some/thing", code=9).stderr
    )


@pytest.mark.parametrize("text", ["hf://datasets/org/name/a.pth", "https://huggingface.co/org/name"])
def test_an_address_of_another_form_is_explained(text: str, hub: HubServer) -> None:
    assert "Expected org/name, or hf://org/name/file.pth" in run("inspect", text, code=9).stderr


def test_from_pretrained_refuses_what_it_cannot_have(published: Path, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="only models of the Hub have revisions"):
        GLIP.from_pretrained(tmp_path, revision="main")
    hub.fail("resolve", *[status(403)] * 20)
    hub.fail("head", *[status(403)] * 20)
    with pytest.raises(HubError, match="may not read it"):
        GLIP.from_pretrained(REPO)
