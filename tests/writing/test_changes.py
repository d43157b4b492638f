"""A converted file beside its own record: each tensor that is not as the conversion wrote it is named."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.errors import ModelError
from converter.writing.changes import Changes, changes
from tests.support.changed_file import flip
from tests.support.small_files import official, run
from tests.support.small_formats import small_tables

NAME = "head.box.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `convert` wrote: one.safetensors, a folder, a folder of shards, and mmdet.pth of another format."""
    folder = tmp_path_factory.mktemp("written")
    with small_tables(tmp_path_factory.mktemp("tables") / "mappings"):
        torch.save({"model": official()}, folder / "official.pth")
        source = ("convert", "--src", folder / "official.pth", "--dst")
        run(*source, folder / "one.safetensors")
        run(*source, folder / "whole")
        run(*source, folder / "shards", "--max-shard-size", "20kB")
        run(*source, folder / "mmdet.pth", "--to", "mmdet-glip")
        yield folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def changes_in(path: Path) -> Changes | None:
    with open_checkpoint(path) as checkpoint:
        return changes(checkpoint, path)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def save(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    """The file again, with other tensors."""
    save_file(tensors, path, metadata_of(path) | metadata)
    return path


@pytest.mark.parametrize("name", ["one.safetensors", "whole", "shards", "whole/model.safetensors", "mmdet.pth"])
def test_what_was_written_is_as_recorded(name: str, written: Path) -> None:
    found = changes_in(written / name)
    assert found is not None
    assert not found
    assert found.recorded > 200
    assert found.summary == f"all {found.recorded} tensors are as recorded"


@pytest.mark.parametrize(
    ("name", "file"),
    [("one.safetensors", ""), ("whole", "model.safetensors"), ("whole/model.safetensors", ""), ("shards", "*00002*")],
)
def test_one_bit_is_enough(name: str, file: str, copy: Path) -> None:
    (path,) = (copy / name).glob(file) if file else [copy / name]
    tensor = next(iter(load_file(path)))
    flip(path, tensor)
    found = changes_in(copy / name)
    assert found is not None
    assert found.named == [("changed", tensor)]
    assert found.summary == f"1 tensor of {found.recorded} is not as recorded (changed: {tensor})"


def test_of_an_archive_too(copy: Path) -> None:
    """Whose bytes have checksums: who saves it again has to keep the record, as torch does for nobody."""
    with open_checkpoint(copy / "mmdet.pth") as checkpoint:
        record, names = json.loads(checkpoint.metadata["conversion"]), list(checkpoint.tensors)
    record["tensors"][names[3]] = record["tensors"][names[4]]
    with open_checkpoint(copy / "mmdet.pth") as checkpoint:
        found = changes(_with(checkpoint, json.dumps(record)))
    assert found is not None
    assert found.changed == (names[3],)


def _with(checkpoint: Any, record: str) -> Any:
    from dataclasses import replace

    return replace(checkpoint, metadata={**checkpoint.metadata, "conversion": record})


Tensors = dict[str, torch.Tensor]
EDITS: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, tuple[str, ...]]]] = {
    "a value": (lambda t: {**t, NAME: t[NAME] + 1}, {"changed": (NAME,)}),
    "a tensor taken out": (lambda t: {n: v for n, v in t.items() if n != NAME}, {"missing": (NAME,)}),
    "a tensor put in": (lambda t: {**t, "mine": t[NAME].clone()}, {"added": ("mine",)}),
    "a tensor renamed": (
        lambda t: {n if n != NAME else "mine": v for n, v in t.items()}, {"missing": (NAME,), "added": ("mine",)}
    ),
    "two at once": (lambda t: {**t, "mine": t[NAME], NAME: t[NAME] * 2}, {"changed": (NAME,), "added": ("mine",)}),
    "another dtype": (lambda t: {**t, NAME: t[NAME].double()}, {"changed": (NAME,)}),
    "another size": (lambda t: {**t, NAME: t[NAME][:-1].clone()}, {"changed": (NAME,)}),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_every_kind_of_change_is_told(edit: str, copy: Path) -> None:
    change, expected = EDITS[edit]
    path = copy / "one.safetensors"
    save(path, change(load_file(path)))
    found = changes_in(path)
    assert found is not None
    assert {"changed": found.changed, "missing": found.missing, "added": found.added} == {
        "changed": (), "missing": (), "added": (), **expected,
    }  # fmt: skip


@pytest.mark.parametrize("as_what", ["int32", "shape"])
def test_the_same_bytes_as_something_else_are_told(as_what: str, copy: Path) -> None:
    path = copy / "one.safetensors"
    tensors = load_file(path)
    tensors[NAME] = tensors[NAME].view(torch.int32) if as_what == "int32" else tensors[NAME].flatten()
    found = changes_in(save(path, tensors))
    assert found is not None
    assert found.relabelled
    assert not found.named
    assert "shape or a dtype" in found.problems[0]


def test_a_folder_from_which_a_tensor_is_gone_is_told(copy: Path) -> None:
    """Although its record then names other tensors: it is the folder's own."""
    path = copy / "whole" / "model.safetensors"
    save(path, {name: tensor for name, tensor in load_file(path).items() if name != NAME})
    for given in (path, copy / "whole"):
        found = changes_in(given)
        assert found is not None
        assert found.missing == (NAME,)


def test_a_folder_whose_file_was_saved_by_another_tool_is_told(copy: Path) -> None:
    """Nothing in that file says any more that it was converted: its name stands in the record."""
    path, record = copy / "whole" / "model.safetensors", copy / "whole" / "conversion.json"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != NAME}, path)
    found = changes_in(path)
    assert found is not None
    assert found.missing == (NAME,)
    # records of earlier releases do not name files, and are those of the folder that is given
    content = {key: value for key, value in json.loads(record.read_text()).items() if key != "folder"}
    record.write_text(json.dumps(content))
    found = changes_in(copy / "whole")
    assert found is not None
    assert found.missing == (NAME,)
    assert changes_in(path) is None


