"""What is converted in memory is, byte for byte, what `convert` writes: tensors, records and refusals."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.checkpoint.hashes import tensor_hashes
from converter.errors import CheckpointError, CorruptCheckpointError, ModelError, PlanError
from converter.mapping.load import load_table
from converter.planning.fit import make_plan
from converter.planning.formats import choose_formats, make_route
from converter.writing.convert import convert
from converter.writing.in_memory import in_memory, open_converted
from converter.writing.ledger import TABLES, tables_of
from tests.planning.test_adapters import SAID, with_adapters
from tests.support.small_files import official, refusal, run, tensors_in
from tests.support.small_formats import FORMATS
from tests.support.tiny import tiny_weights, write_table


def same(made: Checkpoint, written: Checkpoint) -> bool:
    """The same names, shapes, dtypes, bytes (as a whole and in pieces) and records; of tables, as a folder's files."""
    records = dict(made.metadata)
    assert json.loads(records.pop(TABLES)) == tables_of(json.loads(records["conversion"]))
    assert records == dict(written.metadata)
    assert made.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert (made.tensors[name].shape, made.tensors[name].dtype) == (tensor.shape, tensor.dtype)
        data = written.read(name).tobytes()
        values = made.read(name)
        assert values.tobytes() == data, name
        assert values.flags.c_contiguous
        assert b"".join(map(bytes, made.chunks(name))) == data, name
        assert b"".join(map(bytes, made.chunks(name, 16))) == data, name
    return True


@contextmanager
def tiny(folder: Path, **extra: torch.Tensor) -> Iterator[tuple[Checkpoint, Checkpoint]]:
    """The table that uses every op, carried out in memory and to a file."""
    torch.save(tiny_weights() | extra, folder / "tiny.pth")
    table = load_table(write_table(folder))
    with open_checkpoint(folder / "tiny.pth") as checkpoint:
        plan = make_plan(table, checkpoint)
        convert(checkpoint, plan, folder / "tiny.safetensors")
        with open_checkpoint(folder / "tiny.safetensors") as written:
            yield in_memory(checkpoint, plan), written


