"""MMDetection's scales of boxes: with an axis in its published weights, without one in a model that it makes now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from converter.writing.residue import residue_path
from tests.parity.test_diff_formats import of_format
from tests.support.small_files import equal, official, refusal, run, tensors_in
from tests.support.two_checkpoints import compare, saved
from tests.writing.test_residue import tamper

pytestmark = pytest.mark.usefixtures("small_mappings")

SCALES = [f"bbox_head.head.scales.{level}.scale" for level in range(5)]
WITHOUT_AXIS = {"all": SCALES, "none": [], "some": SCALES[1:3], "the last": SCALES[4:]}


def scales(*without_axis: str, **shapes: Tensor) -> dict[str, Tensor]:
    """MMDetection's weights, these scales without an axis."""
    weights = tensors_in("mmdet-glip")
    return {name: tensor.reshape(()) if name in without_axis else tensor for name, tensor in weights.items()} | shapes


@pytest.mark.parametrize("to", ["glip", "glip-official"])
@pytest.mark.parametrize("which", list(WITHOUT_AXIS))
def test_both_shapes_are_read_as_the_same_scales(which: str, to: str, tmp_path: Path) -> None:
    torch.save({"state_dict": scales(*WITHOUT_AXIS[which])}, tmp_path / "mmdet.pth")
    run("convert", "--src", tmp_path / "mmdet.pth", "--dst", tmp_path / "own.safetensors", "--to", to)
    assert equal(load_file(tmp_path / "own.safetensors"), dict(tensors_in(to)))


@pytest.mark.parametrize("to", ["glip", "glip-official", "timm-swin", "transformers-bert"])
@pytest.mark.parametrize("which", list(WITHOUT_AXIS))
def test_with_the_residue_each_comes_back_in_its_shape(which: str, to: str, tmp_path: Path) -> None:
    torch.save({"state_dict": scales(*WITHOUT_AXIS[which])}, tmp_path / "mmdet.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", tmp_path / "mmdet.pth", "--dst", own, "--to", to, "--keep-residue")
    run("convert", "--src", own, "--dst", back, "--to", "mmdet-glip")
    assert equal(load_file(back), scales(*WITHOUT_AXIS[which]))


class FreshlyMade(nn.Module):
    """A scale as MMDetection 3.3 makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


def test_what_is_written_has_an_axis_and_loads_strictly_into_a_scale_without_one(tmp_path: Path) -> None:
    """The other way round torch refuses. MMDetection's own model is tried in tests/peers."""
    torch.save({"model": official()}, tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "mmdet.pth", "--to", "mmdet-glip")
    written = torch.load(tmp_path / "mmdet.pth", weights_only=True)["state_dict"]
    for level, name in enumerate(SCALES):
        assert written[name].shape == (1,)
        made = FreshlyMade()
        made.load_state_dict({"scale": written[name]}, strict=True)
        assert made.scale.shape == ()
        assert made.scale.item() == official()[f"module.rpn.head.scales.{level}.scale"].item()
    released = FreshlyMade()
    released.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match="size mismatch"):
        released.load_state_dict({"scale": torch.tensor(1.0)}, strict=True)


@pytest.mark.parametrize("shape", [(2,), (1, 1), (0,)])
@pytest.mark.parametrize("others", [[], SCALES[1:]])
def test_any_other_shape_is_refused(shape: tuple[int, ...], others: list[str], tmp_path: Path) -> None:
    torch.save({"state_dict": scales(*others, **{SCALES[0]: torch.ones(shape)})}, tmp_path / "mmdet.pth")
    error = refusal("convert", "--src", tmp_path / "mmdet.pth", "--dst", tmp_path / "own.safetensors", code=5)
    (problem,) = error["problems"]
    assert f"'{SCALES[0]}' is {shape}; " in problem
    assert "needs (1,) to make 'head.box_scale' (5,)" in problem


def test_a_scale_without_axis_is_no_difference_to_other_formats(tmp_path: Path) -> None:
    saved(scales(*SCALES[:2]), tmp_path / "mmdet.pth")
    assert compare(of_format("glip-official", tmp_path / "official.pth"), tmp_path / "mmdet.pth")["equal"]
    saved(scales(*SCALES[:2], **{SCALES[1]: torch.tensor(9.0)}), tmp_path / "mmdet.pth")
    (different,) = compare(tmp_path / "official.pth", tmp_path / "mmdet.pth")["different"]
    assert (different["differing"], different["max_abs"] > 1) == (1, True)
    saved(scales(*SCALES[:2], **{SCALES[2]: torch.ones(2)}), tmp_path / "mmdet.pth")
    (different,) = compare(tmp_path / "official.pth", tmp_path / "mmdet.pth")["different"]
    assert f"the table needs '{SCALES[2]}' to be (1,)" in str(different)


@pytest.mark.parametrize(
    ("shapes", "code", "said"),
    [
        ({SCALES[0]: [2]}, 5, "(2,), a shape in which mmdet-glip does not write it"),
        ({"bbox_head.head.bias0": []}, 5, "(), a shape in which mmdet-glip does not write it"),
        ({"stray": []}, 5, "(), a shape in which mmdet-glip does not write it"),
        ({SCALES[0]: ["1"]}, 3, "is not a residue"),
        ({SCALES[0]: 1}, 3, "is not a residue"),
        ([SCALES[0]], 3, "is not a residue"),
    ],
)
def test_a_residue_with_other_shapes_is_refused(shapes: object, code: int, said: str, tmp_path: Path) -> None:
    torch.save(scales(), tmp_path / "mmdet.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", tmp_path / "mmdet.pth", "--dst", own, "--to", "timm-swin", "--keep-residue")
    tamper(residue_path(own), {}, {"shapes": shapes})
    error = refusal("convert", "--src", own, "--dst", back, "--to", "mmdet-glip", code=code)
    assert said in "\n".join([error["message"], *error["problems"]])
    assert not back.exists()


def test_a_residue_of_before_shapes_were_kept_is_read(tmp_path: Path) -> None:
    torch.save(scales(*SCALES), tmp_path / "mmdet.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    run("convert", "--src", tmp_path / "mmdet.pth", "--dst", own, "--to", "glip", "--keep-residue")
    with safe_open(residue_path(own), "pt") as file:
        said = json.loads(file.metadata()["residue"])
    del said["shapes"]
    save_file({}, residue_path(own), {"residue": json.dumps(said)})
    run("convert", "--src", own, "--dst", back, "--to", "mmdet-glip")
    assert equal(load_file(back), scales())
