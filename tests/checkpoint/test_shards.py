"""Files of torch.save in shards: read as one, and as the plain file holds them. Safetensors: test_safetensors.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError, CorruptCheckpointError, NotACheckpointError, RootError
from tests.support.reading import contents, loaded, refusal

STATE_DICT = {
    f"layer.{i}.{name}": torch.arange(i, i + 60.0).view(shape).to(dtype)
    for i in range(5)
    for name, shape, dtype in (("weight", (6, 10), torch.float32), ("bias", (60,), torch.float16))
}
SHARDS = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
INDEX = "pytorch_model.bin.index.json"
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """`STATE_DICT` in three shards, as huggingface_hub saves them."""
    save_torch_state_dict(STATE_DICT, tmp_path, safe_serialization=False, max_shard_size=750)
    assert sorted(os.listdir(tmp_path)) == [*SHARDS, INDEX]
    return tmp_path / INDEX


def weight_map(index: Path) -> dict[str, str]:
    return json.loads(index.read_text())["weight_map"]


def change(index: Path, **entries: str | None) -> None:
    changed = {**weight_map(index), **entries}
    changed = {key: name for key, name in changed.items() if name is not None}
    index.write_text(json.dumps({"metadata": {}, "weight_map": changed}))


def test_shards_hold_what_the_plain_file_holds(index: Path, tmp_path: Path) -> None:
    torch.save(STATE_DICT, tmp_path / "plain.pth")
    found = contents(index)
    assert found == contents(tmp_path / "plain.pth") == loaded(STATE_DICT)
    for name, tensor in STATE_DICT.items():
        assert found[name] == loaded({name: tensor})[name]


def test_shards_of_the_legacy_layout(index: Path) -> None:
    for name in SHARDS:
        torch.save(torch.load(index.parent / name), index.parent / name, **LEGACY)
    assert contents(index) == loaded(STATE_DICT)


def test_layout_size_and_files(index: Path) -> None:
    with open_checkpoint(index) as checkpoint:
        found = checkpoint.layout, checkpoint.size, [file.name for file in checkpoint.files], checkpoint.root
    assert found == ("torch-sharded", sum((index.parent / name).stat().st_size for name in SHARDS), SHARDS, "")


def test_a_folder_of_shards_is_that_of_its_index(index: Path) -> None:
    assert contents(index.parent) == contents(index)


def test_storages_of_two_shards_are_never_taken_for_one(index: Path) -> None:
    with open_checkpoint(index) as checkpoint:
        keys = {name: tensor.storage.key for name, tensor in checkpoint.tensors.items()}
    assert len(set(keys.values())) == len(STATE_DICT)


def test_tensors_of_one_shard_may_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save({"a": whole[:6], "b": whole[6:]}, tmp_path / "1.bin")
    torch.save({"c": torch.ones(2)}, tmp_path / "2.bin")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.bin", "b": "1.bin", "c": "2.bin"}}))
    with open_checkpoint(tmp_path) as checkpoint:
        a, b, c = (checkpoint.tensors[name].storage.key for name in "abc")
    assert (a == b, a == c) == (True, False)


def test_what_the_pickles_name_and_skip_is_of_all_shards(index: Path) -> None:
    first, second, _ = (index.parent / name for name in SHARDS)
    torch.save({**torch.load(first), "epoch": 3}, first)
    torch.save({**torch.load(second), "when": torch.Size([2])}, second)
    with open_checkpoint(index) as checkpoint:
        assert any("epoch" in sentence for sentence in checkpoint.skipped)
        assert {"torch.FloatStorage", "torch.HalfStorage", "torch.Size"} <= set(checkpoint.globals)
        assert "'when' is not a tensor" in checkpoint.objects["when"]


def test_shards_that_are_links_as_in_the_hubs_cache(index: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (*SHARDS, INDEX):
        (snapshot / name).symlink_to(Path("..") / name)
    assert contents(snapshot) == loaded(STATE_DICT)


def test_a_root_cannot_be_chosen(index: Path) -> None:
    assert "Leave out --root" in refusal(index, RootError, root="model")


def test_safetensors_are_preferred(index: Path) -> None:
    save_file({"only": torch.ones(2)}, index.parent / "model.safetensors")
    assert list(contents(index.parent)) == ["only"]


def test_one_bin_file_in_a_folder(tmp_path: Path) -> None:
    torch.save(STATE_DICT, tmp_path / "pytorch_model.bin")
    assert contents(tmp_path) == loaded(STATE_DICT)


def test_a_folder_with_shards_and_a_file_of_one_kind_is_refused(index: Path) -> None:
    torch.save(STATE_DICT, index.parent / "pytorch_model.bin")
    message = refusal(index.parent, NotACheckpointError)
    assert f"both {INDEX} and pytorch_model.bin" in message


def test_one_shard_is_refused_with_the_index_to_give(index: Path) -> None:
    message = refusal(index.parent / SHARDS[1], NotACheckpointError)
    assert f"one of the 3 shards of '{INDEX}'" in message


def test_one_shard_of_safetensors_is_refused_with_the_index_to_give(tmp_path: Path) -> None:
    save_torch_state_dict(STATE_DICT, tmp_path, max_shard_size=750)
    message = refusal(tmp_path / "model-00003-of-00003.safetensors", NotACheckpointError)
    assert "one of the 3 shards of 'model.safetensors.index.json'" in message


@pytest.mark.parametrize("beside", ["nothing", "an index of others", "an index of it alone", "a broken index"])
def test_a_shard_that_no_index_lists_with_others_is_read(beside: str, index: Path) -> None:
    shard = index.parent / SHARDS[0]
    own = torch.load(shard)
    if beside == "nothing":
        index.unlink()
    elif beside == "a broken index":
        index.write_text("{")
    else:
        names = dict.fromkeys(own, SHARDS[0] if beside == "an index of it alone" else SHARDS[1])
        index.write_text(json.dumps({"weight_map": names}))
    assert contents(shard) == loaded(own)
    with open_checkpoint(shard) as checkpoint:
        noted = [sentence for sentence in checkpoint.skipped if "the other shards: this is one of 3" in sentence]
    assert len(noted) == (beside != "an index of it alone")


def test_a_checkpoint_that_is_its_only_shard_lacks_none(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model-00001-of-00001.bin"
    torch.save(STATE_DICT, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.skipped == ()


def test_missing_shards_are_named(index: Path) -> None:
    (index.parent / SHARDS[1]).unlink()
    assert f"lists '{SHARDS[1]}', which is not there" in refusal(index, CorruptCheckpointError)
    (index.parent / SHARDS[2]).unlink()
    assert f"'{SHARDS[1]}', '{SHARDS[2]}', 2 shards which are not there" in refusal(index, CorruptCheckpointError)


def test_of_many_missing_shards_some_are_named(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(9)}}))
    message = refusal(index, CorruptCheckpointError)
    assert "'4.safetensors' and 4 more, 9 shards which are not there" in message


def test_a_tensor_in_two_shards_is_named_with_both(index: Path) -> None:
    name = next(key for key, shard in weight_map(index).items() if shard == SHARDS[0])
    last = index.parent / SHARDS[2]
    torch.save({**torch.load(last), name: torch.ones(1)}, last)
    for listed in (SHARDS[0], SHARDS[2]):
        change(index, **{name: listed})
        message = refusal(index, CorruptCheckpointError)
        assert f"tensor '{name}' is in both '{SHARDS[0]}' and '{SHARDS[2]}'" in message


def test_a_tensor_that_no_shard_holds_is_named_with_its_shard(index: Path) -> None:
    change(index, extra=SHARDS[1])
    message = refusal(index, CorruptCheckpointError)
    assert f"lists tensor 'extra' in shard '{SHARDS[1]}', which does not hold it" in message


def test_a_tensor_in_another_shard_than_listed_is_named_with_both(index: Path) -> None:
    name = next(key for key, shard in weight_map(index).items() if shard == SHARDS[0])
    change(index, **{name: SHARDS[1]})
    assert f"'{name}' in shard '{SHARDS[1]}', but it is in '{SHARDS[0]}'" in refusal(index, CorruptCheckpointError)


def test_a_tensor_that_the_index_does_not_list_is_named(index: Path) -> None:
    name = next(key for key, shard in weight_map(index).items() if shard == SHARDS[0])
    change(index, **{name: None})
    assert f"tensor '{name}' is in shard '{SHARDS[0]}'" in refusal(index, CorruptCheckpointError)


@pytest.mark.parametrize(
    "name", ["../x.bin", "sub/x.bin", "/etc/passwd", "", ".", "..", "a\0b", "a\x1b[2J", "n" * 9999]
)
def test_a_shard_elsewhere_is_refused(name: str, index: Path) -> None:
    change(index, extra=name)
    refusal(index)


@pytest.mark.parametrize(("name", "said"), [(INDEX, "lists itself"), ("other.index.json", "lists the index")])
def test_an_index_is_no_shard(name: str, said: str, index: Path) -> None:
    change(index, extra=name)
    assert said in refusal(index, CorruptCheckpointError)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"weight_map": {"w": 1}}', "<html>"])
def test_an_index_that_is_none_is_refused(text: str, index: Path) -> None:
    index.write_text(text)
    refusal(index, CorruptCheckpointError)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_shard_that_is_a_program_is_refused_by_its_name(index: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), index.parent / SHARDS[1])
    with pytest.raises(NotACheckpointError, match=f"{SHARDS[1]}: is a TorchScript"):
        open_checkpoint(index)


def test_a_shard_with_a_state_dict_in_it_is_refused_by_its_name(index: Path) -> None:
    shard = index.parent / SHARDS[1]
    torch.save({"model": torch.load(shard)}, shard)
    with pytest.raises(CheckpointError, match=f"{SHARDS[1]}: holds its tensors in 'model'"):
        open_checkpoint(index)


def test_a_shard_that_was_cut_off_is_refused_by_its_name(index: Path) -> None:
    shard = index.parent / SHARDS[1]
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(CorruptCheckpointError, match=SHARDS[1]):
        open_checkpoint(index)


def test_too_many_shards_are_not_opened(index: Path) -> None:
    change(index, **{f"w{i}": f"{i}.bin" for i in range(2000)})
    assert "2003 shards, and 1000 is the limit" in refusal(index)


def test_files_are_closed_when_an_index_is_refused(index: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    change(index, extra=SHARDS[2])
    refusal(index)
    refusal(index.parent / SHARDS[0])
    assert len(os.listdir("/proc/self/fd")) == before
