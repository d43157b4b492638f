"""The choices of an evaluation: each has a source, and can be changed to what it may be, and to nothing else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from converter.errors import ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.glip.model.config import Rules
from converter.glip.task import protocol as module
from converter.glip.task.benchmark import odinw
from converter.glip.task.protocol import Protocol, load_protocol
from converter.glip.task.task import GLIPTask
from converter.grounding.tokenizer import find_tokenizer
from converter.parity.family import Asked, Class
from tests.support.bert_vocabulary import small_vocabulary

DATA = json.loads(Path(module.__file__).with_name("protocols.json").read_text())
NAMES = [field.name for field in fields(Protocol)]


@pytest.mark.parametrize("name", DATA["protocols"])
def test_every_choice_has_a_source(name: str) -> None:
    parts = DATA["protocols"][name]
    assert set(parts["all"]) == set(NAMES)
    for part in parts.values():
        assert {source for _, source in part.values()} <= set(DATA["sources"])
    used = {s for parts in DATA["protocols"].values() for part in parts.values() for _, s in part.values()}
    assert used == set(DATA["sources"])
    assert all(" at " in text or "3.3" in text or "2.1" in text for text in DATA["sources"].values())


def test_the_official_rules_are_those_by_which_the_model_detects() -> None:
    for data in ("coco", "own"):
        protocol = load_protocol(Asked("official"), data)
        assert protocol.rules == Rules()
        assert protocol.preprocessing(glip_preprocessing()) == glip_preprocessing()
        assert (protocol.per_caption, protocol.box_extent, protocol.metric) == (None, 1, "coco")


def test_lvis_is_asked_for_forty_names_at_a_time() -> None:
    protocol = load_protocol(Asked("official"), "lvis")
    assert (protocol.per_caption, protocol.most, protocol.box_extent, protocol.metric) == (40, 300, 0, "lvis-fixed")


def test_where_mmdetection_differs() -> None:
    """What is to be looked at where its figures are others."""
    differing = {}
    for data in ("coco", "lvis"):
        one, other = (load_protocol(Asked(name), data).to_dict() for name in ("official", "mmdet"))
        differing[data] = {name for name in NAMES if one[name] != other[name]}
    rules = {"ranked_by_centerness", "shrinking_limited", "last_pixel_included", "empty_dropped", "ties_kept"}
    assert differing == {
        "coco": {"size_rounding", "upright", *rules},
        "lvis": {"size_rounding", "upright", "box_extent", *rules},
    }


@pytest.mark.parametrize(
    ("data", "changed", "text", "told"),
    [
        ("coco", {}, None, "official"),
        ("coco", {"most": "100"}, None, "official"),
        ("coco", {"most": "9", "order": "reversed"}, None, "official with order=reversed, most=9"),
        ("lvis", {"most": "100"}, None, "official with most=100"),
        ("coco", {}, "dog", "official with other captions"),
        ("own", {}, "dog", "official"),
    ],
)
def test_what_was_changed_is_part_of_the_name(
    data: str, changed: dict[str, str], text: str | None, told: str, tmp_path: Path
) -> None:
    """By it figures are set beside those of the authors, and kept apart from one another."""
    small_vocabulary(tmp_path)
    asked, classes = Asked("official", changed), [Class(1, "person", text=text)]
    task = GLIPTask.of(data, classes, asked, find_tokenizer(tmp_path, None), glip_preprocessing())
    assert task.facts["name"] == told


CHANGES: dict[str, tuple[str, Any]] = {
    "order": ("reversed", "reversed"),
    "names_cleaned": ("false", False),
    "separator": (" . ", " . "),
    "per_caption": ("none", None),
    "shorter_side": ("600", 600),
    "longer_side": ("1000", 1000),
    "size_rounding": ("down", "down"),
    "filter": ("bicubic", "bicubic"),
    "upright": ("True", True),
    "score_threshold": ("0", 0.0),
    "candidates_per_level": ("10", 10),
    "ranked_by_centerness": ("false", False),
    "shrinking_limited": ("true", True),
    "nms_threshold": ("0.5", 0.5),
    "last_pixel_included": ("false", False),
    "empty_dropped": ("true", True),
    "most": ("900", 900),
    "ties_kept": ("false", False),
    "box_extent": ("0", 0),
    "metric": ("lvis", "lvis"),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_changed(name: str) -> None:
    text, value = CHANGES[name]
    changed = load_protocol(Asked("official", {name: text}), "lvis").to_dict()
    assert changed == {**load_protocol(Asked("official"), "lvis").to_dict(), name: value}


@pytest.mark.parametrize("text", ["", "nan", "-1", "1e99", "maybe", "99999999999", "\0"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "separator"])
def test_to_what_it_may_be(name: str, text: str) -> None:
    with pytest.raises(ModelError, match=f"setting: {name} is .*expected (one of|a|an|true|none)"):
        load_protocol(Asked("official", {name: text}), "coco")


def test_a_separator_is_short() -> None:
    with pytest.raises(ModelError, match=r"setting: separator is .*expected text of up to 100 characters"):
        load_protocol(Asked("official", {"separator": "." * 101}), "coco")


def test_unknown_names_are_told_beside_those_that_are_known() -> None:
    with pytest.raises(ModelError, match=r"protocol: found 'own', expected one of official, mmdet"):
        load_protocol(Asked("own"), "coco")
    with pytest.raises(ModelError, match=r"setting: found 'nms', expected one of order, .*nms_threshold"):
        load_protocol(Asked("official", {"nms": "0.5"}), "coco")


def test_odinw() -> None:
    sets = odinw("odinw")
    assert len(sets) == 13
    assert {each.name for each in sets} >= {"odinw/Aquarium", "odinw/pothole", "odinw/PascalVOC"}
    assert all(each.classes and not each.annotations.startswith("/") for each in sets)
    assert not any(part.prefix or part.suffix or part.text for each in sets for part in each.classes)
    (pothole,) = (each for each in odinw("odinw-prompted") if each.name.endswith("pothole"))
    assert [(c.id, c.prefix, c.text, c.suffix) for c in pothole.classes] == [
        (1, "there are some ", "holes", " on the road")
    ]
