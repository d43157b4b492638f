"""A table is anybody's: whatever it says, it is refused in short time, at its place, or it is sound."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from converter.errors import TableError
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from converter.mapping.spec import load_spec
from converter.planning.formats import load_format

Content = dict[str, Any]
TENSOR = {"name": "b.{i}", "each": {"i": "n"}, "shape": [2, 3]}
RULE = {"source": "a.{i}", "target": "b.{i}"}
NUMBERS = {"as": "numbers", "count": 4}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MANY_WAYS = "a." + "1".join(f"{{{letter}}}" for letter in LETTERS) + "x"


def write(folder: Path, table: Content, spec: Content) -> Path:
    tiny = {"kind": "spec", "name": "tiny", "title": "t", "config": {"n": "how many"}}
    tiny |= {"variants": {"v": {"title": "v", "config": {"n": 3}}}, "tensors": [TENSOR]}
    (folder / f"{(tiny | spec)['name']}.json").write_text(json.dumps(tiny | spec))
    path = folder / "table.json"
    path.write_text(
        json.dumps({"kind": "table", "name": "tt", "title": "t", "target": "tiny", "rules": [RULE]} | table)
    )
    return path


def said_of(path: Path) -> str:
    """Every problem of a table, whoever finds it; nothing but TableError may be raised."""
    try:
        return "\n".join(lint(load_table(path)))
    except TableError as error:
        return str(error)


def ops(*described: Content) -> Content:
    return {"rules": [RULE | {"ops": list(described)}]}


def ignore(source: str = "z.{k}", **more: Any) -> Content:
    return {"ignore": [{"source": source, "reason": "r", "rebuild": None, "optional": "o"} | more]}


def shaped(*shape: Any, **more: Any) -> Content:
    return {"tensors": [TENSOR | {"shape": list(shape)} | more]}


def text(value: str) -> Content:
    return ignore(without=value)


def depth(levels: int) -> Any:
    return [depth(levels - 1)] if levels else []


def back_and_forth(shape: list[Any]) -> Content:
    return ops({"op": "reshape", "from": [2, 3], "to": shape}, {"op": "reshape", "from": shape, "to": [2, 3]})


TURNED = ops({"op": "transpose", "axes": [1, 0]}, {"op": "transpose", "axes": [1, 0]})
MASK = {"as": "shifted_window_mask", "side": 4}

# what is wrong with it: table, spec, the pointer that is named, what is said
HOSTILE: dict[str, tuple[Content, Content, str, str]] = {
    "the target's name": ({"name": "tiny"}, {}, "/name", "the target's own naming"),
    "a built-in spec's name": ({"target": "glip"}, {"name": "glip"}, "/name", "a built-in one"),
    "a division by zero": ({"rules": [RULE | {"source": "a.{i + 1//0}"}]}, {}, "/rules/0", "by zero"),
    "a constant capture by zero": (ignore("a.{1//0}"), {}, "/ignore/0", "by zero"),
    "a constant by zero": ({"constants": {"c": "1//0"}}, {}, "/constants/c", "by zero"),
    "a float size": (ops({"op": "split", "axis": 0, "sizes": [1.0, 1]}), {}, "/rules/0/ops/0/sizes/0", "1.0"),
    "a float axis": (ops({"op": "split", "axis": 0.0, "sizes": [2]}), {}, "/rules/0/ops/0/axis", "0.0"),
    "a float shape": ({}, shaped(2.0, 3), "/tensors/0/shape/0", "2.0"),
    "a negative reshape": (back_and_forth([-2, -3]), {}, "/rules/0", "does not fit"),
    "a reshape by zero": (back_and_forth([0, -1]), shaped(0, 3), "/rules/0", "does not fit"),
    "negative blocks": (
        ops({"op": "permute_blocks", "axis": 0, "blocks": [-1, -2], "order": [1, 0]}), {}, "/rules/0", "does not fit"
    ),
    "fewer blocks than places": (
        ops({"op": "permute_blocks", "axis": 0, "blocks": [2], "order": [1, 0]}), {}, "/rules/0", "2 for 1 blocks"
    ),
    "70 axes": (back_and_forth([1] * 70 + [2, 3]), {}, "/rules/0/ops/0/to", "too long"),
    "70 axes in the spec": (TURNED, shaped(*[1] * 70), "/tensors/0/shape", "too long"),
    "no sizes": (ops({"op": "split", "axis": 0, "sizes": []}), shaped(0, 3), "/rules/0/ops/0/sizes", "non-empty"),
    "endless tensors": ({}, shaped(2, each={"i": "2**40"}), "/tensors/0", "more than 100000 names"),
    "endless loops over nothing": (
        {}, {"tensors": [TENSOR] + [TENSOR | {"each": {"i": "10**4", "j": 0}}] * 1000}, "/tensors/", "more than 100000"
    ),
    "endless tensors by condition": (
        {}, {"tensors": [TENSOR] + [TENSOR | {"each": {"i": "10**4"}, "when": 0}] * 1000}, "/tensors/", "more than 1000"
    ),
    "endless buffers": (ignore(rebuild=NUMBERS, written={"k": "2**40"}), {}, "/ignore/0", "more than 100000 names"),
    "endless taps": (
        {"taps": [{"source": "x.{k}", "target": "b", "output": [], "each": {"k": "2**40"}}]}, {}, "/taps/0", "more than"
    ),
    "sizes that take long": (
        {}, shaped(*["+".join("n" * 100)] * 16, each={"i": 99999}), "/tensors/0", "more than 100000"
    ),
    "words that take long": (
        {"words": {c: [f"{i:03d}" + "x" * 97 for i in range(64)] for c in LETTERS},
         "rules": [{side: f"{side}{k}.{MANY_WAYS}" for side in ("source", "target")} for k in range(999)]},
        {}, "/rules/", "more than 10000 characters in all",
    ),
    "ops that take long": (
        ops({"op": "reorder", "axis": 0, "index": ["+".join("n" * 100)] * 4000}), shaped(1, each={"i": 99999}),
        "/rules/0", "more than 1000000",
    ),
    "a huge tensor": (TURNED, shaped("2**40", 3), "/rules/0", "more than 1073741824 elements"),
    "a huge order": (
        ops({"op": "reorder", "axis": 0, "index": [1, 0]}), shaped("2**40"), "/rules/0", "is not a permutation"
    ),
    "a huge buffer": (
        ignore(rebuild={"as": "numbers", "count": "2**40"}, written={"k": 1}), {}, "/ignore/0", "at most 16777216"
    ),
    "many large buffers": (
        ignore(rebuild=NUMBERS | {"count": "2**24"}, written={"k": 500}), {}, "/ignore/0", "elements of buffers"
    ),
    "no window": (
        ignore(rebuild=MASK | {"window_size": 0}, written={"k": 1}), {}, "/ignore/0", "window_size is 0, expected 1"
    ),
    "a negative window": (
        ignore("z", rebuild={"as": "relative_position_index", "window_size": -4}), {}, "/ignore/0", "window_size is -4"
    ),
    "a negative shape": ({}, shaped(-2, -3), "/tensors/0", "no size can be negative"),
    "a shape beyond all": (
        ops({"op": "reshape", "from": [0], "to": [0, 2**61, 2**61]}), shaped(0, 2**61, 2**61), "/tensors/0", "counted"
    ),
    "a number beyond all": ({}, shaped(10**30), "/tensors/0/shape/0", "beyond 2**62"),
    "a text beyond all": ({}, shaped("9" * 200), "/tensors/0", "beyond 2**62"),
    "numbers in many ways": (ignore(MANY_WAYS), {}, "/ignore/0", "a digit behind"),
    "words in many ways": (
        ignore(MANY_WAYS) | {"words": {c: ["1", "11"] for c in LETTERS}}, {}, "/ignore/0", "could be either"
    ),
    "a word to calculate with": (
        {"words": {"i": ["x"]}, "rules": [RULE | {"target": "b.{i + 1}"}]}, {}, "/rules/0", "nothing to calculate with"
    ),
    "a number that cannot be read": (
        {"rules": [RULE | {"source": "a.{10**12*i}"}]}, {}, "/rules/0", "which 'a.{10**12*i}' does not match"
    ),
    "a number written for a word": (
        ignore(rebuild=NUMBERS, written={"k": 2}) | {"words": {"k": ["x"]}}, {}, "/ignore/0", "makes 'z.0', which"
    ),
    "a lone surrogate": (text("\ud800"), {}, "/ignore/0/without", "cannot be printed"),
    "a colour": (text("\x1b[31mRED"), {}, "/ignore/0/without", "cannot be printed"),
    "a second line": ({"title": "x\nwritten: fake"}, {}, "/title", "cannot be printed"),
    "text that runs backwards": ({"title": "\u202egpj.exe"}, {}, "/title", "cannot be printed"),
    "a name of no letters": ({"saved_as": {"config": {"\x1b": 1}}}, {}, "/saved_as/config", "cannot be printed"),
    "a prefix that stays": ({"saved_as": {"prefix": "foo."}}, {}, "/saved_as/prefix", "is read as 'foo.a.0'"),
    "a prefix that nothing takes off": ({"saved_as": {"prefix": "q."}}, {}, "/saved_as", "is read as 'q.a.0'"),
    "a prefix that is no segment": ({"prefixes": ["m_"]}, {}, "/prefixes/0", "does not match"),
    "two names made one": ({"aliases": {"a.1": "a.0"}}, {}, "/aliases", "is read as 'a.0', expected 'a.1'"),
    "an alias of nothing": ({"aliases": {"": "x"}}, {}, "/aliases", "non-empty"),
    "aliases that double": (
        {"aliases": {a: b + b for a, b in pairwise(LETTERS)}}, {}, "/aliases", "than 4096"
    ),
    "a root that no reader looks into": ({"saved_as": {"root": "r" * 201}}, {}, "/saved_as/root", "too long"),
    "a config of nothing": ({"saved_as": {"config": {"a": ["=nope"]}}}, {}, "/saved_as/config/a/0", "unknown name"),
    "an endless expression": (
        {"saved_as": {"config": {"a": "=" + "1+" * 500_000 + "1"}}}, {}, "/saved_as/config/a", "400 are the most"
    ),
    "not a number": ({"saved_as": {"config": {"a": float("nan")}}}, {}, "table.json", "NaN is not a JSON number"),
    "great depth": ({"saved_as": {"config": {"a": depth(90)}}}, {}, "/saved_as/config/a", "deeper than 64"),
    "many values": ({"facts": ["x"] * 250_000}, {}, "/facts/", "more than 200000 values"),
    "many faults": ({"rules": [{}] * 100_000}, {}, "/rules/0", "at least 100 places"),
    "many rules of many tensors": (
        {"rules": [RULE] * 3000}, shaped(1, each={"i": 20000}), "/rules", "3000 patterns and 20000 tensors are too many"
    ),
    "many times the same": ({"rules": [RULE] * 900}, shaped(1, each={"i": 20000}), "/rules/1", "and more of the kind"),
    "many names for each tensor": (
        {"rules": [RULE | {"source": [f"a.{k}.{{i}}" for k in range(64)],
                           "ops": [{"op": "concat", "axis": 0, "sizes": [1] * 64}]}]},
        shaped(64, each={"i": 90000}), "/rules/0", "more than 1000000 tensors and sizes",
    ),
    "two buffers of one name": (
        {"ignore": 2 * ignore(rebuild=NUMBERS, written={"k": 1})["ignore"]}, {}, "/ignore/0", "'z.0' matches /ignore/0"
    ),
    "a long target": ({"target": "a" * 300}, {}, "/target", "too long"),
    "the table as its own spec": ({"target": "table"}, {}, "/kind", "expected 'spec'"),
    "itself included": ({"include": [{"table": "tt", "at": ""}]}, {}, "/include", "tt includes tt"),
    "thousands included": ({"include": [{"table": "bert-layers", "at": ""}] * 3000}, {}, "/include", "too long"),
}  # fmt: skip


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


@pytest.mark.parametrize("what", HOSTILE)
def test_it_is_refused_in_time_and_at_its_place(what: str, tmp_path: Path) -> None:
    table, spec, pointer, said = HOSTILE[what]
    path = write(tmp_path, table, spec)
    with at_most(30):
        found = said_of(path)
    assert said in found
    assert pointer in found


def test_without_a_fault_it_is_sound(tmp_path: Path) -> None:
    assert said_of(write(tmp_path, {}, {})) == ""
    assert said_of(write(tmp_path, TURNED, {})) == ""
    written = ignore(rebuild=MASK | {"window_size": 2}, written={"k": "n"})
    assert said_of(write(tmp_path, written | {"prefixes": ["m."], "saved_as": {"prefix": "m."}}, {})) == ""


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"saved_as": {"config": {"a": 5e300}}}, {})
    path.write_text(path.read_text().replace("5e+300", "5e+999"))
    assert "the number '5e+999' is too large" in said_of(path)


def test_what_could_not_be_read_is_not_said_to_be_unused(tmp_path: Path) -> None:
    assert "holds for no variant" not in said_of(write(tmp_path, {"constants": {"c": "1//0"}}, {}))


def test_literal_rules_of_many_tensors_take_little_time(tmp_path: Path) -> None:
    names = [f"n{i * 7919 % 10007}" for i in range(10000)]
    rules = [{"source": f"a.{name}", "target": f"b.{name}"} for name in names]
    spec = {"tensors": [{"name": f"b.{name}", "shape": [1]} for name in names]}
    path = write(tmp_path, {"rules": rules}, spec)
    with at_most(30):
        assert said_of(path) == ""


def test_a_buffer_is_checked_for_the_key_that_it_is_of(tmp_path: Path) -> None:
    entry = ignore("z.{k}", rebuild={"as": "relative_position_index", "window_size": "4 - k"})
    table = load_table(write(tmp_path, entry, {}))
    (found,) = table.bind({"n": 3}).ignores
    assert found.rebuild is not None
    assert found.rebuild({"k": 1}).shape == (9, 9)
    with pytest.raises(TableError, match="/ignore/0/rebuild: window_size is -5"):
        found.rebuild({"k": 9})


def test_a_spec_by_itself_is_no_other_than_the_built_in_one(tmp_path: Path) -> None:
    write(tmp_path, {}, {"name": "glip"})
    with pytest.raises(TableError, match="'glip', which is another spec"):
        load_format(str(tmp_path / "glip.json"))


def test_a_copy_of_a_built_in_table_and_spec_is_as_good(tmp_path: Path) -> None:
    built_in = load_table("glip-official")
    for path in built_in.path.parent.glob("*.json"):
        (tmp_path / path.name).write_text(json.dumps(json.loads(path.read_text())))
    copy = load_table(tmp_path / "glip-official.json")
    assert copy.bind(copy.spec.variants[0].config).rules != ()
    assert load_spec(tmp_path / "glip.json").variants == built_in.spec.variants


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(TableError, match="not a file"):
        load_format(str(tmp_path / "pipe.json"))


@pytest.mark.parametrize("data", [b"\xff\xfe", b'{"a": "\xff"}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data)
    assert "table.json" in said_of(path)


def test_a_name_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("{" + ",".join(f'"n{i}":0' for i in range(140_000)) + ', "n139999": 1}')
    with at_most(5):
        assert "'n139999' is there twice" in said_of(path)
