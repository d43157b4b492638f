"""The files beside the weights: transformers loads them as it loads those that its own classes write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, BertTokenizerFast, GroundingDinoProcessor
from transformers import GroundingDinoImageProcessor as ImageProcessor

from converter.cli import main
from converter.grounding.tokenizer import SHIPPED
from converter.grounding_dino.family import FAMILY
from tests import ROOT
from tests.support.packaging import bill_of
from tests.support.saved_glip import ledger
from tests.support.small_grounding_dino import MM, SIZES, SPEC, small_folder, small_model

NAMES = ["preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("dino") / "small", {"shortest_edge": 800, "longest_edge": 1333})


def test_the_processor_makes_what_that_of_transformers_makes(folder: Path) -> None:
    own = AutoProcessor.from_pretrained(folder)
    theirs = GroundingDinoProcessor(ImageProcessor(), BertTokenizerFast(str(SHIPPED)))
    assert type(own) is GroundingDinoProcessor
    image = Image.fromarray(skimage.data.chelsea())
    made = [each(images=image, text=[["a cat", "Crêpe"]], return_tensors="pt") for each in (own, theirs)]
    assert made[0].keys() == made[1].keys() == {
        "pixel_values", "pixel_mask", "input_ids", "token_type_ids", "attention_mask",
    }  # fmt: skip
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])
    for line in (ROOT / "docs" / "detect.md").read_text(encoding="utf-8").splitlines():
        assert own.tokenizer(line)["input_ids"] == theirs.tokenizer(line)["input_ids"]


@pytest.mark.parametrize("spec", [SPEC, MM])
def test_the_model_loads_beside_them_with_nothing_missing(tmp_path: Path, spec: str) -> None:
    folder = small_folder(tmp_path / "small", spec=spec)
    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in small_model(spec).state_dict().items())
    assert type(AutoProcessor.from_pretrained(folder)) is GroundingDinoProcessor


def test_they_are_the_same_from_what_was_made_of_them(folder: Path) -> None:
    """Of a folder its own vocabulary and sizes are taken."""
    made = FAMILY.companions(folder, SIZES, None)
    assert sorted(made.files) == NAMES
    assert made.files == FAMILY.companions(folder / "model.safetensors", SIZES, None).files
    changed = json.loads(made.files[NAMES[0]]) | {"size": {"shortest_edge": 96, "longest_edge": 160}}
    (folder / NAMES[0]).write_text(json.dumps(changed))
    assert json.loads(FAMILY.companions(folder, SIZES, None).files[NAMES[0]]) == changed


def test_a_package_has_a_bill_of_materials(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small")
    made_of = ledger(folder / "model.safetensors", name=SPEC, variant="grounding-dino-tiny", also=[])
    (folder / "conversion.json").write_text(json.dumps(made_of))
    words = ["package", folder, tmp_path / "out", "--model-name", "grounding-dino-tiny"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    bill = bill_of(tmp_path / "out")
    assert bill["metadata"]["component"]["licenses"][0]["license"]["id"] == "Apache-2.0"
    listed = {part["name"] for part in bill["components"]}
    assert {*NAMES, "Objects365", "GoldG", "Cap4M", "ShilongLiu/GroundingDINO"} < listed


def test_another_vocabulary_is_told(tmp_path: Path) -> None:
    words = SHIPPED.read_text(encoding="utf-8").replace("\nzoo\n", "\nzooo\n")
    (tmp_path / "vocab.txt").write_text(words, encoding="utf-8")
    made = FAMILY.companions(tmp_path, SIZES, tmp_path / "vocab.txt")
    assert "is not that of BERT base uncased" in made.doubts[0]
    assert (made.config["vocabulary"]["entries"], made.config["vocabulary"]["bert_base_uncased"]) == (30522, False)
    assert FAMILY.companions(tmp_path / "no.pth", SIZES, None).doubts == ()


def test_neither_torch_nor_transformers_is_imported_for_them() -> None:
    code = (
        "import sys; from pathlib import Path; from converter.grounding_dino.family import FAMILY\n"
        "FAMILY.companions(Path('x.pth'), {'vocab_size': 30522}, None); FAMILY.about(); FAMILY.settings()\n"
        "assert not {'torch', 'transformers', 'PIL'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_fact_of_the_released_models_has_a_source() -> None:
    about = FAMILY.about()
    assert set(about["models"]) == {"grounding-dino-tiny", "grounding-dino-base"}
    for each in (*about["models"].values(), *about["data"].values(), *about["benchmarks"].values(), about["license"]):
        assert each["source"] in about["sources"]
    for model in about["models"].values():
        assert set(model["data"]) <= set(about["data"])
        assert set(model["figures"]) <= set(about["figures"])
