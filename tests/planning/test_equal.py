"""Names of one checkpoint that hold the same numbers are found, and little of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.storage import Storage
from converter.planning.equal import same_numbers


def groups(path: Path) -> set[frozenset[str]]:
    with open_checkpoint(path) as checkpoint:
        found = same_numbers(checkpoint)
        assert sum(map(len, found)) == len({name for names in found for name in names})
        return set(map(frozenset, found))


def test_names_of_one_module_are_found_without_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save writes shared memory once: the names say where it lies."""
    head = torch.nn.Linear(300, 200)
    model = torch.nn.ModuleDict({"head": head, "decoder": torch.nn.ModuleDict({"head": head})})
    torch.save(model.state_dict(), path := tmp_path / "shared.pth")
    monkeypatch.setattr(Storage, "stream", lambda *_: pytest.fail("bytes of a tensor were read"))
    assert groups(path) == {frozenset({f"head.{p}", f"decoder.head.{p}"}) for p in ("weight", "bias")}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_copies_are_found_by_their_numbers(suffix: str, tmp_path: Path) -> None:
    """However they lie in the file; what differs in one number far inside is no copy."""
    weight = torch.randn(40, 300)
    near = weight.clone()
    near[17, 123] += 1
    tensors = {"a": weight, "b": weight.clone(), "near": near, "other": torch.randn(40, 300), "half": weight.half()}
    if suffix == "pth":
        torch.save(tensors | {"c": weight.T.contiguous().T}, path := tmp_path / "copies.pth")
    else:
        save_file(tensors, path := tmp_path / "copies.safetensors")
    assert groups(path) == {frozenset("abc" if suffix == "pth" else "ab")}


def test_what_is_equal_by_chance_is_no_copy(tmp_path: Path) -> None:
    """Fresh norms, and buffers of integers, of which every layer has its own."""
    index = torch.arange(9)
    path = tmp_path / "fresh.safetensors"
    save_file(
        {f"{i}.{name}": t.clone() for i in range(2) for name, t in (("n", torch.ones(8)), ("index", index))}, path
    )
    assert groups(path) == set()


def test_one_memory_is_one_tensor_whatever_it_holds(tmp_path: Path) -> None:
    ones = torch.ones(8)
    torch.save({"a": ones, "b": ones, "c": ones.clone(), "whole": torch.ones(16)}, path := tmp_path / "ones.pth")
    assert groups(path) == {frozenset("ab")}


def test_views_that_are_larger_than_what_is_stored_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of some kilobytes may have any number of them, each of 30 MB."""
    memory, weight = torch.randn(5700), torch.randn(9, 9)
    views = {f"view.{at}": memory.as_strided((2800, 2800), (1, 1), at) for at in range(100)}
    expanded = {f"expanded.{at}": memory[at : at + 2].expand(4000, 2) for at in range(2)}
    torch.save(views | expanded | {"a": weight, "b": weight.clone()}, path := tmp_path / "views.pth")
    assert path.stat().st_size < 60_000
    monkeypatch.setattr(Storage, "read_into", lambda *_: pytest.fail("a view was read"))
    assert groups(path) == {frozenset("ab")}


def test_many_views_that_overlap_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, weight = torch.arange(4096) % 2 * 1.0, torch.randn(9, 9)
    views = {f"view.{at}": memory[2 * at : 2 * at + 2048] for at in range(1000)}
    torch.save(views | {"a": weight, "b": weight.clone()}, path := tmp_path / "views.pth")
    read: list[int] = []
    stream = Storage.stream

    def counted(self: Storage, start: int, stop: int, *more: Any) -> Iterator[memoryview]:
        read.append(stop - start)
        return stream(self, start, stop, *more)

    monkeypatch.setattr(Storage, "stream", counted)
    assert groups(path) == {frozenset("ab")}
    assert sum(read) < path.stat().st_size


def test_parts_of_one_memory_are_compared(tmp_path: Path) -> None:
    """Wrapped models keep all weights in one flat tensor, and may save it beside those."""
    flat = torch.randn(200).repeat(2)
    torch.save({"flat": flat, "a": flat[:200], "b": flat[200:]}, path := tmp_path / "flat.pth")
    assert groups(path) == {frozenset("ab")}
