"""Tables that are wrong in one way each: the schema or the linter must say which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.errors import TableError
from converter.mapping.folders import mappings_folder
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from converter.mapping.spec import load_spec

Content = dict[str, Any]


def content_of(name: str) -> Content:
    return json.loads((mappings_folder() / f"{name}.json").read_text())


def problems_of(content: Content, folder: Path) -> list[str]:
    """Problems of a table of one's own, whoever finds them."""
    content["name"] = "mine"
    path = folder / "table.json"
    path.write_text(json.dumps(content))
    try:
        return lint(load_table(path))
    except TableError as error:
        return list(error.problems) or [str(error)]


def test_the_built_in_tables_are_sound() -> None:
    assert lint(load_table("glip-official")) == []


def rule(content: Content, target: str) -> Content:
    return next(r for r in content["rules"] if r["target"] == target)


def drop_a_rule(c: Content) -> None:
    c["rules"].remove(rule(c, "head.bias"))


def make_a_target_twice(c: Content) -> None:
    c["rules"].append({"source": "rpn.head.other", "target": "head.bias"})


def use_a_source_twice(c: Content) -> None:
    rule(c, "head.bias")["source"] = "rpn.head.log_scale"


def misspell_a_target(c: Content) -> None:
    rule(c, "head.bias")["target"] = "head.bais"


def swap_indices(c: Content) -> None:
    rule(c, "fpn.p6.{param}")["source"] = "backbone.fpn.top_blocks.p{level}.{param}"


def claim_a_source_twice(c: Content) -> None:
    c["ignore"].append({"source": "rpn.head.bias0", "reason": "x", "rebuild": None})


def join_too_few(c: Content) -> None:
    rule(c, "head.box_scale")["source"].pop()


def join_wrong_sizes(c: Content) -> None:
    rule(c, "head.box_scale")["ops"][0]["sizes"] = [1, 1, 1, 2]


def join_too_large_sizes(c: Content) -> None:
    rule(c, "head.box_scale")["ops"][0]["sizes"] = [1, 1, 1, 1, 2]


def join_without_op(c: Content) -> None:
    del rule(c, "head.box_scale")["ops"]


def reorder_to_the_same_place(c: Content) -> None:
    rule(c, "head.box_scale")["ops"].append({"op": "reorder", "axis": 0, "index": [0, 0, 2, 3, 4]})


def allow_a_shape_of_other_elements(c: Content) -> None:
    rule(c, "head.box_scale")["also_shape"] = [2]


def allow_a_negative_shape(c: Content) -> None:
    rule(c, "head.box_scale")["also_shape"] = [-1, -1]


def allow_the_same_shape(c: Content) -> None:
    rule(c, "head.box_scale")["also_shape"] = [1]


def leave_a_word_unused(c: Content) -> None:
    c["words"]["gamma"] = ["gamma"]


def ask_for_a_config_field_that_is_not_there(c: Content) -> None:
    rule(c, "head.bias")["when"] = "no_such_field"


def never_apply(c: Content) -> None:
    c["ignore"].append({"source": "x", "reason": "x", "rebuild": None, "when": "head_blocks > 100"})


def misspell_a_field(c: Content) -> None:
    c["rules"][0]["sorce"] = c["rules"][0].pop("source")


def give_no_reason(c: Content) -> None:
    del c["ignore"][0]["reason"]


def use_an_unknown_op(c: Content) -> None:
    rule(c, "head.box_scale")["ops"][0]["op"] = "exec"


def use_a_regular_expression(c: Content) -> None:
    rule(c, "head.bias")["source"] = "rpn[.]head[.]bias(0|1)"


def name_an_unknown_target(c: Content) -> None:
    c["target"] = "no-such-model"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (drop_a_rule, "'head.bias' (1,) is made by no rule, and not named in 'absent'"),
        (make_a_target_twice, "'head.bias' is made twice, by"),
        (use_a_source_twice, "source 'rpn.head.log_scale' is used twice"),
        (misspell_a_target, "makes nothing; 'head.bais' fits no tensor"),
        (swap_indices, "every pattern of a rule must capture the same"),
        (claim_a_source_twice, "'rpn.head.bias0' matches /ignore/"),
        (join_too_few, "the ops take 5 tensors, 4 are named"),
        (join_wrong_sizes, "the ops take 4 tensors, 5 are named"),
        (join_too_large_sizes, "split(axis=0, sizes=(1, 1, 1, 1, 2)) does not fit a tensor (5,)"),
        (join_without_op, "need an op that joins or splits"),
        (reorder_to_the_same_place, "is not a permutation"),
        (allow_a_shape_of_other_elements, "'also_shape' (2,) does not hold the elements of (1,)"),
        (allow_a_negative_shape, "'also_shape' (-1, -1) does not hold the elements of (1,)"),
        (allow_the_same_shape, "'also_shape' (1,) is the shape that a source has anyway"),
        (leave_a_word_unused, "/words/gamma: no pattern or op uses it"),
        (ask_for_a_config_field_that_is_not_there, "unknown name 'no_such_field'"),
        (never_apply, "its 'when' holds for no variant"),
        (misspell_a_field, "'sorce'"),
        (give_no_reason, "'reason' is a required property"),
        (use_an_unknown_op, "'exec'"),
        (use_a_regular_expression, "does not match"),
        (name_an_unknown_target, "no spec is called 'no-such-model'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_fault_is_found(fault: Callable[[Content], None], said: str, tmp_path: Path) -> None:
    content = content_of("glip-official")
    fault(content)
    problems = problems_of(content, tmp_path)
    assert any(said in problem for problem in problems), problems


def test_a_duplicate_name_in_the_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"kind": "table", "kind": "table"}')
    with pytest.raises(TableError, match="'kind' is there twice"):
        load_table(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"kind": "spec"}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"t\.json"):
        load_table(path)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(TableError, match="no table is called 'glip'; known: glip-official"):
        load_table("glip")


def test_a_spec_variant_must_set_every_field(tmp_path: Path) -> None:
    content = content_of("glip")
    content["name"] = "mine"
    del content["variants"]["glip-l"]["config"]["fusion"]
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TableError, match="/variants/glip-l/config: fields without a value or a meaning: fusion"):
        load_spec(path)


def test_a_table_can_bring_its_own_target(tmp_path: Path) -> None:
    spec = {
        "kind": "spec",
        "name": "tiny",
        "title": "x",
        "config": {"width": "w"},
        "variants": {"only": {"title": "x", "config": {"width": 3}}},
        "tensors": [{"name": "fc", "weight": ["width", 2], "bias": ["width"]}],
    }
    table = {
        "kind": "table",
        "name": "tiny-table",
        "title": "x",
        "target": "tiny",
        "words": {"p": ["weight", "bias"]},
        "rules": [{"source": "linear.{p}", "target": "fc.{p}"}],
    }
    (tmp_path / "tiny.json").write_text(json.dumps(spec))
    (tmp_path / "t.json").write_text(json.dumps(table))
    assert lint(load_table(tmp_path / "t.json")) == []
