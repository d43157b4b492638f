"""What some releases of a format's tools save beside the model is left out, and comes back with the residue."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.small_files import equal, refusal, run, tensors_in
from tests.support.small_formats import SIZES

pytestmark = pytest.mark.usefixtures("small_mappings")

WIDTH, WORDS, POSITIONS = SIZES["text_dim"], SIZES["vocab_size"], SIZES["max_positions"]
BERT: dict[str, Tensor] = {
    "embeddings.position_ids": torch.arange(POSITIONS)[None],
    "pooler.dense.weight": torch.randn(WIDTH, WIDTH),
    "pooler.dense.bias": torch.randn(WIDTH),
    "cls.predictions.bias": torch.randn(WORDS),
    "cls.predictions.transform.dense.weight": torch.randn(WIDTH, WIDTH),
    "cls.predictions.transform.dense.bias": torch.randn(WIDTH),
    "cls.predictions.transform.LayerNorm.weight": torch.randn(WIDTH),
    "cls.predictions.transform.LayerNorm.bias": torch.randn(WIDTH),
    "cls.predictions.decoder.weight": torch.randn(WORDS, WIDTH),
    "cls.predictions.decoder.bias": torch.randn(WORDS),
    "cls.seq_relationship.weight": torch.randn(2, WIDTH),
    "cls.seq_relationship.bias": torch.randn(2),
}
CLASSIFIER = {"weight": torch.randn(9, 8 * SIZES["embed_dim"]), "bias": torch.randn(9)}
AT = {
    "glip-official": "module.language_backbone.body.model.",
    "mmdet-glip": "language_model.language_backbone.body.model.",
    "transformers-bert": "",
}
CLASSIFIERS = [
    ("timm-swin", "head.fc."),
    ("timm-swin", "head."),
    ("swin-original", "head."),
    ("mmpretrain-glip", "head.fc."),
    ("transformers-swin", "classifier."),
]
ORIGINALS = {
    **{f"{name}: BERT": (name, {at + key: tensor for key, tensor in BERT.items()}) for name, at in AT.items()},
    **{f"{name}: {at}": (name, {at + key: tensor for key, tensor in CLASSIFIER.items()}) for name, at in CLASSIFIERS},
}


@pytest.mark.parametrize("which", list(ORIGINALS))
def test_it_is_left_out_and_comes_back(which: str, tmp_path: Path) -> None:
    name, extra = ORIGINALS[which]
    weights = dict(tensors_in(name)) | extra
    torch.save(weights, tmp_path / "source.pth")
    own, back = tmp_path / "own.safetensors", tmp_path / "back.safetensors"
    assert (
        f"from {name} to glip"
        in run("convert", "--src", tmp_path / "source.pth", "--dst", own, "--keep-residue").output
    )
    made = load_file(own)
    run("convert", "--src", own, "--dst", back, "--to", name)
    assert equal(load_file(back), weights)
    torch.save(tensors_in(name), tmp_path / "without.pth")
    run("convert", "--src", tmp_path / "without.pth", "--dst", own, "--force")
    assert equal(load_file(own), made)


@pytest.mark.parametrize("name", list(AT))
def test_positions_that_are_others_are_refused(name: str, tmp_path: Path) -> None:
    key = f"{AT[name]}embeddings.position_ids"
    torch.save(dict(tensors_in(name)) | {key: torch.arange(POSITIONS).flip(0)[None]}, tmp_path / "source.pth")
    error = refusal("convert", "--src", tmp_path / "source.pth", "--dst", tmp_path / "own.safetensors", code=5)
    assert [key in problem for problem in error["problems"]] == [True]
