"""The taps of captured models: what the command line exports for scripts/capture_official.py, and the linter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter.cli import main
from converter.mapping.folders import mappings_folder
from converter.mapping.lint import lint
from converter.mapping.load import load_table


@pytest.mark.parametrize(("variant", "count"), [("glip-t", 132), ("glip-t-a", 90), ("glip-l", 168)])
def test_the_command_line_exports_the_taps_of_a_variant(variant: str, count: int) -> None:
    result = CliRunner().invoke(main, ["tables", "--taps", "glip-official", "--variant", variant])
    assert result.exit_code == 0
    assert (
        CliRunner().invoke(main, ["tables", "--taps", "glip-official", "--variant", variant, "-q"]).stdout
        == result.stdout
    )
    content = json.loads(result.stdout)
    assert (content["table"], content["model"], len(content["taps"])) == ("glip-official", variant, count)
    by_name = {tap["name"]: (tap["module"], tap["output"]) for tap in content["taps"]}
    assert len(by_name) == count
    assert by_name["backbone.body.patch_embed"] == ("backbone.body.patch_embed", [])
    assert by_name["rpn.head.bbox_pred.3"] == ("rpn.head", [1, 3])
    assert by_name["rpn.anchor_generator.4"] == ("rpn.anchor_generator", [0, 4, "bbox"])


@pytest.mark.parametrize("options", [["--taps", "glip-official"], ["--variant", "glip-t"]])
def test_taps_and_variant_need_each_other(options: list[str]) -> None:
    result = CliRunner().invoke(main, ["tables", *options])
    assert result.exit_code == 2
    assert "together" in result.output


def share_a_place(taps: list[dict[str, Any]]) -> None:
    next(tap for tap in taps if tap["source"] == "rpn.head.centerness.{level}")["from"]["output"][0] = 1


def share_a_name(taps: list[dict[str, Any]]) -> None:
    taps.append({"source": "backbone.body.patch_embed", "target": "fpn", "output": [0]})


def count_nothing(taps: list[dict[str, Any]]) -> None:
    del next(tap for tap in taps if tap["source"] == "backbone.{level}")["each"]


def never_hold(taps: list[dict[str, Any]]) -> None:
    taps[0]["when"] = 0


def turn_by(*axes: int) -> Callable[[list[dict[str, Any]]], None]:
    def turn(taps: list[dict[str, Any]]) -> None:
        taps[0]["axes"] = list(axes)

    return turn


@pytest.mark.parametrize(
    ("break_taps", "message"),
    [
        (share_a_place, "is at rpn.head 1 0, where 'rpn.head.bbox_pred.0' is"),
        (share_a_name, "/taps/0 taps 'backbone.body.patch_embed' as well"),
        (count_nothing, "captures 'level', which 'each' does not count"),
        (never_hold, "/taps/0: its 'when' holds for no variant"),
        (turn_by(1, 2, 0, 4), "/taps/0: axes [1, 2, 0, 4] are not each of 0 to 3 once"),
        (turn_by(1, 1), "/taps/0: axes [1, 1] are not each of 0 to 1 once"),
    ],
)
def test_taps_that_are_wrong_are_found_by_the_linter(
    break_taps: Callable[[list[dict[str, Any]]], None], message: str, tmp_path: Path
) -> None:
    content = json.loads((mappings_folder() / "glip-official.json").read_text())
    content["name"] = "mine"
    break_taps(content["taps"])
    path = tmp_path / "table.json"
    path.write_text(json.dumps(content))
    assert any(message in problem for problem in lint(load_table(path)))
