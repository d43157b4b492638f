"""Masks of shifted windows, which old models save: those of a picture of any size are left out, and come back."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from converter.mapping.rebuild import is_shifted_window_mask, shifted_window_mask
from converter.writing.residue import residue_path
from tests.support.small_files import equal, refusal, run, tensors_in
from tests.support.small_formats import SIZES
from tests.writing.test_residue import tamper

WINDOW = SIZES["window_size"]


def mask(rows: int, columns: int, window: int = WINDOW) -> Tensor:
    """As Swin's authors describe it, region by region: what the shift brings next to each other stays apart."""
    shift = window // 2
    regions = torch.zeros(rows * window, columns * window)
    parts = [slice(-window), slice(-window, -shift), slice(-shift, None)]
    for number, (down, right) in enumerate(product(parts, repeat=2)):
        regions[down, right] = number
    windows = regions.unfold(0, window, window).unfold(1, window, window).reshape(rows * columns, 1, window**2)
    return torch.where(windows == windows.mT, 0.0, -100.0)


@pytest.mark.parametrize("window", [2, 3, 7, 12])
def test_the_mask_of_every_map_is_known(window: int) -> None:
    for rows, columns in product(range(1, 5), repeat=2):
        assert is_shifted_window_mask(mask(rows, columns, window).numpy(), window)
        if rows == columns:
            assert np.array_equal(shifted_window_mask(rows * window, window), mask(rows, columns, window))


WRONG: dict[str, Tensor] = {
    "a window less": mask(3, 4)[:-1],
    "a window more": torch.cat([mask(3, 4), mask(3, 4)[:1]]),
    "windows column by column": mask(3, 4).unflatten(0, (3, 4)).transpose(0, 1).flatten(0, 1),
    "upside down": mask(3, 4).flip(0),
    "no shift": torch.zeros(12, WINDOW**2, WINDOW**2),
    "no window": torch.zeros(0, WINDOW**2, WINDOW**2),
    "one number": torch.where(
        torch.arange(81).reshape(1, 9, 9) + torch.arange(12)[:, None, None] == 50, -1, mask(3, 4)
    ),
    "NaN": torch.full((12, 9, 9), torch.nan),
    "infinity": torch.where(mask(3, 4) < 0, -torch.inf, 0.0),
    "the other way round": mask(3, 4) + 100,
    "another window": mask(3, 4, 2),
    "one axis more": mask(3, 4)[None],
    "a number": torch.tensor(-100.0),
    "a bool": mask(3, 4) == 0,
    "complex": mask(3, 4).to(torch.complex64),
}

NAMES = {
    "swin-original": "layers.{}.blocks.{}.attn_mask",
    "timm-swin": "layers.{}.blocks.{}.attn_mask",
    "mmpretrain-glip": "backbone.stages.{}.blocks.{}.attn.attn_mask",
    "mmdet-glip": "backbone.stages.{}.blocks.{}.attn.attn_mask",
    "glip-official": "module.backbone.body.layers.{}.blocks.{}.attn_mask",
}
# of a wide picture, of a tall one, of as many windows as the usual square one, of a single window
MASKS = {"wide": (0, mask(3, 5)), "tall": (2, mask(5, 1)), "as many": (0, mask(4, 16)), "one": (3, mask(1, 1))}


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize(("name", "which"), [*product(NAMES, ["tall"]), *product(["timm-swin"], MASKS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_left_out_and_comes_back(name: str, which: str, dtype: torch.dtype, tmp_path: Path) -> None:
    stage, values = MASKS[which]
    weights = dict(tensors_in(name, **{NAMES[name].format(stage, 1): values.to(dtype)}))
    torch.save(weights, tmp_path / "source.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    result = run("convert", "--src", tmp_path / "source.pth", "--dst", own, "--from", name, "--keep-residue")
    assert "(the mask of shifted windows, computed from the size of the image)" in result.output
    assert not any("mask" in key for key in load_file(own))
    run("convert", "--src", own, "--dst", back, "--to", name)
    assert equal(load_file(back), weights)


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("which", list(WRONG))
def test_what_is_no_mask_of_shifted_windows_is_refused(which: str, tmp_path: Path) -> None:
    key = NAMES["timm-swin"].format(0, 1)
    torch.save(tensors_in("timm-swin", **{key: WRONG[which]}), tmp_path / "timm.pth")
    convert = ["convert", "--src", tmp_path / "timm.pth", "--dst", tmp_path / "own.safetensors", "--from", "timm-swin"]
    (problem,) = refusal(*convert, code=5)["problems"]
    assert f"'{key}' {tuple(WRONG[which].shape)} does not hold what small computes" in problem


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("key", ["layers.0.blocks.0.attn_mask", "layers.9.blocks.1.attn_mask"])
def test_only_a_block_that_shifts_has_a_mask(key: str, tmp_path: Path) -> None:
    torch.save(tensors_in("timm-swin", **{key: mask(3, 4)}), tmp_path / "timm.pth")
    convert = ["convert", "--src", tmp_path / "timm.pth", "--dst", tmp_path / "own.safetensors", "--from", "timm-swin"]
    (problem,) = refusal(*convert, code=5)["problems"]
    assert key in problem


@pytest.mark.usefixtures("small_mappings")
def test_a_residue_with_the_mask_of_no_layer_is_refused(tmp_path: Path) -> None:
    torch.save(tensors_in("timm-swin"), tmp_path / "timm.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", tmp_path / "timm.pth", "--dst", own, "--from", "timm-swin", "--keep-residue")
    tamper(residue_path(own), {NAMES["timm-swin"].format(3, 5): mask(3, 4)}, {})
    (problem,) = refusal("convert", "--src", own, "--dst", back, "--to", "timm-swin", code=5)["problems"]
    assert "'layers.3.blocks.5.attn_mask' (12, 9, 9): small has no such layer" in problem


@pytest.mark.usefixtures("small_mappings")
def test_a_residue_that_only_names_the_mask_is_read_as_before(tmp_path: Path) -> None:
    """Earlier releases took the mask of one size alone, and made it again."""
    weights = tensors_in("swin-original")
    torch.save(weights, tmp_path / "swin.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", tmp_path / "swin.pth", "--dst", own, "--keep-residue")
    kept = load_file(residue_path(own))
    masks = {key: "float32" for key in kept if key.endswith("attn_mask")}
    assert len(masks) == 2
    with safe_open(residue_path(own), "pt") as file:
        said = json.loads(file.metadata()["residue"])
    said["buffers"] |= masks
    rest = {key: tensor for key, tensor in kept.items() if key not in masks}
    save_file(rest, residue_path(own), {"residue": json.dumps(said)})
    run("convert", "--src", own, "--dst", back, "--to", "swin-original")
    assert equal(load_file(back), dict(weights))
