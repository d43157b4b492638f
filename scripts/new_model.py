"""The model of docs/new-model.md: a ViT of timm and of transformers, with random weights, and their outputs compared.

    python scripts/new_model.py write FOLDER      # timm-vit.safetensors and hf-vit.safetensors
    python scripts/new_model.py compare timm-vit.safetensors out.safetensors

Runs where torch, timm and transformers are installed; `converter` need not be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_SIDE = 224
_GATE = 1e-12  # relative, in float64: two implementations of the same arithmetic differ in the order of sums only


def _declare_missing_operators() -> None:
    """torchvision's CUDA build registers functions for operators that its library, useless without CUDA, lacks."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[torch.library.Library] = []  # an operator lives as long as the library that declared it


def timm_vit() -> torch.nn.Module:
    """timm's vit_small_patch16_224 without a classifier: tokens after the last norm."""
    _declare_missing_operators()
    import timm

    return timm.create_model("vit_small_patch16_224", num_classes=0).eval()


def hf_vit() -> torch.nn.Module:
    """transformers' ViTModel of the same size. timm's norms have an epsilon of 1e-6, which no weight tells."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=_SIDE,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",  # the eager one computes the softmax in float32
    )
    return ViTModel(config, add_pooling_layer=False).eval()


def write(folder: Path) -> None:
    """Random weights for both models; every tensor differs from every other, norms and biases too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model, seed in (("timm-vit", timm_vit(), 0), ("hf-vit", hf_vit(), 1)):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for key, tensor in model.state_dict().items():
            scale = 0.05 if tensor.ndim > 1 else 0.2
            # one-dimensional and called weight: a norm, which multiplies
            start = 1.0 if tensor.ndim == 1 and key.endswith("weight") else 0.0
            weights[key] = start + scale * torch.randn(tensor.shape, generator=generator)
        save_file(weights, folder / f"{name}.safetensors")
        print(f"written: {folder / name}.safetensors, {len(weights)} tensors")


@torch.inference_mode()
def compare(source: Path, converted: Path) -> bool:
    """Whether transformers computes from `converted` what timm computes from `source`, in float64."""
    reference, model = timm_vit().double(), hf_vit().double()
    reference.load_state_dict({k: v.double() for k, v in load_file(source).items()})
    model.load_state_dict({k: v.double() for k, v in load_file(converted).items()})
    images = torch.randn(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = reference.forward_features(images)
    got = model(images).last_hidden_state
    error = (torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted)).item()
    verdict = "same" if error <= _GATE else "DIFFERENT"
    print(f"tokens {tuple(got.shape)}: relative error {error:.1e}, gate {_GATE:.0e}: {verdict}")
    return error <= _GATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("write", help="write both models with random weights")
    one.add_argument("folder", type=Path)
    other = commands.add_parser("compare", help="compare the outputs; exit code 1 if they differ")
    other.add_argument("source", type=Path)
    other.add_argument("converted", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(arguments.folder)
    elif not compare(arguments.source, arguments.converted):
        sys.exit(1)


if __name__ == "__main__":
    main()