def test_every_op_gives_the_bytes_that_are_written(tmp_path: Path) -> None:
    with tiny(tmp_path) as (made, written):
        assert same(made, written)


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "glip"])
def test_every_format_gives_the_bytes_and_records_that_are_written(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = tmp_path / "source.pth"
    torch.save({n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors_in(name).items()}, source)
    run("convert", "--src", source, "--dst", tmp_path / "own.safetensors")
    with open_converted(source) as made, open_checkpoint(tmp_path / "own.safetensors") as written:
        assert made.layout == "in-memory"
        assert same(made, written)


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_several_dtypes_are_joined_as_in_what_is_written(dtype: str, tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    weights = {n: t.to(kinds[i % 3]) if t.is_floating_point() else t for i, (n, t) in enumerate(official().items())}
    source = tmp_path / "source.pth"
    torch.save(weights, source)
    run("convert", "--src", source, "--dst", tmp_path / "own.safetensors", "--dtype", dtype)
    with open_checkpoint(source) as checkpoint, open_checkpoint(tmp_path / "own.safetensors") as written:
        formats = choose_formats(checkpoint, None, None)
        assert same(in_memory(checkpoint, make_route(*formats, checkpoint, dtype=dtype)), written)


@pytest.mark.usefixtures("small_mappings")
def test_adapters_are_merged_as_in_what_is_written(tmp_path: Path) -> None:
    weights, _ = with_adapters()
    torch.save(SAID["beside"](weights), tmp_path / "adapted.pth")
    run("convert", "--src", tmp_path / "adapted.pth", "--dst", tmp_path / "own.safetensors")
    with open_converted(tmp_path / "adapted.pth") as made, open_checkpoint(tmp_path / "own.safetensors") as written:
        assert same(made, written)
        assert json.loads(made.metadata["conversion"])["lossless"] is False


@pytest.mark.usefixtures("small_mappings")
def test_what_was_converted_is_read_as_it_is(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own")
    for path in (tmp_path / "own.safetensors", tmp_path / "own"):
        with open_converted(path) as checkpoint:
            assert checkpoint.layout == "safetensors"
    (tmp_path / "own" / "config.json").write_text('{"model": "glip"}')
    with pytest.raises(ModelError, match=r"its record 'config' is invalid: 'config' is missing"):
        open_converted(tmp_path / "own")


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("name", ["mmdet-glip", "transformers-swin-backbone"])
def test_a_folder_of_another_tool_is_converted(name: str, tmp_path: Path) -> None:
    """One of these has a config.json, of transformers."""
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "there", "--to", name)
    run("convert", "--src", tmp_path / "there", "--dst", tmp_path / "own.safetensors")
    assert (tmp_path / "there" / "config.json").exists() is (name != "mmdet-glip")
    with open_converted(tmp_path / "there") as made, open_checkpoint(tmp_path / "own.safetensors") as written:
        assert same(made, written)


@pytest.mark.usefixtures("small_mappings")
def test_without_its_record_a_conversion_is_of_an_unknown_table(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.safetensors")
    save_file(load_file(tmp_path / "own.safetensors"), tmp_path / "bare.safetensors")
    with open_converted(tmp_path / "bare.safetensors") as made:
        assert json.loads(made.metadata["conversion"])["unknown_table"] is True


@pytest.mark.usefixtures("small_mappings")
def test_what_is_joined_of_several_dtypes_is_float32_and_the_rest_as_stored(tmp_path: Path) -> None:
    weights = official()
    layer = "module.language_backbone.body.model.encoder.layer.0.attention.self."
    weights[f"{layer}query.weight"] = weights[f"{layer}query.weight"].half()
    weights["module.rpn.head.bias0"] = weights["module.rpn.head.bias0"].half()
    torch.save(weights, tmp_path / "mixed.pth")
    with open_converted(tmp_path / "mixed.pth") as made:
        dtypes = {name: tensor.dtype.name for name, tensor in made.tensors.items() if tensor.dtype.name != "float32"}
        assert dtypes == {"head.bias": "float16"}
        joined = torch.from_numpy(made.read("text_encoder.layers.0.attention.qkv.weight"))
    assert torch.equal(joined, torch.cat([weights[f"{layer}{n}.weight"].float() for n in ("query", "key", "value")]))


@pytest.mark.usefixtures("small_mappings")
def test_of_several_state_dicts_the_one_that_is_asked_for(tmp_path: Path) -> None:
    averaged = {name: tensor / 2 if name.endswith(".weight") else tensor for name, tensor in official().items()}
    torch.save({"model": official(), "model_ema": averaged}, tmp_path / "official.pth")
    for root in ("model", "model_ema"):
        own = tmp_path / f"{root}.safetensors"
        run("convert", "--src", tmp_path / "official.pth", "--dst", own, "--root", root)
        with open_converted(tmp_path / "official.pth", root) as made, open_checkpoint(own) as written:
            assert same(made, written)


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("what", ["stray", "wrong shape", "missing", "contradicting buffer", "resnet"])
def test_a_refusal_is_that_of_convert(what: str, tmp_path: Path) -> None:
    weights = dict(official())
    if what == "stray":
        weights["module.backbone.body.layers.0.adapter.weight"] = torch.ones(3)
    elif what == "wrong shape":
        weights["module.rpn.head.bias_lang"] = torch.ones(5)
    elif what == "missing":
        del weights["module.rpn.head.bias_lang"]
    elif what == "contradicting buffer":
        name = next(name for name in weights if name.endswith("relative_position_index"))
        weights[name] = weights[name].flip(0)
    else:
        weights = {f"layer{i}.0.conv1.weight": torch.ones(3, 3) for i in range(9)}
    torch.save(weights, tmp_path / "source.pth")
    error = refusal("convert", "--src", tmp_path / "source.pth", "--dst", tmp_path / "own.safetensors", code=5)
    with pytest.raises(PlanError) as caught:
        open_converted(tmp_path / "source.pth")
    assert [str(caught.value).split("\n")[0], list(caught.value.problems)] == [error["message"], error["problems"]]


@pytest.mark.usefixtures("small_mappings")
def test_damage_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    with open_checkpoint(tmp_path / "official.pth") as checkpoint:
        (source,) = {tensor.storage for name, tensor in checkpoint.tensors.items() if name.endswith("bias_lang")}
    data = bytearray((tmp_path / "official.pth").read_bytes())
    data[source.offset] ^= 1
    (tmp_path / "official.pth").write_bytes(data)
    with open_converted(tmp_path / "official.pth") as made:
        with pytest.raises(CorruptCheckpointError, match="CRC-32"):
            made.read("head.text_bias")
        with pytest.raises(CorruptCheckpointError, match="CRC-32"):
            list(made.chunks("head.text_bias"))
        with pytest.raises(CorruptCheckpointError, match="CRC-32"):
            made.metadata["conversion"]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    with tiny(tmp_path) as (made, _):
        made.verify_unchanged()
        with (tmp_path / "tiny.pth").open("ab") as file:
            file.write(b"x")
        with pytest.raises(CheckpointError, match="changed"):
            made.verify_unchanged()


def test_files_are_closed_whatever_happens(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(3)}, tmp_path / "other.pth")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PlanError, match="no known format"):
        open_converted(tmp_path / "other.pth")
    with tiny(tmp_path) as (made, _):
        made.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Sources and result of the largest one, and what hands it on; all together are 24 times as large."""
    wide = 2**10
    spec, table = (
        {"kind": kind, "name": f"wide{end}", "title": "wide"} for kind, end in (("spec", ""), ("table", "-t"))
    )
    shape = {"name": "{i}.weight", "each": {"i": "layers"}, "shape": [2 * wide, wide]}
    spec |= {"config": {"layers": "so many"}, "variants": {"wide": {"title": "wide", "config": {"layers": 24}}}}
    rule = {
        "source": ["{i}.a", "{i}.b"],
        "target": "{i}.weight",
        "ops": [{"op": "concat", "axis": 0, "sizes": [wide] * 2}],
    }
    (tmp_path / "wide.json").write_text(json.dumps(spec | {"tensors": [shape]}))
    (tmp_path / "wide-t.json").write_text(json.dumps(table | {"target": "wide", "rules": [rule]}))
    weights = {f"{i}.{part}": torch.full((wide, wide), float(i)) for i in range(24) for part in "ab"}
    torch.save(weights, tmp_path / "wide.pth")
    largest = 2 * wide * wide * 4
    with open_checkpoint(tmp_path / "wide.pth") as checkpoint:
        made = in_memory(checkpoint, make_plan(load_table(tmp_path / "wide-t.json"), checkpoint))
        tracemalloc.start()
        for name in made.tensors:
            assert np.all(made.read(name) == float(name.split(".")[0]))
        assert len(tensor_hashes(made)) == 24
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert largest < peak < 4 * largest
