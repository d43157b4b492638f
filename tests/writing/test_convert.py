"""What is written is what the table says, bit for bit, the same every time, and its ledger can be recomputed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import CorruptCheckpointError, DestinationError, PlanError
from converter.mapping.load import load_table
from converter.mapping.table import Table
from converter.planning.fit import make_plan
from converter.writing.buffers import verify_left_out
from converter.writing.convert import Conversion, convert
from tests.support.tiny import expected_target, tiny_weights, write_table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    folder = tmp_path / "tables"
    folder.mkdir()
    return load_table(write_table(folder))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.pth"
    torch.save({"model": tiny_weights(), "model_ema": tiny_weights(seed=1)}, path)
    return path


def run(source: Path, table: Table, destination: Path, *, dtype: str | None = None, **options: Any) -> Conversion:
    with open_checkpoint(source) as checkpoint:
        return convert(checkpoint, make_plan(table, checkpoint, dtype=dtype), destination, **options)


def bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()


def assert_holds(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in expected.items()}


def save_zip(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"model": weights}, path)


def save_legacy(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=False)


def save_bare(weights: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(weights, path)


def save_safetensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file({k: v.numpy().copy(order="C") for k, v in weights.items()}, path)


def save_shards(weights: dict[str, torch.Tensor], path: Path) -> None:
    names = {key: f"s-{number % 2}.bin" for number, key in enumerate(weights)}
    for shard in sorted(set(names.values())):
        torch.save({key: value for key, value in weights.items() if names[key] == shard}, path.with_name(shard))
    path.write_text(json.dumps({"weight_map": names}))


FILES = {
    save_zip: "s.pth", save_legacy: "s.pth", save_bare: "s.pth", save_safetensors: "s.safetensors",
    save_shards: "s.bin.index.json",
}  # fmt: skip


@pytest.mark.parametrize("save", FILES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("layers", [2, 3])
def test_every_op_and_every_source_format(save: Any, layers: int, table: Table, tmp_path: Path) -> None:
    weights = tiny_weights(layers)
    path = tmp_path / FILES[save]
    save(weights, path)
    run(path, table, tmp_path / "out.safetensors")
    assert_holds(load_file(tmp_path / "out.safetensors"), expected_target(weights, layers))


def test_converting_twice_gives_the_same_bytes(source: Path, table: Table, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        run(source, table, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_reverse_plan_gives_back_the_source(source: Path, table: Table, tmp_path: Path) -> None:
    run(source, table, tmp_path / "out.safetensors")
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(table, checkpoint)
    with open_checkpoint(tmp_path / "out.safetensors") as converted:
        convert(converted, plan.reverse(), tmp_path / "back.safetensors")
    kept = {k: v.numpy() for k, v in tiny_weights().items() if "position_ids" not in k and "training" not in k}
    assert_holds(load_file(tmp_path / "back.safetensors"), kept)


def test_the_file_describes_itself(source: Path, table: Table, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    done = run(source, table, path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {"model": "tiny", "variant": "tiny-2", "config": {"layers": 2, "width": 4}}
    ledger = json.loads(metadata["conversion"])
    assert ledger == done.ledger
    sha256 = hashlib.sha256(table.path.read_bytes()).hexdigest()
    assert ledger["table"] == {"name": "tiny-table", "sha256": sha256, "custom": True}
    assert ledger["lossless"] is True
    assert [out["name"] for out in ledger["left_out"]] == ["module.position_ids", "module.training.weight"]


def test_every_hash_can_be_recomputed(source: Path, table: Table, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    ledger = run(source, table, path).ledger

    def line(name: str, array: np.ndarray) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return f"{name} {array.dtype} {list(array.shape)} {digest}"

    def digest(tensors: dict[str, np.ndarray]) -> str:
        return hashlib.sha256("\n".join(sorted(line(*item) for item in tensors.items())).encode()).hexdigest()

    tensors = load_file(path)
    assert ledger["tensors"] == {k: hashlib.sha256(bits(v)[2]).hexdigest() for k, v in tensors.items()}
    assert ledger["sha256"] == digest(tensors)
    kept = {k: v.numpy() for k, v in tiny_weights().items() if "position_ids" not in k and "training" not in k}
    assert ledger["source"]["sha256"] == digest(kept)


def test_data_is_aligned_and_without_gaps(source: Path, table: Table, tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    run(source, table, path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert length % 8 == 0
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [end for _, end in spans] == [start for start, _ in spans[1:]] + [len(data) - 8 - length]
    sizes = {"F32": 4, "F16": 2, "I64": 8}
    assert all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for e in header.values())


def test_a_folder_gets_the_hubs_names(source: Path, table: Table, tmp_path: Path) -> None:
    run(source, table, tmp_path / "one")
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"model.safetensors", "config.json", "conversion.json"}
    assert_holds(load_file(tmp_path / "one" / "model.safetensors"), expected_target(tiny_weights()))


def test_shards_hold_everything_once(source: Path, table: Table, tmp_path: Path) -> None:
    done = run(source, table, tmp_path / "many", max_shard_size=300)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(done.files) > 3
    assert done.files[0] == f"model-00001-of-{len(done.files):05d}.safetensors"
    found: dict[str, np.ndarray] = {}
    for name in done.files:
        shard = load_file(tmp_path / "many" / name)
        assert sum(v.nbytes for v in shard.values()) <= 300
        assert all(index["weight_map"][key] == name for key in shard)
        found |= shard
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in found.values())
    assert_holds(found, expected_target(tiny_weights()))
    with open_checkpoint(tmp_path / "many") as checkpoint:
        assert set(checkpoint.tensors) == set(found)


def test_a_tensor_larger_than_a_shard_is_refused(source: Path, table: Table, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"merge\.weight has 256 bytes"):
        run(source, table, tmp_path / "many", max_shard_size=200)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_stated_dtype_is_written(dtype: str, source: Path, table: Table, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch

    ledger = run(source, table, tmp_path / "out.safetensors", dtype=dtype).ledger
    assert ledger["lossless"] is (dtype == "float64")
    found = load_torch(tmp_path / "out.safetensors")
    for name, value in expected_target(tiny_weights()).items():
        expected = torch.from_numpy(np.ascontiguousarray(value)).to(getattr(torch, dtype))
        torch.testing.assert_close(found[name].reshape(expected.shape), expected, rtol=0, atol=0, equal_nan=True)


def test_a_value_that_does_not_fit_the_dtype_stops_it(table: Table, tmp_path: Path) -> None:
    weights = tiny_weights()
    weights["module.scalar"] = torch.tensor(1e6)
    torch.save(weights, tmp_path / "s.pth")
    with pytest.raises(PlanError, match=r"module\.scalar: the value 1e\+06 at flat index 0"):
        run(tmp_path / "s.pth", table, tmp_path / "out.safetensors", dtype="float16")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "buffer", [torch.arange(8)[None], torch.arange(7)[None] * 2, torch.zeros(1).expand(1, 7), torch.arange(7)]
)
def test_a_buffer_that_contradicts_the_config_is_refused(buffer: torch.Tensor, table: Table, tmp_path: Path) -> None:
    torch.save(tiny_weights() | {"module.position_ids": buffer}, tmp_path / "s.pth")
    with open_checkpoint(tmp_path / "s.pth") as checkpoint:
        plan = make_plan(table, checkpoint)
        with pytest.raises(PlanError, match="1 tensors contradict tiny-2"):
            verify_left_out(checkpoint, plan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.float64])
def test_a_buffer_may_have_been_cast(dtype: torch.dtype, table: Table, tmp_path: Path) -> None:
    torch.save(tiny_weights() | {"module.position_ids": torch.arange(7, dtype=dtype)[None]}, tmp_path / "s.pth")
    with open_checkpoint(tmp_path / "s.pth") as checkpoint:
        verify_left_out(checkpoint, make_plan(table, checkpoint))


@pytest.mark.parametrize("change", ["truncated", "rewritten"])
def test_a_source_that_changes_meanwhile_is_noticed(change: str, source: Path, table: Table, tmp_path: Path) -> None:
    def tamper(count: int) -> None:
        if change == "truncated":
            os.truncate(source, 1000)
        else:
            os.utime(source, ns=(1, 1))

    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptCheckpointError):
        run(source, table, tmp_path / "out.safetensors", on_bytes=tamper)
    assert sorted(tmp_path.iterdir()) == before


def test_damage_in_a_tensor_is_noticed_and_nothing_is_left(source: Path, table: Table, tmp_path: Path) -> None:
    data = bytearray(source.read_bytes())
    position = data.index(tiny_weights()["module.merge.weight"].numpy().tobytes())
    data[position] ^= 1
    source.write_bytes(data)
    with pytest.raises(CorruptCheckpointError):
        run(source, table, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_bytes_reported_add_up(source: Path, table: Table, tmp_path: Path) -> None:
    reported: list[int] = []
    done = run(source, table, tmp_path / "out.safetensors", on_bytes=reported.append)
    assert sum(reported) == done.size == sum(v.nbytes for v in expected_target(tiny_weights()).values())
