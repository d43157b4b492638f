"""Folders, and files that are one part of several: the file to give is named, or what joins them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from converter.errors import NotACheckpointError, UnsupportedCheckpointError
from tests.support.reading import contents, loaded, refusal

STATE_DICT = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


@pytest.fixture
def dcp_folder(tmp_path: Path) -> Path:
    """A checkpoint of torch.distributed.checkpoint, written by one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save({"model": STATE_DICT}, checkpoint_id=tmp_path / "dcp")
    assert sorted(os.listdir(tmp_path / "dcp")) == [".metadata", "__0_0.distcp"]
    return tmp_path / "dcp"


@pytest.mark.parametrize("part", ["", ".metadata", "__0_0.distcp"])
def test_a_checkpoint_of_many_processes_is_named_with_what_joins_it(part: str, dcp_folder: Path) -> None:
    message = refusal(dcp_folder / part, UnsupportedCheckpointError)
    assert f"dcp_to_torch_save('{dcp_folder}', 'joined.pth'), and give joined.pth" in message
    assert ("one part of" in message) == bool(part)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_joins_a_checkpoint_of_many_processes_makes_one_that_is_read(dcp_folder: Path, tmp_path: Path) -> None:
    dcp_to_torch_save(dcp_folder, tmp_path / "joined.pth")
    assert contents(tmp_path / "joined.pth") == loaded(STATE_DICT)


ZERO = ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"]


def deepspeed(folder: Path, step: str = "global_step10", *, zero: bool = True) -> Path:
    """The files of DeepSpeed's checkpoint; `zero`: its optimizer is partitioned."""
    (folder / step).mkdir(parents=True)
    (folder / "latest").write_text(step)
    torch.save({"module": STATE_DICT, "ds_version": "0.15"}, folder / step / "mp_rank_00_model_states.pt")
    if zero:
        for name in ZERO:
            torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(8)]}}, folder / step / name)
    return folder


