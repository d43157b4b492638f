"""What lies on the disk afterwards: the same bytes each time, their origin, and the config that other tools read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from converter.checkpoint import DTYPES, open_checkpoint
from converter.errors import DestinationError, ModelError, UnsupportedCheckpointError
from converter.glip import GLIP
from converter.mapping.load import load_table
from converter.planning.fit import make_plan
from converter.planning.plan import Tensor
from converter.writing.shards import lay_out
from tests.support.small_files import equal, official, official_of, refusal, run, tensors_in
from tests.support.tiny import SPEC, TABLE, tiny_weights, write_table

pytestmark = pytest.mark.usefixtures("small_mappings")


def test_glip_is_not_written_as_pth(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    error = refusal("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.pth", code=6)
    assert "End --dst in '.safetensors'" in error["message"]
    assert not (tmp_path / "own.pth").exists()


def test_a_pth_is_written_the_same_each_time_and_says_where_it_comes_from(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    for name in ("a.pth", "b.pth"):
        run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / name, "--to", "mmdet-glip")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with open_checkpoint(tmp_path / "a.pth") as checkpoint:
        ledger = json.loads(checkpoint.metadata["conversion"])
        assert (ledger["table"]["name"], ledger["through"]["name"]) == ("glip-official", "mmdet-glip")
        assert ledger["tensors"].keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("name", ["transformers-swin", "transformers-swin-backbone", "transformers-bert"])
def test_a_folder_has_the_config_that_transformers_reads(name: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "hf", "--to", name)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == name.split("-")[1]
    assert all(not (isinstance(value, str) and value.startswith("=")) for value in config.values())
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers refuses files without it


@pytest.mark.parametrize(
    ("name", "arguments", "written"),
    [
        ("transformers-swin", [], "float32"),
        ("transformers-swin-backbone", ["--dtype", "bfloat16"], "bfloat16"),
        ("transformers-bert", ["--dtype", "float16"], "float16"),
        ("mixed", [], None),
    ],
)
def test_the_config_states_the_dtype_that_was_written(
    name: str, arguments: list[str], written: str | None, tmp_path: Path
) -> None:
    weights = official()
    if name == "mixed":
        name, key = "transformers-swin", "module.backbone.body.patch_embed.norm.bias"
        weights[key] = weights[key].half()
    torch.save(weights, tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "hf", "--to", name, *arguments)
    assert json.loads((tmp_path / "hf" / "config.json").read_text()).get("torch_dtype") == written


def test_what_holds_a_part_says_so_and_does_not_load_as_the_whole(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors_in("mmpretrain-glip")}, tmp_path / "swin.pth")
    out = tmp_path / "swin.safetensors"
    result = run("convert", "--src", tmp_path / "swin.pth", "--dst", out)
    assert "from mmpretrain-glip to glip, backbone alone" in result.output
    with pytest.raises(ModelError, match="holds the backbone of GLIP alone"):
        GLIP.from_pretrained(out)


def test_a_folder_with_a_dot_in_its_name_is_one(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    shards = ("--max-shard-size", "20kB")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own.d", "--keep-residue", *shards)
    assert (tmp_path / "own.d" / "model.safetensors.index.json").is_file()
    run("convert", "--src", tmp_path / "own.d", "--dst", tmp_path / "back.pth", "--to", "glip-official")
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official_of(tmp_path / "official.pth"))
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "o.safetensors", *shards, code=2)


def test_no_file_is_written_that_is_not_read_again(tmp_path: Path) -> None:
    """One of more tensors than a header is read with, as the library writes it; and its shards, which are."""
    many = {f"layers.{i}": np.zeros(1, np.float32) for i in range(30_000)}
    save_file(many, tmp_path / "many.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="Save the weights in several files"):
        open_checkpoint(tmp_path / "many.safetensors")
    tensors = [Tensor(name, (1,), DTYPES["float32"]) for name in many]
    (whole,) = lay_out(tensors, "model.safetensors")
    with pytest.raises(DestinationError, match=r"the header of 30000 tensors would have more than .*--max-shard-size"):
        whole.header({})
    for shard in lay_out(tensors, "model.safetensors", max_shard_size=40_000):
        shard.header({})


def test_a_whole_number_among_the_tensors_does_not_hide_the_dtype_of_the_weights(tmp_path: Path) -> None:
    counter = {"name": "counter", "shape": [], "dtype": "int64"}
    files = {"saved_as": {"config": {"dtype": "=dtype", "model_type": "tiny"}}, "tensors": [*SPEC["tensors"], counter]}
    table = write_table(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(SPEC | files))
    rules = [*TABLE["rules"], {"source": "counter", "target": "counter"}]
    table.write_text(json.dumps(TABLE | {"rules": rules}))
    torch.save(tiny_weights() | {"module.counter": torch.tensor(7)}, tmp_path / "source.pth")
    with open_checkpoint(tmp_path / "source.pth") as checkpoint:
        config = make_plan(load_table(table), checkpoint).config_of_library
    assert config == {"model_type": "tiny", "dtype": "float32"}
