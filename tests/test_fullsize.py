"""Full-size official-format checkpoints through the command line: nothing is lost, and the outputs are official.

Everything that is expected comes from elsewhere: names and shapes from the official key lists, values from the rule
that the captures were made by, outputs from captures of the official code.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from converter.cli import main
from converter.glip import GLIP, Detector
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.glip.task.protocol import load_protocol
from converter.grounding.prompt import Caption
from converter.mapping.load import load_table
from converter.mapping.ops import apply_ops
from converter.parity.capture import Capture, load_capture, write_capture
from converter.parity.coverage import Reason, coverage
from converter.parity.family import Asked
from converter.parity.mutate import mutation_score
from converter.parity.record import inputs_of, record
from converter.parity.run import parity
from converter.planning.fit import make_plan
from scripts.synthetic_checkpoint import manifest, synthetic_tensor, write_checkpoint
from tests import DATA, ROOT
from tests.support.hub.server import HubServer, clear
from tests.support.official_keys import Index, official_index
from tests.support.small_glip import subject

pytestmark = pytest.mark.fullsize

# where a reader comes to them; each may use what an earlier one made
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("convert", "package", "detect"))]
CAPTURES = [load_capture(path) for path in sorted((DATA / "captures").glob("*.safetensors"))]


@dataclass(frozen=True)
class Converted:
    model: str
    source: Path
    path: Path


@pytest.fixture(scope="module", params=["glip-t", "glip-t-a", "glip-l"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    """A checkpoint and what the command line makes of it; GLIP-T's is all that the trainer saves, 3.7 GB."""
    model = request.param
    folder = tmp_path_factory.mktemp(model)
    source, path = folder / "official.pth", folder / f"{model}.safetensors"
    write_checkpoint(model, source, weights_only=model != "glip-t")
    result = CliRunner().invoke(main, ["convert", "--src", str(source), "--dst", str(path)])
    assert result.exit_code == 0, result.output
    assert f"variant: {model}" in result.output
    yield Converted(model, source, path)
    shutil.rmtree(folder)  # pytest would keep it for three runs