def test_without_a_record_nothing_is_said(copy: Path) -> None:
    assert changes_in(copy / "official.pth") is None
    save_file(
        {"a": torch.zeros(2)}, copy / "whole" / "others.safetensors"
    )  # beside it lies the record of model.safetensors
    assert changes_in(copy / "whole" / "others.safetensors") is None


RECORDS: dict[str, str] = {
    "no JSON": "{",
    "a name twice": '{"tensors": {"a": "0", "a": "1"}, "sha256": ""}',
    "a list": "[]",
    "no hashes": '{"sha256": ""}',
    "hashes of another kind": '{"tensors": ["a"], "sha256": ""}',
    "a hash that is a number": '{"tensors": {}, "sha256": 7}',
    "too much": f'{{"tensors": {{}}, "sha256": "", "x": [{"0," * 400_000}0]}}',
    "too deep": f'{{"tensors": {{}}, "sha256": "", "x": {"[" * 200}{"]" * 200}}}',
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_is_not_sound_is_refused(kind: str, copy: Path) -> None:
    with open_checkpoint(copy / "one.safetensors") as checkpoint, pytest.raises(ModelError, match="record of the conv"):
        changes(_with(checkpoint, RECORDS[kind]))
    (copy / "whole" / "conversion.json").write_text(RECORDS[kind])
    with pytest.raises(ModelError, match=r"conversion\.json: its record"):
        changes_in(copy / "whole")


def test_names_and_hashes_of_a_stranger_do_no_harm(copy: Path) -> None:
    record = {"tensors": {"\x1b[2J": 7, NAME: None, "x" * 5000: {}}, "sha256": "", "folder": 7}
    with open_checkpoint(copy / "one.safetensors") as checkpoint:
        found = changes(_with(checkpoint, json.dumps(record)))
    assert found is not None
    assert (found.changed, len(found.missing)) == ((NAME,), 2)
    assert all(line.isprintable() for line in [*found.problems, found.warning])
    assert max(map(len, found.problems)) < 300


def test_large_tensors_are_not_held(tmp_path: Path) -> None:
    hashes = {"large": "0" * 64}
    save_file({"large": torch.zeros(8 << 20)}, tmp_path / "large.safetensors", {
        "conversion": json.dumps({"tensors": hashes, "sha256": "0" * 64})
    })  # fmt: skip
    tracemalloc.start()
    found = changes_in(tmp_path / "large.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.changed == ("large",)
    assert peak < 4 << 20
