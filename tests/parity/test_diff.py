"""Two checkpoints are equal if and only if every tensor is; whatever differs is named, whatever the formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError
from converter.mapping.load import load_table
from converter.parity.diff import diff as engine
from tests.support.small_formats import Weights
from tests.support.tiny import tiny_weights, write_table
from tests.support.two_checkpoints import changed, compare, converted, run, saved, the_difference


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    return write_table(folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(tiny_weights(), tmp_path / "source.pth")


@pytest.fixture
def target(source: Path, table: Path, tmp_path: Path) -> Path:
    return converted(source, table, tmp_path / "target.safetensors")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("swapped", [False, True], ids=["A is the source", "B is the source"])
def test_a_checkpoint_equals_its_conversion(legacy: bool, swapped: bool, table: Path, tmp_path: Path) -> None:
    source = saved(tiny_weights(3), tmp_path / "s.pth", _use_new_zipfile_serialization=not legacy)
    target = converted(source, table, tmp_path / "t.safetensors")
    pair = (target, source) if swapped else (source, target)
    content = compare(*pair, "--table", table)
    assert content["equal"] is True
    assert (content["tables"], content["variant"]) == (["tiny-table"], "tiny-3")
    assert content["compared"] == content["identical"] == len(load_file(target))
    assert {out["side"] for out in content["left_out"]} == {"B" if swapped else "A"}
    assert [out["name"] for out in content["left_out"]] == ["position_ids", "training.weight"]


@pytest.mark.parametrize("name", list(tiny_weights()))
def test_one_flipped_bit_of_any_source_tensor_is_found(name: str, table: Path, target: Path, tmp_path: Path) -> None:
    weights = {key: tensor.contiguous().clone() for key, tensor in tiny_weights().items()}
    weights[name].view(-1).view(torch.uint8)[-1] ^= 1
    content = compare(saved(weights, tmp_path / "flipped.pth"), target, "--table", table)
    if name in ("module.position_ids", "module.training.weight"):
        assert content["equal"] is True
        return
    pair = the_difference(content)
    assert (name in pair["a"]["from"], pair["kinds"], pair["differing"]) == (True, ["value"], 1)


def test_a_difference_is_measured_over_blocks(tmp_path: Path) -> None:
    values = torch.ones(3 << 18, dtype=torch.float64)[1:]
    wrong = values.clone()
    wrong[[0, 1 << 18, -1]] = torch.tensor([2.0, -1.0, 1.5], dtype=torch.float64)
    pair = the_difference(compare(saved({"x": values}, tmp_path / "a.pth"), saved({"x": wrong}, tmp_path / "b.pth")))
    assert (pair["kinds"], pair["differing"], pair["elements"]) == (["value"], 3, values.numel())
    assert (pair["max_abs"], pair["not_finite"]) == (2, 0)
    assert pair["relative_frobenius"] == pytest.approx(np.sqrt(5.25 / values.numel()), rel=1e-12)


def test_a_transposed_matrix_is_a_difference_of_value_or_shape(target: Path, table: Path, tmp_path: Path) -> None:
    def after(name: str) -> dict[str, Any]:
        transposed = tiny_weights() | {name: tiny_weights()[name].t()}
        return the_difference(compare(saved(transposed, tmp_path / "t.pth"), target, "--table", table))

    square = after("module.blocks.2.q.weight")
    assert (square["name"], square["kinds"], square["differing"]) == ("layers.1.qkv.weight", ["value"], 12)
    source = after("module.embed.weight")
    assert (source["name"], source["kinds"], source["differing"]) == ("embed.weight", ["shape"], None)
    assert source["note"] == "the table needs 'module.embed.weight' to be (4, 6)"
    other = changed(target, lambda w: w.update({"embed.weight": w["embed.weight"].t()}))
    assert the_difference(compare(target, other, "--table", table))["kinds"] == ["shape"]


def test_what_is_missing_or_extra_in_the_source_is_named(target: Path, table: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["module.blocks.1.qq.weight"] = weights.pop("module.blocks.1.q.weight")
    content = compare(saved(weights, tmp_path / "m.pth"), target, "--table", table)
    (lone,) = content["only_in_b"]
    assert (lone["name"], lone["note"]) == ("layers.0.qkv.weight", "A lacks 'blocks.1.q.weight'")
    # what is left of its parts has no partner either
    alone = {lone["name"]: lone["nearest"] for lone in content["only_in_a"]}
    # of a name that the table does not know, nothing is taken off
    assert set(alone) == {"module.blocks.1.qq.weight", "blocks.1.k.weight", "blocks.1.v.weight"}
    assert "blocks.1.q.weight" in alone["module.blocks.1.qq.weight"]


def test_what_is_missing_or_extra_in_the_target_is_named_with_the_nearest(
    source: Path, target: Path, table: Path
) -> None:
    other = changed(target, lambda w: w.update({"merge.weights": w.pop("merge.weight")}))
    for a, b in ((source, other), (target, other)):
        content = compare(a, b, "--table", table)
        for side, here, there in (
            ("only_in_a", "merge.weight", "merge.weights"),
            ("only_in_b", "merge.weights", "merge.weight"),
        ):
            assert [(lone["name"], lone["nearest"]) for lone in content[side]] == [(here, [there])]


def test_a_cast_is_a_difference_of_dtype_and_value(source: Path, target: Path, table: Path, tmp_path: Path) -> None:
    cast = converted(source, table, tmp_path / "bf16.safetensors", dtype="bfloat16")
    pairs = {pair["name"]: pair for pair in compare(source, cast, "--table", table)["different"]}
    original = load_file(target)["merge.weight"].double()
    gap = original - original.bfloat16().double()
    pair = pairs["merge.weight"]
    assert (pair["kinds"], pair["differing"]) == (["dtype", "value"], int(gap.count_nonzero()))
    assert pair["max_abs"] == float(gap.abs().max())
    assert pair["relative_frobenius"] == pytest.approx(float(gap.norm() / original.norm()), rel=1e-12)
    assert pairs["order.weight"]["kinds"] == ["dtype"]  # NaN, infinity and zero survive
    assert pairs.keys() == load_file(target).keys()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "code"),
    [("bfloat16", 0.05, 0), ("bfloat16", 1e-6, 1), ("float64", 0, 0), ("float64", None, 1)],
)
def test_a_tolerance_allows_a_cast(dtype: str, tolerance: float | None, code: int, table: Path, tmp_path: Path) -> None:
    source = saved(tiny_weights() | {"module.half.weight": torch.ones(5).half()}, tmp_path / "s.pth")
    cast = converted(source, table, tmp_path / "cast.safetensors", dtype=dtype)
    flags = [] if tolerance is None else ["--tolerance", tolerance]
    result = run(source, cast, "--table", table, *flags)
    assert (result.exit_code, "within " in result.stdout) == (code, tolerance is not None)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_nan_infinity_and_zero(dtype: str, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([nan, inf, -inf, 1.0, 0.0], dtype=getattr(torch, dtype))

    def after(change: Callable[[torch.Tensor], object], *flags: object) -> dict[str, Any]:
        wrong = values.clone()
        change(wrong)
        one, other = (saved({"x": x}, tmp_path / f"{n}.safetensors") for n, x in enumerate((values, wrong)))
        return compare(one, other, "--no-table", *flags)

    assert after(lambda x: None)["equal"] is True
    # another payload, another sign of zero: not the same bits, but no number differs
    for same in (lambda x: x.view(torch.uint8)[:1].bitwise_xor_(1), lambda x: x[4:].neg_()):
        pair = the_difference(after(same))
        assert (pair["differing"], pair["max_abs"], pair["not_finite"]) == (1, 0, 0)
        assert after(same, "--tolerance", 0)["equal"] is True
    for at, value in ((0, 1.0), (1, nan), (2, inf), (3, nan)):
        content = after(lambda x, at=at, value=value: x[at : at + 1].fill_(value), "--tolerance", 1e300)
        pair = the_difference(content)
        assert (content["equal"], pair["differing"], pair["not_finite"], pair["max_abs"]) == (False, 1, 1, 0)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "complex128", "float8_e5m2"])
def test_other_dtypes_are_compared_bit_by_bit_whatever_the_tolerance(dtype: str, tmp_path: Path) -> None:
    none, scalar = torch.zeros(0, 3), torch.zeros(())
    values = torch.tensor([0, 1, 1, 0]).to(getattr(torch, dtype))
    one = saved({"x": values, "none": none, "scalar": scalar}, tmp_path / "one.pth")
    other = saved({"x": values[[0, 1, 1, 1]], "none": none, "scalar": scalar}, tmp_path / "other.pth")
    pair = the_difference(compare(one, other, "--no-table", "--tolerance", 5))
    assert (pair["kinds"], pair["differing"], pair["max_abs"]) == (["value"], 1, None)
    assert compare(one, one)["equal"] is True


@pytest.mark.parametrize("flags", [[], ["--no-table"]])
def test_shards_equal_a_single_file(flags: list[str], source: Path, target: Path, table: Path, tmp_path: Path) -> None:
    shards = converted(source, table, tmp_path / "shards", max_shard_size=300)
    assert len(list(shards.glob("model-*.safetensors"))) > 3
    assert compare(target, shards, *(flags or ["--table", table]))["equal"] is True
    if not flags:
        assert compare(shards, source, "--table", table)["equal"] is True


def test_prefixes_are_taken_off_with_a_table_only(source: Path, target: Path, table: Path, tmp_path: Path) -> None:
    bare = saved({k.removeprefix("module."): v for k, v in tiny_weights().items()}, tmp_path / "bare.pth")
    content = compare(source, bare, "--table", table)
    assert (content["equal"], content["tables"]) == (True, [])
    assert content["compared"] == len(tiny_weights())  # what the table leaves out, too: both have it
    wrapped = saved({f"module.{k}": v for k, v in load_file(target).items()}, tmp_path / "wrapped.safetensors")
    assert compare(source, wrapped, "--table", table)["equal"] is True
    content = compare(source, bare, "--no-table")
    assert (content["equal"], content["compared"]) == (False, 0)


def test_no_tensor_hides_behind_another_of_the_same_short_name(target: Path, table: Path, tmp_path: Path) -> None:
    bare = {"scalar": torch.tensor(7.0), "training.weight": torch.zeros(1)}
    both, swap = saved(tiny_weights() | bare, tmp_path / "b.pth"), saved(bare | tiny_weights(), tmp_path / "s.pth")
    assert compare(both, swap, "--table", table)["equal"] is True
    for file, left in ((both, ["scalar", "training.weight"]), (swap, ["module.scalar", "module.training.weight"])):
        content = compare(file, target, "--table", table)
        assert [lone["from"] for lone in content["only_in_a"]] == [[name] for name in left]
        assert [pair["a"]["from"] for pair in content["different"]] == ([["scalar"]] if file is swap else [])


def test_what_the_table_leaves_out_may_be_on_one_side_only(source: Path, table: Path, tmp_path: Path) -> None:
    less = saved({k: v for k, v in tiny_weights().items() if "training" not in k}, tmp_path / "less.pth")
    content = compare(source, less, "--table", table)
    assert content["equal"] is True
    assert [(out["side"], out["name"]) for out in content["left_out"]] == [("A", "training.weight")]
    other = saved(tiny_weights() | {"module.training.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert the_difference(compare(source, other, "--table", table))["name"] == "training.weight"


def test_a_comparison_of_nothing_is_a_difference(source: Path, tmp_path: Path) -> None:
    other = saved({"other": torch.zeros(1)}, tmp_path / "other.pth")
    empty = tmp_path / "empty.safetensors"
    save_file({}, empty)
    for a, b in ((source, other), (empty, empty)):
        result = run(a, b)
        assert result.exit_code == 1
        assert "nothing was compared" in result.stdout


def test_roots_choose(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save({"model": tiny_weights(), "model_ema": tiny_weights(seed=1)}, path)
    assert compare(path, path, "--table", table)["equal"] is True
    content = compare(path, path, "--root-b", "model_ema", "--table", table)
    assert content["compared"] > len(content["different"]) > 5
    assert compare(path, path, "--root-a", "model_ema", "--root-b", "model_ema", "--table", table)["equal"] is True


def test_the_worst_comes_first(target: Path, table: Path) -> None:
    def change(weights: Weights) -> None:
        weights["merge.weight"][0, 0] += 1
        weights["scalar"] += 100
        weights["layers.0.gate.weight"][0, 0] = float("nan")
        weights["embed.weight"].view(torch.int32)[0, 3] ^= 1
        weights["kernel.weight"] = weights["kernel.weight"][:2]

    other = changed(target, change)
    names = ["kernel.weight", "layers.0.gate.weight", "scalar", "merge.weight", "embed.weight"]
    assert [pair["name"] for pair in compare(target, other, "--table", table)["different"]] == names
    lines = [line for line in run(target, other, "--table", table).stdout.splitlines() if "different: " in line]
    assert [line.split(": ")[1] for line in lines[1:]] == names


def test_people_get_forty_lines_and_something_of_everything(tmp_path: Path) -> None:
    weights = {f"common.{i}": torch.zeros(i + 1) for i in range(300)}
    a = saved(weights | {f"left.{i}": torch.zeros(1) for i in range(300)}, tmp_path / "a.pth")
    b = saved({k: v + 1 for k, v in weights.items()} | {"right\n\x1b[31m": torch.zeros(1)}, tmp_path / "b.pth")
    text = run(a, b).stdout
    assert 35 < len(text.splitlines()) <= 40
    for line in (
        "only in A: left.0",
        "only in B: 'right\\n\\x1b",
        "different: common.0: 1 of 1 elements",
        "more only in A",
    ):
        assert line in text
    assert len(compare(a, b)["only_in_a"]) == len(compare(a, b)["different"]) == 300


def test_a_hostile_file_is_refused_and_not_run(target: Path, table: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Hostile(), tmp_path / "hostile.pth")
    torch.save({"model": tiny_weights() | {"module.bad": Hostile()}}, tmp_path / "inside.pth")
    for pair in ((tmp_path / "hostile.pth", target), (target, tmp_path / "hostile.pth")):
        result = run(*pair, "--table", table, "--json")
        assert result.exit_code == 3
        assert json.loads(result.stdout)["error"]["type"] == "RootError"
    content = compare(tmp_path / "inside.pth", target, "--table", table)
    assert [(out["side"], out["name"]) for out in content["unreadable"]] == [("A", "module.bad")]
    assert not (tmp_path / "executed").exists()


def test_damage_is_refused(target: Path, source: Path, table: Path, tmp_path: Path) -> None:
    data = bytearray(source.read_bytes())
    data[data.index(tiny_weights()["module.merge.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "damaged.pth").write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(target.read_bytes()[:-1])
    for a, b in ((tmp_path / "damaged.pth", target), (target, tmp_path / "cut.safetensors")):
        assert run(a, b, "--table", table).exit_code == 3


def test_what_cannot_be_read_is_not_called_equal(tmp_path: Path) -> None:
    path = saved({"x": torch.zeros(1).expand(1 << 40), "y": torch.zeros(1)}, tmp_path / "endless.pth")
    content = compare(path, path)
    assert (content["equal"], content["identical"]) == (False, 1)
    assert [(out["side"], out["name"]) for out in content["unreadable"]] == [("A", "x"), ("B", "x")]


def test_a_file_that_changes_meanwhile_is_noticed(source: Path, target: Path, table: Path) -> None:
    counts: list[int] = []
    with open_checkpoint(source) as a, open_checkpoint(target) as b:
        engine(a, b, load_table(table), on_bytes=counts.append)
        assert sum(counts) == sum(tensor.nbytes for tensor in b.tensors.values())
        with pytest.raises(CorruptCheckpointError):
            engine(a, b, load_table(table), on_bytes=lambda count: os.utime(target, ns=(1, 1)))


def test_exit_codes_of_wrong_use(source: Path, target: Path, tmp_path: Path) -> None:
    assert run(source).exit_code == 2
    assert run(source, target, "--table", "glip-official", "--no-table").exit_code == 2
    assert run(source, target, "--tolerance", "-1").exit_code == 2
    assert run(source, target, "--tolerance", "nan").exit_code == 2
    assert run(source, tmp_path / "absent.pth").exit_code == 3
    assert run(source, target, "--root-a", "nope").exit_code == 3
    assert run(source, target, "--table", "nope").exit_code == 4


def modules_after(*arguments: object) -> set[str]:
    """Names of all modules that the command imports, in a process of its own."""
    code = (
        "import sys; from converter.cli.diff import diff\n"
        "try: diff(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print('|'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split("|"))


def test_it_imports_no_torch_and_its_help_nothing_heavy(
    source: Path, target: Path, table: Path, tmp_path: Path
) -> None:
    cast = converted(source, table, tmp_path / "bf16.safetensors", dtype="float64")
    for b, flags in ((target, []), (cast, ["--tolerance", 0])):
        assert not {"torch", "safetensors"} & modules_after(source, b, "--table", table, *flags)
    assert not {"torch", "numpy", "jsonschema", "tqdm", "pickle"} & modules_after("--help")
