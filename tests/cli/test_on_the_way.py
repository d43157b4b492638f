"""An official .pth wherever weights are expected: what comes out is what comes out after `convert`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from click.testing import CliRunner, Result
from PIL import Image

from converter.cli import main
from converter.errors import HubError, ModelError, PlanError
from converter.glip import GLIP, Detector, zoo
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.planning.fit import make_plan
from converter.planning.plan import Plan
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.hub.server import HubServer
from tests.support.small_folder import SETTINGS
from tests.support.small_formats import small_tables
from tests.support.small_glip import CONFIG, small_glip


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object, code: int) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(run(*arguments, "--json", code=code).stdout)["error"]
    return error


def fields(result: Result, *without: str) -> dict[str, Any]:
    """The JSON that a command printed."""
    content: dict[str, Any] = json.loads(result.stdout)
    return {key: value for key, value in content.items() if key not in without}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Path]:
    """The small model as torch saves it: official, MMDetection's, with bare names, and of two state dicts; beside it
    own.safetensors, which `convert` made of the official one, and here.safetensors, a capture of that."""
    folder = tmp_path_factory.mktemp("there")
    with small_tables(tmp_path_factory.mktemp("tables") / "mappings", sizes=CONFIG):
        torch.save(small_glip(torch.float32).state_dict(), folder / "bare.pth")
        for format in ("glip-official", "mmdet-glip"):
            run("convert", "--src", folder / "bare.pth", "--dst", folder / "made.pth", "--to", format)
            made = torch.load(folder / "made.pth", weights_only=True)
            (state,) = (made[key] for key in ("model", "state_dict") if key in made)
            (folder / "made.pth").unlink()
            torch.save({"model": state, "iteration": 7}, folder / f"{format}.pth")
        official = folder / "glip-official.pth"
        state = torch.load(official, weights_only=True)["model"]
        averaged = {n: t * 1.25 if n.endswith("bbox_pred.weight") else t for n, t in state.items()}
        torch.save({"first": state, "second": averaged}, folder / "two.pth")
        run("convert", "--src", official, "--dst", folder / "own.safetensors")
        run("capture", folder / "own.safetensors", "--dst", folder / "here.safetensors", "--errors", "float32,bfloat16")
        small_vocabulary(folder)
        yield folder


def test_the_model_is_that_of_the_converted_file(there: Path) -> None:
    own = dict(GLIP.from_pretrained(there / "own.safetensors").named_parameters())
    for file in ("glip-official.pth", "mmdet-glip.pth", "bare.pth"):
        model = GLIP.from_pretrained(str(there / file))
        found = dict(model.named_parameters())
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], own[name]) for name in own)
        assert model.config == GLIP.from_pretrained(there / "own.safetensors").config
        assert not model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_is_float32_whatever_the_file_is(dtype: torch.dtype, there: Path, tmp_path: Path) -> None:
    state = torch.load(there / "glip-official.pth", weights_only=True)["model"]
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    torch.save(state, tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors")
    pairs = zip(*(GLIP.from_pretrained(tmp_path / f).parameters() for f in ("official.pth", "own.safetensors")))  # noqa: B905
    assert all(a.dtype is torch.float32 and torch.equal(a, b) for a, b in pairs)


def test_of_several_state_dicts_one_is_chosen(there: Path) -> None:
    with pytest.raises(ModelError, match="several state dicts"):
        Detector.from_pretrained(there / "two.pth", there / "vocab.txt")
    assert Detector.from_pretrained(there / "two.pth", there / "vocab.txt", root="second")
    with pytest.raises(ModelError, match="several state dicts"):
        GLIP.from_pretrained(there / "two.pth")
    own = GLIP.from_pretrained(there / "own.safetensors").head.box.weight
    assert torch.equal(GLIP.from_pretrained(there / "two.pth", root="first").head.box.weight, own)
    assert torch.equal(GLIP.from_pretrained(there / "two.pth", root="second").head.box.weight, own * 1.25)


@pytest.mark.parametrize("file", ["glip-official.pth", "mmdet-glip.pth"])
def test_parity_says_the_same(file: str, there: Path) -> None:
    rest = ("--reference", there / "here.safetensors", "--json")
    expected = run("parity", there / "own.safetensors", *rest)
    found = run("parity", there / file, *rest)
    assert fields(found, "sha256") == fields(expected, "sha256")
    assert set(fields(found)["sha256"]) == {str(there / file), str(there / "here.safetensors")}


def test_coverage_and_its_proof_are_the_same(there: Path) -> None:
    rest = ("--reference", there / "here.safetensors", "--json", "--coverage", "--mode", "propagated")
    expected = run("parity", there / "own.safetensors", *rest)
    found = run("parity", there / "two.pth", *rest, "--root", "first")
    assert fields(found, "sha256") == fields(expected, "sha256")
    assert "bit for bit, in their places: glip-official says so" in fields(found)["coverage"]["rows"]


def test_every_command_takes_the_state_dict_that_is_asked_for(there: Path, tmp_path: Path) -> None:
    rest = ("--reference", there / "here.safetensors", "--mode", "injected")
    run("parity", there / "two.pth", *rest, "--root", "first")
    assert "other weights" in refused("parity", there / "two.pth", *rest, "--root", "second", code=8)["message"]
    assert "FAIL" in run("parity", there / "two.pth", *rest, "--root", "second", "--other-weights", code=1).stdout
    assert "--root" in refused("parity", there / "two.pth", *rest, code=3)["message"]
    capture = tmp_path / "second.safetensors"
    run("capture", there / "two.pth", "--dst", capture, "--root", "second")
    run("certify", there / "two.pth", "--reference", capture, "--mutate", 0, code=3)
    run("certify", there / "two.pth", "--reference", capture, "--mutate", 0, "--root", "second")
    run("verify", there / "two.pth", "--root", "second")
    assert "changed: head.box.weight" in run("verify", there / "two.pth", "--root", "first", code=1).stdout
    (there / "two.parity.json").unlink()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for every plan that is made."""
    made: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Plan:
        made.append(arguments)
        return make_plan(*arguments, **options)

    monkeypatch.setattr("converter.planning.formats.make_plan", counted)
    return made


