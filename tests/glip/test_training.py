"""Fine-tuning: every parameter learns, train() changes no number, and docs/fine-tuning.md does as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from converter.glip import GLIP, GLIPConfig
from tests import ROOT
from tests.support.saved_glip import save
from tests.support.small_formats import SIZES, small_tables
from tests.support.small_glip import random_inputs, small_glip

FULL_TEXT = {**SIZES, "vocab_size": 30522, "max_positions": 256}  # what BERT's ids need


def loss_of(model: GLIP) -> Tensor:
    """Something of all three outputs."""
    return sum((level.float().tanh().mean() for part in model(*random_inputs()) for level in part), torch.zeros(()))


@pytest.mark.parametrize("changes", [{}, {"fusion": False}, {"prompt_length": 256}])
def test_every_parameter_gets_a_gradient(changes: dict[str, Any]) -> None:
    model = small_glip(torch.float32, **changes).train()
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_step_reduces_the_loss_and_eval_changes_nothing() -> None:
    model = small_glip(torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = loss_of(model)
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = loss_of(model)
    assert after < before
    assert torch.equal(loss_of(model.eval()), after)


def test_recomputed_activations_give_the_same_gradients() -> None:
    def gradients(*, recomputed: bool) -> list[Tensor | None]:
        model = small_glip(torch.float32).train()
        for stage in model.backbone.stages if recomputed else ():
            for block in stage.blocks:  # type: ignore[union-attr]
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in model.parameters()]

    pairs = zip(gradients(recomputed=False), gradients(recomputed=True), strict=True)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[GLIP]:
    """A model of a known variant that reads BERT's ids."""
    with small_tables(tmp_path / "mappings", sizes=FULL_TEXT):
        torch.manual_seed(0)
        yield GLIP(GLIPConfig(**FULL_TEXT))


def test_the_page_does_as_it_says(known: GLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippets, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    save(known, tmp_path / "glip-t.safetensors")
    page = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 8
    names: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # Inductor takes minutes
    for snippet in snippets:
        exec(snippet, names)
    tuned, again = names["model"].state_dict(), names["again"].state_dict()
    assert all(torch.equal(value.cpu(), again[name]) for name, value in tuned.items())
    assert not torch.equal(again["head.bias"], known.state_dict()["head.bias"])
    for written in ("tuned-mmdet.pth", "tuned-official.pth"):
        assert torch.equal(GLIP.from_pretrained(tmp_path / written).head.bias, again["head.bias"])
