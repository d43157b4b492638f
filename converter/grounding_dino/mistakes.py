"""Known mistakes of ports of Grounding DINO. Each is a context in which transformers' model makes the mistake.

The first two are what transformers' class itself does otherwise than the official code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.grounding_dino import modeling_grounding_dino as modeling

from converter.grounding_dino import outputs, switches
from converter.parity.family import Mistake
from converter.parity.mutations import patched

Context = Callable[[nn.Module], AbstractContextManager[None]]
TEXT = r"model\.encoder\.layers\.\d+\.text_enhancer_layer"
FUSION = r"model\.encoder\.layers\.\d+\.fusion_layer"
SWIN = r"model\.backbone\.conv_encoder\.model\.swin\.encoder\.layers\.\d+\.blocks\.\d+"


def _patch(target: Any, name: str, make: Callable[[Any], object]) -> Context:
    """Replace `target.name` by `make(target.name)`; the same for every model."""
    return lambda model: patched(target, name, make(getattr(target, name)))


def _setting(find: str, name: str, change: Callable[[Any], object]) -> Context:
    """Replace the attribute of every module whose path ends in `find`."""

    @contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for path, module in model.named_modules():
                if path.endswith(find) and hasattr(module, name):
                    stack.enter_context(patched(module, name, change(getattr(module, name))))
            yield

    return context


def _before(find: str, hook: Callable[..., Any]) -> Context:
    """What every module whose path ends in `find` is called with is what `hook` makes of it."""

    @contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for path, module in model.named_modules():
                if path == find or path.endswith(f".{find}"):
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    return context


def _after(find: str, hook: Callable[..., Any]) -> Context:
    """What the module at `find` returns is what `hook` makes of it."""

    @contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        handle = model.get_submodule(find).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return context


def _functions(change: Callable[..., Any]) -> Context:
    """`change` is asked for what every function of torch returns."""
    return lambda model: switches.changing(change)


def _named(**values: Any) -> Callable[..., Any]:
    """A hook that gives a module other arguments, where it is called with them: what a function makes of each."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return arguments, {**named, **{name: make(named[name]) for name, make in values.items() if name in named}}

    return hook


def _masks(make: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any], object]:
    """The masks and positions of phrases are what `make` gives for ids, masks and positions."""

    def wrapped(original: Any) -> object:
        def changed(input_ids: Tensor, special_tokens: Tensor) -> tuple[Tensor, Tensor]:
            return make(input_ids, *original(input_ids, special_tokens))

        return changed

    return wrapped


