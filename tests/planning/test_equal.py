"""Names of one checkpoint that hold the same numbers are found, and little of it is read."""

from __future__ import annotations

from pathlib import Path

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
