"""scripts/capture_grounding_dino.py without the official package, which needs an environment of its own: what it makes
of inputs and outputs, and that it refuses what is no reference."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from converter.grounding_dino.outputs import Output, detections_of
from tests import ROOT


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module, which finds its neighbours beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        patch.setattr(sys, "dont_write_bytecode", True)
        import capture_grounding_dino

        return capture_grounding_dino


class Stand(nn.Module):
    """Stands in for the official model: one layer, and logits of 256 tokens that end with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.tokenizer: Any = SimpleNamespace()

    def forward(self, samples: Any, captions: list[str]) -> dict[str, torch.Tensor]:
        hidden = self.layer(samples.tensors.mean(dim=(2, 3)))[:, None]  # (B, 1, 2)
        logits = torch.full((len(captions), 1, 256), -torch.inf, dtype=hidden.dtype)
        logits[..., :2] = hidden
        chosen = torch.topk(hidden[..., 0], 1, dim=1).indices
        return {"pred_logits": logits, "pred_boxes": hidden.repeat(1, 1, 2).sigmoid() + 0 * chosen[..., None]}


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported of the official package."""
    misc = ModuleType("groundingdino.util.misc")
    misc.NestedTensor = lambda tensors, mask: SimpleNamespace(tensors=tensors, mask=mask)  # type: ignore[attr-defined]
    misc.clean_state_dict = lambda state: {k.removeprefix("module."): v for k, v in state.items()}  # type: ignore[attr-defined]
    for name in ("groundingdino", "groundingdino.util"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, misc.__name__, misc)


def given(script: Any) -> Any:
    pixels, mask = script.padded([torch.full((3, 4, 5), 100.0), torch.full((3, 3, 5), 90.0)])
    ids = torch.tensor([[101, 7, 102, 0], [101, 8, 1012, 102]])
    inputs = {"pixel_values": pixels, "pixel_mask": mask, "input_ids": ids, "attention_mask": (ids != 0).long()}
    facts = {
        "image_sizes_hw": [[4, 5], [3, 5]],
        "phrases_of_tokens": [[1] * 4] * 2,
        "score_threshold": 0.0,
    }
    return script.Given({**inputs, "token_type_ids": torch.zeros_like(ids)}, facts)


def taps(script: Any) -> list[Any]:
    return [script.Tap("layer", "layer", (), (1, 0)), script.Tap("pred_logits", "", ("pred_logits",))]


def test_pictures_of_a_batch_are_normalised_and_padded(script: Any) -> None:
    pixels, mask = script.padded([torch.full((3, 4, 5), 255.0), torch.full((3, 2, 3), 0.0)])
    assert pixels.shape == (2, 3, 4, 5)
    assert mask.sum(dim=(1, 2)).tolist() == [20, 6]
    assert pixels[0, 0, 3, 4].item() == pytest.approx((1 - 0.485) / 0.229)
    assert pixels[1, 2, 1, 2].item() == pytest.approx(-0.406 / 0.225)
    assert float(pixels[1, :, 2:].abs().sum() + pixels[1, :, :, 3:].abs().sum()) == 0


def test_a_dot_belongs_to_the_phrase_that_it_ends(script: Any) -> None:
    assert script.phrases_of([101, 7, 1012, 8, 9, 1012, 102, 0]) == [1, 1, 1, 2, 2, 2, 2, 2]
    assert script.phrases_of([101, 7, 102]) == [1, 1, 1]
    assert script.phrases_of([101, 7, 1029, 8, 1012, 102]) == [1, 1, 1, 2, 2, 2]


def test_what_it_detects_is_what_the_family_detects(script: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, boxes = torch.rand(1, 9, 4, generator=generator), torch.rand(1, 9, 4, generator=generator)
    facts = {"image_sizes_hw": [[30, 70]], "phrases_of_tokens": [[1, 2, 2, 3]], "score_threshold": 0.8}
    (expected,) = detections_of(Output(scores, scores, boxes, scores, (), ()), facts)
    found = script.detected(scores[0], boxes[0], (30, 70), [1, 2, 2, 3], 0.8)
    assert len(found[0]) > 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("official")
def test_a_run_is_kept_with_axes_and_tokens_as_the_other_side_has_them(script: Any) -> None:
    ran = script.run_proved(Stand().double().eval(), given(script), taps(script), None)
    assert ran.activations["layer"].shape == (2, 2)
    assert ran.activations["pred_logits"].shape == (2, 1, 4)
    assert ran.activations["pred_logits"].isfinite().all()
    assert ran.selected.shape == (2, 1)


@pytest.mark.usefixtures("official")
def test_a_model_that_hooks_change_is_refused(script: Any) -> None:
    class Watched(Stand):
        def forward(self, samples: Any, captions: list[str]) -> dict[str, torch.Tensor]:
            out = super().forward(samples, captions)
            return {name: value + bool(self.layer._forward_hooks) for name, value in out.items()}

    with pytest.raises(script.Refused, match="hooks change"):
        script.run_proved(Watched().eval(), given(script), taps(script), None)


@pytest.mark.usefixtures("official")
def test_what_did_not_come_from_the_file_is_refused(script: Any, tmp_path: Path) -> None:
    model = Stand()
    weights = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": {**weights, "module.other": torch.zeros(1)}}, tmp_path / "whole.pth")
    audit = script.load_audited(model, str(tmp_path / "whole.pth"), ["layer.weight"])
    assert audit["audit"]["unused"] == ["other"]
    assert set(audit["state_dict"]) == {"dtype", "sha256"}
    torch.save({"model": {"module.layer.weight": weights["module.layer.weight"]}}, tmp_path / "part.pth")
    with pytest.raises(script.Refused, match=r"layer\.bias"):
        script.load_audited(model, str(tmp_path / "part.pth"), None)