def test_a_command_makes_one_plan(there: Path, tmp_path: Path, plans: list[object]) -> None:
    official, reference = tmp_path / "glip-official.pth", ("--reference", there / "here.safetensors")
    official.hardlink_to(there / "glip-official.pth")
    for page in ("page.html", "junit.xml"):
        (tmp_path / page).write_text("old")
    pages = ("--html", tmp_path / "page.html", "--junit", tmp_path / "junit.xml")
    made = {}
    for command, *rest in (
        ("parity", *reference, *pages, "--mode", "propagated", "--coverage"),
        ("certify", *reference, "--mutate", 0),
        ("verify",),
        ("capture", "--dst", tmp_path / "out.safetensors"),
        ("detect", *options("detect", there, tmp_path)),
    ):
        plans.clear()
        run(command, official, *rest)
        made[command] = len(plans)
    assert made == dict.fromkeys(("parity", "certify", "verify", "capture", "detect"), 1)


def test_what_convert_asks_a_dtype_for_is_run_and_not_certified(there: Path, tmp_path: Path) -> None:
    """Nobody has said of which dtype it is, so there is no conversion that a certificate could be of."""
    state = torch.load(there / "glip-official.pth", weights_only=True)["model"]
    name = next(name for name in state if name.endswith("layer.0.attention.self.key.weight"))
    state[name] = state[name].double()
    torch.save(state, tmp_path / "mixed.pth")
    asked = refused("convert", "--src", tmp_path / "mixed.pth", "--dst", tmp_path / "own.safetensors", code=5)
    assert any("joins tensors of different dtypes" in problem for problem in asked["problems"])
    reference = ("--reference", there / "here.safetensors", "--mode", "propagated")
    run("parity", tmp_path / "mixed.pth", *reference)
    GLIP.from_pretrained(tmp_path / "mixed.pth")
    assert refused("certify", tmp_path / "mixed.pth", *reference[:2], code=5) == asked
    assert not (tmp_path / "mixed.parity.json").exists()


