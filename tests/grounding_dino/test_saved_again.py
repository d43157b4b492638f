"""Folders that transformers saved again: what they state beside the weights counts, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GroundingDinoForObjectDetection

from converter.errors import ModelError, PlanError
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.writing.in_memory import open_converted
from tests.support.small_grounding_dino import SIZES, small_folder

SPEC = load_spec("transformers-grounding-dino")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sizes of no variant, with the record of a conversion; transformers 5 adds the norm that nothing reads."""
    small_folder(tmp_path / "first")
    GroundingDinoForObjectDetection.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "again")
    return tmp_path / "again"


def changed(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_it_is_opened_in_the_sizes_of_its_record(folder: Path) -> None:
    with open_converted(folder) as checkpoint:
        assert checkpoint.layout == "in-memory"
        assert checkpoint.tensors.keys() == SPEC.tensors(SIZES).keys()
        assert json.loads(checkpoint.metadata["config"])["config"]["queries"] == SIZES["queries"]


@pytest.mark.parametrize("entry", [{"positional_embedding_temperature": 10000}, {"layer_norm_eps": 1e-3}])
def test_a_setting_that_no_tensor_shows_is_not_lost(entry: dict[str, Any], folder: Path) -> None:
    changed(folder, **entry)
    with pytest.raises(PlanError) as refused:
        open_converted(folder)
    assert next(iter(entry)) in refused.value.problems[0]


def test_a_setting_of_training_alone_is_no_matter(folder: Path) -> None:
    changed(folder, dropout=0.3, fusion_droppath=0.4)
    open_converted(folder).close()


@pytest.mark.parametrize("sizes", [{}, {"depths": "abc"}, {"channels": 1.5}])
def test_a_damaged_record_is_named(sizes: dict[str, Any], folder: Path) -> None:
    changed(folder, config={**SIZES, **sizes} if sizes else {})
    with pytest.raises(ModelError, match=r"again: its record 'config' is invalid"):
        open_converted(folder)


def test_every_key_that_is_compared_is_one_of_transformers() -> None:
    """A key that transformers does not know would never be stated, and so never differ."""
    document = hub_table(SPEC).config_document(SPEC.variants[0].config, {"float32"})
    known = GroundingDinoForObjectDetection.config_class().to_dict()

    def missing(expected: Any, there: Any, at: str = "") -> list[str]:
        found = []
        for key, value in expected.items():
            if key not in there:
                found.append(at + key)
            elif isinstance(value, dict):
                found += missing(value, there[key], f"{at}{key}.")
        return found

    assert missing(document, known) == []