def blocks(document: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of the code blocks of a document."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
        if language in languages:
            yield language, text


@pytest.fixture
def hub(running: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one user."""
    running.reset(tmp_path / "hub")
    running.tokens["hf_token_of_org"] = ("org", "write")
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_org")
    yield running
    clear(tmp_path / "hub")


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("grounding-dino")
    write_checkpoint("groundingdino-swint", folder / "official.pth", weights_only=True)
    yield folder / "official.pth"
    shutil.rmtree(folder)


@pytest.fixture
def folder(
    converted: Converted, grounding_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where a user is: the checkpoints, two pictures and the captures are here."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "official.pth").symlink_to(converted.source)
    (here / "groundingdino_swint_ogc.pth").symlink_to(grounding_dino)
    (here / "tests").symlink_to(ROOT / "tests")
    for name, picture in (("street", skimage.data.rocket()), ("park", skimage.data.astronaut())):
        Image.fromarray(picture).save(here / f"{name}.jpg")
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 99, 99]}]
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in ((1, "street"), (2, "park"))]
    mine = {"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": boxes}
    (here / "mine.json").write_text(json.dumps(mine))
    monkeypatch.chdir(here)
    yield here
    shutil.rmtree(here)


def run(command: str) -> str:
    """What a line of the command line prints; it succeeds."""
    program, *arguments = shlex.split(command)
    result = CliRunner().invoke(main, [*([] if program == "converter" else [program]), *arguments])
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.stdout


@pytest.mark.parametrize("converted", ["glip-t"], indirect=True)
def test_what_the_documents_say_can_be_typed(hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = 0
    for document in DOCUMENTS:
        for language, text in blocks(document, "console", "python"):
            if language == "python":
                exec(text, {})
                continue
            for command in text.splitlines():
                run(command)
                commands += 1
    assert commands >= 25
    assert "torch.Size" in capsys.readouterr().out


@pytest.mark.parametrize("converted", ["glip-t"], indirect=True)
def test_the_transcript_in_the_readme_is_what_is_printed(folder: Path) -> None:
    """Line for line, in this order; some lines are left out of it."""
    ((_, transcript),) = blocks(DOCUMENTS[0], "text")
    for said in transcript.split("$ ")[1:]:
        command, *expected = said.strip().splitlines()
        printed = iter(run(command).splitlines())
        assert [line for line in expected if line not in printed] == []


@pytest.mark.parametrize("converted", ["glip-t"], indirect=True)
def test_a_stranger_loads_and_checks_what_was_published(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards; in one file is what README types."""
    run("convert --src official.pth --dst glip-t --max-shard-size 300MB")
    run("converter certify glip-t --reference tests/data/captures/glip-t.safetensors --mutate 0")
    run("converter package glip-t to-publish --model-name glip-t --repo-id org/glip-t")
    run("converter publish to-publish org/glip-t")
    listed = json.loads(run("converter publish to-publish org/glip-t --dry-run --json"))
    assert not listed["uploaded"]
    weights = [entry["name"] for entry in listed["unchanged"] if entry["name"].endswith(".safetensors")]
    assert len(weights) == 4
    shutil.rmtree("glip-t")
    shutil.rmtree("to-publish")

    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    verdict = json.loads(run("converter verify org/glip-t --dtype float32 --json"))
    assert verdict["verdict"] == "pass"
    assert set(weights) < set(verdict["origin"]["files"])
    assert len(list(cache.glob("models--org--glip-t/snapshots/*/*.safetensors"))) == len(weights)
    found = json.loads(run('converter detect org/glip-t street.jpg --prompt "person. bicycle." --threshold 0 --json'))
    # weights that no training made show no objects, but boxes
    assert found["model"] == verdict["origin"]["reference"]
    assert found["images"][0]["boxes"]
    shutil.rmtree(cache)


LARGE = ("-large", "-five")  # how the names end of captures of larger pictures: they see most and take longest


def captures(model: str, *, large: bool = True) -> list[Capture]:
    """Those of the official code on this model."""
    found = [capture for capture in CAPTURES if capture.model == model]
    assert f"{model}-large" in {capture.name for capture in found}
    return [capture for capture in found if large or not capture.name.endswith(LARGE)]


def test_every_kept_value_is_in_the_output(converted: Converted) -> None:
    """The plan read backwards gives every official tensor back, bit for bit, but those that it says are left out."""
    plan = make_plan(load_table("glip-official"), Index(official_index(converted.model)))
    shapes = {key: (shape, dtype) for key, shape, dtype in manifest(converted.model)}
    back = set()
    with safe_open(converted.path, "np") as file:
        for step in plan.reverse().steps:
            arrays = apply_ops(step.ops, [file.get_tensor(tensor.name) for tensor in step.sources])
            for tensor, array in zip(step.targets, arrays, strict=True):
                np.testing.assert_array_equal(array, synthetic_tensor(tensor.name, *shapes[tensor.name]), strict=True)
                back.add(tensor.name)
    assert back | {out.tensor.name for out in plan.left_out} == set(shapes)


def test_converting_twice_gives_the_same_bytes(converted: Converted, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    result = CliRunner().invoke(main, ["convert", "--src", str(converted.source), "--dst", str(again)])
    assert result.exit_code == 0, result.output
    with converted.path.open("rb") as first, again.open("rb") as second:
        while piece := first.read(1 << 24):
            assert piece == second.read(len(piece))
        assert not second.read(1)
    again.unlink()


def test_in_float32_the_error_is_at_most_four_times_the_official_codes_own(converted: Converted) -> None:
    model = GLIP.from_pretrained(converted.path)
    for capture in captures(converted.model, large=False):
        report = parity(subject(model), capture)
        assert (report.passed, report.gate.times, report.problems) == (True, 4, [])


def test_in_float64_every_activation_is_the_official_one(converted: Converted) -> None:
    model = GLIP.from_pretrained(converted.path).double()
    for capture in captures(converted.model):
        report = parity(subject(model), capture)
        assert (report.passed, report.gate.relative, report.problems) == (True, 1e-10, [])
        assert [d.limit for d in report.detections] == [1e-3] * len(capture.inputs["images"])


@pytest.mark.parametrize("converted", ["glip-t"], indirect=True)
def test_the_protocol_of_evaluations_gives_the_official_detections(converted: Converted) -> None:
    """Every caption beside every image, as classes in several captions are; the official code paired them."""
    model = GLIP.from_pretrained(converted.path, dtype="float64")
    detector = Detector(model, settings=replace(glip_preprocessing(), size_multiple=1))  # one image was not padded
    for capture in captures(converted.model, large=False):
        phrases = {int(label): at for label, at in capture.facts["positive_map_label_to_token"].items()}
        rows = zip(capture.inputs["input_ids"], capture.inputs["attention_mask"], strict=True)
        asked = [Caption("", tuple(ids[mask != 0].tolist()), phrases) for ids, mask in rows]
        sizes = zip(capture.inputs["images"], capture.facts["image_sizes_hw"], strict=True)
        images = [image[:, :height, :width] for image, (height, width) in sizes]
        rules = load_protocol(Asked("official"), "coco").rules
        found = detector.run(images, detector.encode_captions(asked), rules)
        for at, official in enumerate(capture.detections):
            assert torch.equal(found[at][at].labels, official.labels)
            torch.testing.assert_close(found[at][at].boxes, official.boxes, rtol=0, atol=1e-3)
            torch.testing.assert_close(found[at][at].scores.double(), official.scores.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("converted", ["glip-t"], indirect=True)
def test_faults_in_a_full_size_model_are_noticed(converted: Converted, tmp_path: Path) -> None:
    """Injected, from a whole capture of the model that was just proved to be the official one."""
    model = GLIP.from_pretrained(converted.path).double()
    (official,) = (capture for capture in captures("glip-t") if capture.name == "glip-t")
    tensors, facts = record(subject(model), inputs_of(official), "glip-t, whole")
    write_capture(tmp_path / "whole.safetensors", tensors, facts, compact=False)
    with load_capture(tmp_path / "whole.safetensors") as whole:
        assert parity(subject(model), whole, modes=["injected"]).passed
        larger = [capture for capture in captures("glip-t") if capture.name == "glip-t-five"]
        score = mutation_score(subject(model), [whole, *larger], 60)
    assert {outcome.mutation.name for outcome in score.survivors} == {
        "Swin's mask minus infinity, not -100",
        "BERT's mask -10000, not the lowest number",
        "no threshold of scores",  # what lies below it overlaps with something better, in these images
    }
    assert score.equivalent == 2


@pytest.mark.parametrize("converted", ["glip-t-a"], indirect=True)
def test_what_a_small_capture_does_not_see_is_said(converted: Converted) -> None:
    """Of pictures so small that P7 is one cell: the first and the last row of its kernel, for example."""
    model = GLIP.from_pretrained(converted.path).double()
    found = coverage(subject(model), captures("glip-t-a", large=False))
    unseen = {tensor.name: {part.reason: part.places for part in tensor.unseen} for tensor in found.tensors}
    assert "kernel rows 0, 2" in unseen["fpn.p7.weight"][Reason.UNREACHED]
    never = 1 + list(Reason).index(Reason.NO_INPUT)
    keys = 0
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            keys += len(parameter) // 3
            assert (found.reasons[name].view(3, -1) == never).all(dim=1).tolist() == [False, True, False], name
    assert found.unseen(Reason.NO_INPUT) == keys
