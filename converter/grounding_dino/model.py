"""transformers' own class as the model: of given sizes, with the weights of a checkpoint, and its weights by name.

Two classes are known, each described by a spec: GroundingDinoForObjectDetection, and MMGroundingDinoForObjectDetection,
which has a class head of its own and whose sizes name `maps`. The config.json that the spec makes for files of these
sizes is the configuration of the model as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.grounding_dino.modeling_grounding_dino import SPECIAL_TOKENS

from converter.checkpoint import Checkpoint
from converter.display import file_name, listed, plain, quoted
from converter.errors import ConverterWarning, ModelError, TableError
from converter.mapping.load import hub_table
from converter.mapping.spec import Config, Spec, load_spec
from converter.mapping.table import Table
from converter.writing.fitting import check_fits

SPECS = ("transformers-grounding-dino", "transformers-mm-grounding-dino")

# of the configuration, what says how large a model is: the field of the spec, and where it stands
_SIZES: Mapping[str, tuple[str, ...]] = {
    "embed_dim": ("backbone_config", "embed_dim"),
    "depths": ("backbone_config", "depths"),
    "num_heads": ("backbone_config", "num_heads"),
    "window_size": ("backbone_config", "window_size"),
    "mlp_ratio": ("backbone_config", "mlp_ratio"),
    "patch_size": ("backbone_config", "patch_size"),
    "maps": ("backbone_config", "out_indices"),
    "vocab_size": ("text_config", "vocab_size"),
    "text_dim": ("text_config", "hidden_size"),
    "text_layers": ("text_config", "num_hidden_layers"),
    "text_heads": ("text_config", "num_attention_heads"),
    "text_mlp_dim": ("text_config", "intermediate_size"),
    "max_positions": ("text_config", "max_position_embeddings"),
    "type_vocab_size": ("text_config", "type_vocab_size"),
    "channels": ("d_model",),
    "levels": ("num_feature_levels",),
    "encoder_layers": ("encoder_layers",),
    "decoder_layers": ("decoder_layers",),
    "heads": ("encoder_attention_heads",),
    "points": ("encoder_n_points",),
    "ffn_dim": ("encoder_ffn_dim",),
    "queries": ("num_queries",),
}


@cache
def _spec(name: str) -> Spec:
    return load_spec(name)


@cache
def _table(name: str) -> Table:
    return hub_table(_spec(name))


def _fields(spec: Spec) -> frozenset[str]:
    return frozenset(spec.variants[0].config)


def spec_of(sizes: Config) -> Spec:
    """The spec whose sizes these are. ModelError if no known one has just these."""
    for name in SPECS:
        if _fields(_spec(name)) == sizes.keys():
            return _spec(name)
    lacking = _fields(_spec(SPECS[0])) - sizes.keys()
    unknown = sizes.keys() - _fields(_spec(SPECS[-1]))
    raise ModelError(
        "the configuration of a Grounding DINO: lacks "
        f"{listed(sorted(map(plain, lacking))) or 'nothing'}, and states {listed(sorted(map(plain, unknown)))}."
    )


def configuration(sizes: Config) -> Any:
    """transformers' configuration of a model of these sizes. ModelError if they cannot fit together."""
    spec = spec_of(sizes)
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}  # of JSON
    try:
        document = dict(_table(spec.name).config_document(sizes, {"float32"}) or {})
        name = document["architectures"][0].removesuffix("ForObjectDetection") + "Config"
        return getattr(transformers, name).from_dict(document)
    except (TableError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the configuration of a Grounding DINO: {error}") from None


def made(sizes: Config) -> nn.Module:
    """A model of these sizes, with random numbers as transformers draws them, or none on the meta device, in eval mode.

    ModelError if the sizes cannot fit together.
    """
    config = configuration(sizes)
    kind = getattr(transformers, config.architectures[0])
    try:
        model: nn.Module = kind(config).eval()
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError, TypeError, IndexError) as error:
        raise ModelError(f"no Grounding DINO can have the sizes of its configuration: {error}") from None
    # the norm of SwinModel has no weights in a file, and what it computes is not used
    model.get_submodule("model.backbone.conv_encoder.model.swin").layernorm = nn.Identity()
    return model


def sizes_of(model: nn.Module) -> dict[str, Any]:
    """The sizes of a model, as its spec names them."""
    config: Any = model.config
    name = next(name for name in SPECS if _table_class(name) == type(model).__name__)
    found: dict[str, Any] = {}
    for field in _spec(name).variants[0].config:
        value = config
        for step in _SIZES[field]:
            value = getattr(value, step)
        found[field] = tuple(value) if isinstance(value, list | tuple) else value
    return {field: int(v) if isinstance(v, float) and v.is_integer() else v for field, v in found.items()}


def _table_class(name: str) -> str:
    document: Any = _spec(name).files["saved_as"]["config"]
    return str(document["architectures"][0])


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights by their names in files, which the spec lists, each once: in memory, release 5 has other names."""
    sizes = sizes_of(model)
    spec = spec_of(sizes)
    in_files: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for other, ours in spec.files["aliases"].items():
            name = name.replace(other, ours)
        in_files[name] = parameter
    return {name: in_files[name] for name in spec.tensors(sizes)}


def loaded(path: Path, checkpoint: Checkpoint, sizes: Config) -> nn.Module:
    """The model with the weights of `checkpoint`, opened from `path`: float32, on the CPU, in eval mode.

    Beside the model, memory holds one tensor at a time. ModelError if names, shapes or dtypes are not the model's.
    """
    with torch.device("meta"):
        model = made(sizes)
    check_fits({name: tuple(value.shape) for name, value in named(model).items()}, checkpoint)
    model.to_empty(device="cpu")
    model.tie_weights()  # type: ignore[operator]
    parameters = named(model)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(math.nan)
        _fill_buffers(model)
        for name in checkpoint.tensors:
            values = torch.from_numpy(checkpoint.read(name))  # numpy has no bfloat16: its bits come as integers
            parameters[name].copy_(values.view(getattr(torch, checkpoint.tensors[name].dtype.name)))
        unfilled = {id(value) for value in model.parameters()} - {id(value) for value in parameters.values()}
        if unfilled:
            raise ModelError(f"{file_name(path)}: {len(unfilled)} weights of transformers' model are in no file.")
        spoiled = [name for name, value in parameters.items() if value.isnan().any()]
    if spoiled:
        warnings.warn(f"{path}: weights that are NaN in the file: {listed(spoiled)}.", ConverterWarning, stacklevel=3)
    return model


def _fill_buffers(model: nn.Module) -> None:
    """What files do not hold. A buffer that is not known is refused: `to_empty` left anything in it."""
    for name, buffer in model.named_buffers():
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        field = name.rpartition(".")[2]
        value: Tensor
        if field == "special_tokens":
            value = torch.tensor(SPECIAL_TOKENS)
        elif field == "relative_position_index":
            value = owner._create_relative_position_index().flatten()
        elif field == "position_ids":
            value = torch.arange(buffer.shape[-1])
        elif field == "token_type_ids":
            value = torch.zeros(buffer.shape[-1], dtype=buffer.dtype)
        else:
            raise ModelError(f"{quoted(name)}: this release of transformers has a buffer here that is not known.")
        buffer.copy_(value.view(buffer.shape))