def test_detections_are_the_same(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.glip.detect.preprocessing.glip_preprocessing", lambda: SETTINGS)
    picture = tmp_path / "rocket.png"
    Image.fromarray(skimage.data.rocket()).resize((120, 90)).save(picture)
    rest = (picture, "--prompt", "person. dog.", "--vocab", there / "vocab.txt", "--threshold", 0.3, "--json")
    expected, found = (fields(run("detect", there / file, *rest)) for file in ("own.safetensors", "glip-official.pth"))
    assert found.pop("model") == str(there / "glip-official.pth")
    assert expected.pop("model") == str(there / "own.safetensors")
    assert found == expected
    assert expected["images"][0]["boxes"]
    chosen = fields(run("detect", there / "two.pth", *rest, "--root", "first"))
    assert chosen["images"] == expected["images"]
    assert fields(run("detect", there / "two.pth", *rest, "--root", "second"))["images"] != expected["images"]


def test_a_certificate_is_that_of_the_converted_file(there: Path, tmp_path: Path) -> None:
    for file in ("own.safetensors", "glip-official.pth"):
        (tmp_path / file).hardlink_to(there / file)
        run("certify", tmp_path / file, "--reference", there / "here.safetensors", "--mutate", 5)
    certificate = tmp_path / "glip-official.parity.json"
    assert certificate.read_bytes() == (tmp_path / "own.parity.json").read_bytes()
    assert fields(run("verify", tmp_path / "glip-official.pth", "--json"))["verdict"] == "pass"
    assert fields(run("verify", tmp_path / "own.safetensors", "--certificate", certificate, "--json"))["problems"] == []
    # a copy of the checkpoint that is not the same is not what was certified
    changed = torch.load(there / "glip-official.pth", weights_only=True)
    changed["model"]["module.rpn.head.bias_lang"][0] += 1
    (tmp_path / "glip-official.pth").unlink()
    torch.save(changed, tmp_path / "glip-official.pth")
    assert "changed: head.text_bias" in run("verify", tmp_path / "glip-official.pth", code=1).stdout


def test_what_was_taken_is_said(there: Path, tmp_path: Path) -> None:
    model = torch.load(there / "glip-official.pth", weights_only=True)["model"]
    torch.save({"model": model, "model_ema": dict(model)}, tmp_path / "two.pth")
    beside = ["--reference", there / "here.safetensors", "--mode", "propagated"]
    shown = run("parity", tmp_path / "two.pth", *beside).stderr
    assert "two.pth: converted on the way; taken from it: model; also there: model_ema (--root chooses)" in shown
    assert "converted on the way" not in run("parity", there / "own.safetensors", *beside).stderr


def test_what_is_packaged_and_published_is_converted_first(there: Path, tmp_path: Path) -> None:
    message = refused("package", there / "glip-official.pth", tmp_path / "out", code=7)["message"]
    assert "Run `convert` first" in message
    assert not (tmp_path / "out").exists()
    assert "what `convert` wrote" in refused("publish", there / "glip-official.pth", "somebody/x", code=9)["message"]
    message = refused("verify", there / "glip-official.pth", code=8)["message"]
    assert "there is no certificate" in message
    assert "Run `convert`, and `converter certify`" in message


@pytest.mark.parametrize("command", ["parity", "detect", "capture", "certify", "verify"])
def test_another_model_is_refused_with_all_that_does_not_fit(command: str, there: Path, tmp_path: Path) -> None:
    state = torch.load(there / "glip-official.pth", weights_only=True)["model"]
    del state["module.rpn.head.bias_lang"]
    state |= {"module.stray.weight": torch.ones(3), "module.rpn.head.log_scale": torch.ones(2)}
    torch.save(state, tmp_path / "other.pth")
    error = refused(command, tmp_path / "other.pth", *options(command, there, tmp_path), code=5)
    assert error["type"] == "PlanError"
    assert len(error["problems"]) == 3
    with pytest.raises(PlanError) as caught:
        GLIP.from_pretrained(tmp_path / "other.pth")
    assert list(caught.value.problems) == error["problems"]


@pytest.mark.parametrize("command", ["parity", "detect", "capture", "certify", "verify"])
def test_a_hostile_file_is_refused_and_not_executed(command: str, there: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.pth"
    torch.save({"model": {"w": _Evil(tmp_path / "executed")}}, evil)
    assert refused(command, evil, *options(command, there, tmp_path), code=3)["type"] == "RootError"
    evil.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    assert refused(command, evil, *options(command, there, tmp_path), code=3)["type"] == "NotACheckpointError"
    assert not (tmp_path / "executed").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def options(command: str, there: Path, folder: Path) -> list[object]:
    """What a command needs beside the model. Pictures are looked for first; this one is low, and seen in no time."""
    picture = folder / "low.png"
    Image.fromarray(skimage.data.rocket()[:40]).save(picture)
    return {
        "parity": ["--reference", there / "here.safetensors"],
        "detect": [picture, "--prompt", "dog.", "--vocab", there / "vocab.txt"],
        "capture": ["--dst", folder / "out.safetensors"],
        "certify": ["--reference", there / "here.safetensors"],
        "verify": [],
    }[command]


def test_a_part_of_the_model_is_not_the_model(there: Path, tmp_path: Path) -> None:
    run("convert", "--src", there / "bare.pth", "--dst", tmp_path / "swin.pth", "--to", "mmpretrain-glip")
    with pytest.raises(ModelError, match="holds the backbone of GLIP alone"):
        GLIP.from_pretrained(tmp_path / "swin.pth")
    rest = ("--reference", there / "here.safetensors")
    assert "holds the backbone" in refused("parity", tmp_path / "swin.pth", *rest, code=7)["message"]


def test_the_config_of_another_tool_says_nothing_of_pictures(there: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mmdet"
    run("convert", "--src", there / "bare.pth", "--dst", folder, "--to", "mmdet-glip")
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], "preprocessing": SETTINGS.to_dict()}))
    detector = Detector.from_pretrained(folder, there / "vocab.txt")
    assert detector.settings == glip_preprocessing() != SETTINGS
    own = GLIP.from_pretrained(there / "own.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(detector.model.parameters(), own.parameters(), strict=True))


def test_a_folder_of_torch_files_is_converted(there: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    torch.save(torch.load(there / "glip-official.pth", weights_only=True)["model"], folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    own = GLIP.from_pretrained(there / "own.safetensors")
    model = GLIP.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))
    run("certify", folder, "--reference", there / "here.safetensors", "--mutate", 0)
    assert fields(run("verify", folder, "--json"))["verdict"] == "pass"


def test_an_output_does_not_replace_the_checkpoint(there: Path) -> None:
    official = there / "glip-official.pth"
    before = official.read_bytes()
    run("parity", official, "--reference", there / "here.safetensors", "--html", official, code=6)
    run("capture", official, "--dst", there / "own.safetensors", code=6)
    assert official.read_bytes() == before


def test_a_checkpoint_of_the_hub_is_loaded_by_name(
    there: Path, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.storage.create("org/old", False, "org")
    commit = hub.push("org/old", {"official.pth": (there / "glip-official.pth").read_bytes()})
    own = GLIP.from_pretrained(there / "own.safetensors")
    for model in (
        GLIP.from_pretrained("hf://org/old/official.pth"),
        GLIP.from_pretrained("hf://org/old/official.pth", revision="main"),
    ):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))
    done = run("parity", "hf://org/old/official.pth", "--reference", there / "here.safetensors")
    assert "using hf://org/old/official.pth@" in done.stderr
    assert commit
    with pytest.raises(HubError, match=r"convert --src hf://org/old/official\.pth"):
        GLIP.from_pretrained("org/old")


def test_the_zoo_and_the_model_load_the_same(there: Path) -> None:
    model = zoo.get_model("small", pretrained=there / "glip-official.pth")
    own = GLIP.from_pretrained(there / "glip-official.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))