@pytest.mark.parametrize("script", [True, False])
def test_a_folder_of_zero_is_named_with_what_joins_it(script: bool, tmp_path: Path) -> None:
    folder = deepspeed(tmp_path)
    if script:
        (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    message = refusal(folder, UnsupportedCheckpointError)
    assert (
        f"is a DeepSpeed ZeRO checkpoint. Where you trust it, run `python zero_to_fp32.py . joined` in '{folder}'"
        in (message)
    )


@pytest.mark.parametrize("part", ["", *ZERO, "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_a_part_of_zero_sends_to_the_folder_above(part: str, tmp_path: Path) -> None:
    inner = deepspeed(tmp_path) / "global_step10"
    torch.save({"module": {"layer.weight": torch.ones(0)}}, inner / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    message = refusal(inner / part, UnsupportedCheckpointError)
    assert f"run `python zero_to_fp32.py . joined` in '{tmp_path}'" in message


def test_the_folder_above_is_named_from_inside_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(deepspeed(tmp_path) / "global_step10")
    for given in (Path(ZERO[0]), Path()):
        assert f"joined` in '{tmp_path}'" in refusal(given, UnsupportedCheckpointError)


@pytest.mark.parametrize("buffers", [0, 20])
def test_names_without_numbers_are_a_part_of_zero(buffers: int, tmp_path: Path) -> None:
    path = deepspeed(tmp_path) / "global_step10" / "mp_rank_00_model_states.pt"
    weights = {f"{i}.weight": torch.ones(0) for i in range(12)} | {f"{i}.mean": torch.ones(3) for i in range(buffers)}
    torch.save({"module": weights, "ds_version": "0.15"}, path)
    message = refusal(path, UnsupportedCheckpointError)
    assert f"12 of its {12 + buffers} tensors have no elements. Most likely it is one part of a DeepSpeed" in message
    assert f"run `python zero_to_fp32.py . joined` in '{tmp_path}'" in message


def test_a_few_tensors_without_elements_are_read(tmp_path: Path) -> None:
    weights = {str(i): torch.ones(0, 3) for i in range(9)}
    torch.save(weights, tmp_path / "a.pth")
    assert contents(tmp_path / "a.pth") == loaded(weights)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A file of torch.save, unpacked into a folder of its own."""
    torch.save({"model": STATE_DICT}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as file:
        file.extractall(tmp_path / "a folder")
    return tmp_path / "a folder" / "model"


@pytest.mark.parametrize("given", [".", "data.pkl"])
def test_an_unpacked_file_of_torch_says_how_to_pack_it_again(given: str, unpacked: Path) -> None:
    message = refusal(unpacked / given, UnsupportedCheckpointError)
    assert ("is an unpacked file of torch.save. Run" in message) == (given == ".")
    assert ("is one part of an unpacked file of torch.save. Run" in message) == (given == "data.pkl")


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs zip")
def test_what_packs_a_file_of_torch_again_makes_one_that_is_read(unpacked: Path) -> None:
    command = refusal(unpacked, UnsupportedCheckpointError).split("`")[1]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert contents(unpacked.parent / "packed.pth") == loaded(STATE_DICT)
    assert loaded(torch.load(unpacked.parent / "packed.pth")["model"]) == loaded(STATE_DICT)


def test_a_folder_with_a_pickle_beside_data_is_not_called_unpacked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    torch.save(STATE_DICT, tmp_path / "data.pkl")
    assert "Give that file" in refusal(tmp_path, NotACheckpointError)
    assert contents(tmp_path / "data.pkl") == loaded(STATE_DICT)


def test_the_last_step_is_looked_into(tmp_path: Path) -> None:
    deepspeed(tmp_path, "global_step9", zero=False)
    deepspeed(tmp_path, "global_step10")
    assert "zero_to_fp32.py" in refusal(tmp_path, UnsupportedCheckpointError)


def test_deepspeed_without_zero_has_one_file_with_the_weights(tmp_path: Path) -> None:
    folder = deepspeed(tmp_path, zero=False)
    assert "Give mp_rank_00_model_states.pt in its global_step10" in refusal(folder, NotACheckpointError)
    assert contents(folder / "global_step10" / "mp_rank_00_model_states.pt") == loaded(STATE_DICT)


def test_a_trainers_folder_with_weights_of_its_own_is_read(tmp_path: Path) -> None:
    deepspeed(tmp_path)
    save_file(STATE_DICT, tmp_path / "model.safetensors")
    assert contents(tmp_path) == loaded(STATE_DICT)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_alone_is_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / name).touch()
    message = refusal(tmp_path, UnsupportedCheckpointError)
    assert "is a LoRA adapter alone: differences, no weights." in message
    assert "merge_and_unload()" in message


def test_the_only_checkpoint_of_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("model_final.pth", "optimizer.pt", "training_args.bin", "rng_state_0.pth", "config.yaml"):
        (tmp_path / name).touch()
    assert refusal(tmp_path, NotACheckpointError).endswith(f"Give that file: {tmp_path}/model_final.pth.")


def test_several_checkpoints_of_a_folder_are_listed(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"epoch_{number}.ckpt").touch()
    message = refusal(tmp_path, NotACheckpointError)
    assert "with 7 files that may be checkpoints: 'epoch_0.ckpt', 'epoch_1.ckpt'" in message
    assert "'epoch_4.ckpt' and 2 more. Give one of them." in message


def test_an_index_of_another_name_is_what_to_give(tmp_path: Path) -> None:
    for name in ("unet.safetensors.index.json", "unet-00001-of-00002.safetensors", "unet-00002-of-00002.safetensors"):
        (tmp_path / name).touch()
    assert refusal(tmp_path, NotACheckpointError).endswith("unet.safetensors.index.json.")


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"pytorch_model-0000{number}-of-00002.bin").touch()
    assert "without their index. Get the .index.json file" in refusal(tmp_path, NotACheckpointError)


@pytest.mark.parametrize(
    ("files", "framework"),
    [
        (["saved_model.pb", "variables"], "TensorFlow"),
        (["checkpoint", "model.ckpt-5.index", "model.ckpt-5.data-00000-of-00001"], "TensorFlow"),
        (["tf_model.h5", "config.json"], "TensorFlow"),
        (["flax_model.msgpack", "config.json"], "Flax"),
    ],
)
def test_a_model_of_another_framework_is_named(files: list[str], framework: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert f"with a model of {framework}. Give the PyTorch checkpoint." in refusal(tmp_path, NotACheckpointError)


def test_names_with_control_characters_are_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J\n.pth").touch()
    refusal(tmp_path, NotACheckpointError)
    (tmp_path / "b.pth").touch()
    refusal(tmp_path, NotACheckpointError)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", forbidden)
    assert "Permission denied" in refusal(tmp_path, NotACheckpointError)


def test_of_a_large_folder_some_names_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.checkpoint.folders._ENTRIES", 10)
    for number in range(20):
        (tmp_path / f"{number}.pth").touch()
    assert "with 10 files that may be checkpoints" in refusal(tmp_path, NotACheckpointError)