def _in_a_row(ids: Tensor, masks: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    return masks, torch.arange(ids.shape[1], device=ids.device).expand_as(positions)


def _sine(**changes: Any) -> Callable[[Any], object]:
    """The sine embedding of queries and of text with other settings."""
    return lambda original: lambda position, **named: original(position, **{**named, **changes})


def _unswapped(original: Any) -> object:
    """x before y, as they stand in a box."""
    return lambda position, **named: original(
        position if position.shape[-1] < 2 else torch.cat([position[..., [1, 0]], position[..., 2:]], -1), **named
    )


def _own_mask(pictures: int, heads: int) -> Tensor:
    return torch.arange(pictures)[:, None].expand(pictures, heads)


def _exchanged(original: Any) -> object:
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        with patched(self, "query", self.key), patched(self, "key", self.query):
            return original(self, *arguments, **named)

    return forward


def _aligned(function: Any, *arguments: Any, **named: Any) -> Any:
    if function is F.grid_sample:
        named = {**named, "align_corners": True}
    return function(*arguments, **named)


def _unordered(function: Any, *arguments: Any, **named: Any) -> Any:
    found = function(*arguments, **named)
    if function is torch.topk:
        found = type(found)((found.values.flip(-1), found.indices.flip(-1)))
    return found


def _rows_first(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    a, b, c, d = arguments[0].chunk(4, dim=-1)
    return (torch.cat([a, c, b, d], dim=-1), *arguments[1:]), named


def _raw_residual(original: Any) -> object:
    def forward(self: Any, vision_features: Tensor, text_features: Tensor, *rest: Any, **named: Any) -> Any:
        (vision, a), (text, b) = original(self, vision_features, text_features, *rest, **named)
        vision = vision + vision_features - self.layer_norm_vision(vision_features)
        return (vision, a), (text + text_features - self.layer_norm_text(text_features), b)

    return forward


def _boxes_of_decoder(module: nn.Module, arguments: object, out: Any) -> Any:
    out.pred_boxes = out.intermediate_reference_points[:, -1]
    return out


def _text_before_encoder(model: nn.Module) -> AbstractContextManager[None]:
    """Logits by the text that the encoder is given, not by what it makes of it."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, out: Tensor) -> None:
        seen[:] = [out]

    def exchange(module: nn.Module, arguments: object, out: Any) -> Any:
        out.encoder_last_hidden_state_text = seen[0]
        return out

    @contextmanager
    def context() -> Iterator[None]:
        with _after("model.text_projection", keep)(model), _after("model", exchange)(model):
            yield

    return context()


def _all_valid(original: Any) -> object:
    def proposals(self: Any, encoded: Tensor, mask: Tensor, shapes: Any) -> tuple[Tensor, Tensor]:
        """Features of cells beside the picture and of boxes at its ends are not put to zero."""
        _, found = original(self, encoded, mask, shapes)
        return self.enc_output_norm(self.enc_output(encoded)), found

    return proposals


def _found(**changes: Callable[[Any], Any]) -> Context:
    """Detections by other facts of the capture."""

    def wrapped(original: Any) -> object:
        return lambda out, facts: original(out, {**facts, **{n: make(facts[n]) for n, make in changes.items()}})

    return _patch(outputs, "detections_of", wrapped)


def _corners_as_they_are(original: Any) -> object:
    def detections(out: Any, facts: Any) -> Any:
        centre, extent = out.boxes.split(2, dim=-1)
        return original(out._replace(boxes=torch.cat([centre + extent / 2, extent], dim=-1)), facts)

    return detections


_ATTENTION, _MODEL = modeling.GroundingDinoMultiheadAttention, modeling.GroundingDinoModel
_PHRASES, _SINE = "generate_masks_with_special_tokens_and_transfer_map", "encode_sinusoidal_position_embedding"

MISTAKES: tuple[Mistake, ...] = (
    Mistake("inverse sigmoid cut at 1e-5, not 1e-3", _patch(switches, "OFFICIAL_EPSILON", lambda _: 1e-5), ""),
    Mistake(
        "each picture's text masks for itself", _patch(switches, "mixed_in", lambda _: _own_mask), TEXT
    ),
    Mistake("inverse sigmoid not cut", _patch(switches, "OFFICIAL_EPSILON", lambda _: 1e-30), ""),
    Mistake(
        "phrases see each other",
        _patch(modeling, _PHRASES, _masks(lambda _, m, p: (torch.ones_like(m), p))), "model",
    ),
    Mistake("positions counted through all phrases", _patch(modeling, _PHRASES, _masks(_in_a_row)), "model"),
    Mistake("no position ids", _patch(modeling, _PHRASES, _masks(lambda _, m, p: (m, torch.zeros_like(p)))), "model"),
    Mistake(
        "temperature of a picture's positions 10000, not 20",
        _setting("backbone.position_embedding", "temperature", lambda _: 10000), r"model\.backbone",
    ),
    Mistake(
        "positions of a picture not from 0 to 2 pi",
        _setting("backbone.position_embedding", "scale", lambda scale: scale / (2 * math.pi)), r"model\.backbone",
    ),
    Mistake("temperature of queries and text 20, not 10000", _patch(modeling, _SINE, _sine(temperature=20)), ""),
    Mistake("queries embedded x before y", _patch(modeling, _SINE, _unswapped), ""),
    Mistake("query and key exchanged", _patch(_ATTENTION, "forward", _exchanged), TEXT),
    Mistake(
        "no valid ratios",
        _patch(_MODEL, "get_valid_ratio", lambda f: lambda self, m, **d: torch.ones_like(f(self, m, **d))), "model",
    ),
    Mistake("padding of pictures not masked", _before("model", _named(pixel_mask=torch.ones_like)), "model"),
    Mistake("sampling with align_corners", _functions(_aligned), r"model\.encoder\.layers\.\d+\.deformable_layer"),
    Mistake("proposals in another order", _functions(_unordered), "model"),
    Mistake("proposals that are not valid keep their features",
            _patch(_MODEL, "generate_encoder_output_proposals", _all_valid), "model"),
    Mistake("fusion's residual on what is not normalised",
            _patch(modeling.GroundingDinoFusionLayer, "forward", _raw_residual), FUSION),
    Mistake("text reads the padding of the picture",
            _before("fusion_layer", _named(attention_mask_vision=torch.zeros_like)), FUSION),
    Mistake("the picture reads the padding of the text",
            _before("fusion_layer", _named(attention_mask_text=torch.zeros_like)), FUSION),
    Mistake("no shift of windows", _setting("", "shift_size", lambda _: 0), SWIN),
    Mistake("patches merged row by row", _before("downsample.norm", _rows_first), r".*\.downsample"),
    Mistake("GELU by tanh", _functions(
        lambda f, *arguments, **named: f(*arguments, **({**named, "approximate": "tanh"} if f is F.gelu else named))
    ), SWIN + r"|model\.text_backbone\.encoder\.layer\.\d+"),
    Mistake("logits by the text before the encoder", _text_before_encoder, ""),
    Mistake("boxes of the decoder's features before their norm", _after("", _boxes_of_decoder), ""),
    Mistake("no threshold of scores", _found(score_threshold=lambda _: 0.0), "", detections=True),
    Mistake("boxes not from centre to corner", _patch(outputs, "detections_of", _corners_as_they_are), "",
            detections=True),
    Mistake("boxes in shares of the padded picture", _found(
        image_sizes_hw=lambda sizes: [[max(size[axis] for size in sizes) for axis in (0, 1)] for _ in sizes]
    ), "", detections=True),
    Mistake("phrases counted from 0", _found(
        phrases_of_tokens=lambda rows: [[label - 1 for label in row] for row in rows]
    ), "", detections=True),
)  # fmt: skip
