"""Models by name, with weights of any format: this package's GLIP, and its image encoder under MMPretrain's names.

    model = get_model("swin-t_glip-pre_3rdparty", pretrained="glip_tiny_model_o365_goldg_cc_sbu.pth")
    maps = model(images)  # (B, 192, H/8, W/8), (B, 384, H/16, W/16), (B, 768, H/32, W/32)

Every format that `convert` reads is read straight into the model, through the same tables and the same checks.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from converter.checkpoint import Checkpoint
from converter.errors import ModelError
from converter.glip.model.config import GLIPConfig
from converter.glip.model.glip import GLIP
from converter.glip.model.head import Output
from converter.glip.model.inputs import check_images
from converter.glip.model.swin import SwinTransformer
from converter.glip.saving import origin_of
from converter.glip.weights import fill, tensors
from converter.hub.resolve import located
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.planning.formats import load_format, make_route, open_known, recognise
from converter.writing.changes import compared_meanwhile
from converter.writing.in_memory import in_memory

# MMPretrain's name (configs/glip of its release 1.2) -> the GLIP variant whose image encoder it is
BACKBONES: Mapping[str, str] = {"swin-t_glip-pre_3rdparty": "glip-t", "swin-l_glip-pre_3rdparty_384px": "glip-l"}


class ImageEncoder(nn.Module):
    """GLIP's Swin alone: images (B, 3, H, W) -> the maps C3, C4, C5 of stride 8, 16, 32, layer-normalised.

    Images are BGR in 0..255 minus (103.53, 116.28, 123.675), divided by (57.375, 57.12, 58.395). With `pad_small_map`
    it computes what GLIP does: windows are shifted on every map. Without it, as in MMPretrain by default, windows are
    not shifted on a map as small as a window, and a smaller map is a ModelError.
    """

    def __init__(self, config: GLIPConfig, *, pad_small_map: bool = True) -> None:
        super().__init__()
        self.backbone = SwinTransformer(config, shift_small_maps=pad_small_map)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.backbone(check_images(images, next(self.parameters())))
        return maps[1], maps[2], maps[3]

    def extract_feat(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same as calling the model, as in MMPretrain."""
        features: tuple[Tensor, Tensor, Tensor] = self(images)
        return features


class WholeModel(GLIP):
    """GLIP that, called with images alone, returns its image encoder's maps C3, C4, C5, as an `ImageEncoder` does."""

    def forward(  # type: ignore[override]
        self, images: Tensor, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Output | tuple[Tensor, Tensor, Tensor]:
        if input_ids is None or attention_mask is None:
            if input_ids is not attention_mask:
                raise ModelError(
                    "give both input_ids and attention_mask, or neither: images alone give the maps C3, C4, C5."
                )
            return self.extract_feat(images)
        return super().forward(images, input_ids, attention_mask)


def model_names() -> list[str]:
    """Names that `get_model` knows."""
    return [*BACKBONES, *(name for v in load_spec("glip").variants for name in (v.name, *v.also))]


def get_model(
    name: str,
    pretrained: str | os.PathLike[str] | bool | None = False,
    *,
    source: str | None = None,
    root: str | None = None,
    pad_small_map: bool = True,
) -> WholeModel | ImageEncoder:
    """The model `name` in float32 on the CPU, in eval mode.

    pretrained: a checkpoint of any format that holds at least this model, as a path or as `org/name` or
    `hf://org/name/file.pth@revision` of the Hugging Face Hub; False or None for random weights.
    source: the checkpoint's format, by name or as a table's path; needed only where its keys fit several.
    root: the state dict to take where the file holds several. pad_small_map: see `ImageEncoder`.

    Weights that are NaN are loaded with a warning, and so is a converted file that is not what its own record says.
    Raises ModelError for an unknown name or weights of another model, CheckpointError and PlanError as `convert` does,
    HubError if the download fails.
    """
    if name not in model_names():
        near = difflib.get_close_matches(name, model_names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"no model is called {name!r}.{hint} Known: {', '.join(model_names())}.")
    if not pad_small_map and name not in BACKBONES:
        raise ModelError(f"pad_small_map=False is MMPretrain's, and {name} is not one of its models.")
    if pretrained is True:
        raise ModelError(f"{name}: pretrained=True does not say which weights; give a path or org/name on the Hub.")
    if pretrained is False or pretrained is None:
        return _build(name, _config(name), pad_small_map).eval()
    path, called = located(pretrained)
    with open_known(path, root, source) as checkpoint, compared_meanwhile(checkpoint, path):
        model, converted, hashes = _loaded(name, checkpoint, source, pad_small_map)
        if isinstance(model, WholeModel):
            model._origin = origin_of(called, path, converted, hashes)
    return model.eval()


def _config(name: str) -> GLIPConfig:
    """The config of GLIP `name`, or of the GLIP whose image encoder `name` is."""
    config: Mapping[str, Any] = load_spec("glip").variant(BACKBONES.get(name, name)).config
    return GLIPConfig(**config)


def _build(name: str, config: GLIPConfig, pad_small_map: bool) -> WholeModel | ImageEncoder:
    return ImageEncoder(config, pad_small_map=pad_small_map) if name in BACKBONES else WholeModel(config)


def _loaded(
    name: str, checkpoint: Checkpoint, source: str | None, pad_small_map: bool
) -> tuple[WholeModel | ImageEncoder, Checkpoint, dict[str, str]]:
    """The model; the checkpoint as it was converted for it, and the SHA-256 of each tensor of that."""
    spec = load_spec("glip")
    plan = make_route(
        load_format(source) if source else recognise(checkpoint, spec),
        hub_table(spec.parts["backbone"] if name in BACKBONES else spec),
        checkpoint,
        dtype="float32",
    )
    wanted = asdict(_config(name))
    there = {**dict(plan.config), "prompt_length": wanted["prompt_length"]}
    if wrong := [field for field in plan.config if there[field] != wanted[field]]:
        raise ModelError(
            f"{checkpoint.path}: holds {plan.variant.title}, not {name}: {wrong[0]} is {there[wrong[0]]}, expected "
            f"{wanted[wrong[0]]}."
        )
    converted = in_memory(checkpoint, plan)
    with torch.device("meta"):  # takes no memory and skips the random initialisation
        model = _build(name, GLIPConfig(**{**wanted, **plan.config}), pad_small_map)
    parameters = dict(model.named_parameters())
    if absent := sorted(parameters.keys() - converted.tensors.keys()):
        raise ModelError(
            f"{checkpoint.path}: {plan.table} does not hold {absent[0]} {tuple(parameters[absent[0]].shape)} and "
            f"{len(absent) - 1} other parameters of this model."
        )
    hashes: dict[str, str] = {}
    fill(model, tensors(converted, hashes), checkpoint.path)
    checkpoint.verify_unchanged()
    return model, converted, hashes
