"""What is compared of a model's output beside the activations of its modules, and what is detected in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from converter.errors import CaptureError
from converter.grounding_dino.detect.scores import corners
from converter.parity.capture import Capture, Detections

INPUTS = ("pixel_values", "pixel_mask", "input_ids", "attention_mask", "token_type_ids")
SELECTED = "selected"  # the proposals that became queries where the capture was made
FACTS = ("image_sizes_hw", "phrases_of_tokens", "score_threshold")


class Output(NamedTuple):
    """Of what the model returns, all that is compared; finite.

    logits      (B, queries, tokens), 0 for tokens that are masked
    scores      their sigmoid, 0 for these, too
    boxes       (B, queries, 4), centre, width and height in shares of the picture
    proposals   (B, cells, tokens), logits of the proposals
    hidden      of each decoder layer (B, queries, channels), normalised
    references  before the first and after each layer (B, queries, 4)
    """

    logits: Tensor
    scores: Tensor
    boxes: Tensor
    proposals: Tensor
    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]


def output_of(out: Any) -> Output:
    """Of what transformers' model returns."""
    tokens = min(out.input_ids.shape[1], out.logits.shape[2])
    references = (out.init_reference_points, *out.intermediate_reference_points.unbind(1))
    return Output(
        _of_tokens(out.logits, tokens),
        out.logits[..., :tokens].sigmoid(),
        out.pred_boxes,
        _of_tokens(out.enc_outputs_class, tokens),
        out.intermediate_hidden_states.unbind(1),
        references,
    )


def _of_tokens(logits: Tensor, tokens: int) -> Tensor:
    cut = logits[..., :tokens]
    return cut.masked_fill(cut == -torch.inf, 0.0)


def derived_of(layers: int) -> Iterator[tuple[str, str, tuple[str | int, ...]]]:
    """For each activation that no module returns: its captured name, what it is of transformers' output, and where it
    is in `Output`."""
    yield "transformer.enc_out_class_embed", "enc_outputs_class", ("proposals",)
    for layer in range(layers):
        yield f"transformer.decoder.norm.{layer}", "intermediate_hidden_states", ("hidden", layer)
    for layer in range(layers + 1):
        what = "intermediate_reference_points" if layer else "init_reference_points"
        yield f"transformer.decoder.references.{layer}", what, ("references", layer)
    yield "pred_logits", "logits", ("logits",)
    yield "pred_boxes", "pred_boxes", ("boxes",)


def inputs_of(capture: Capture) -> Mapping[str, Tensor]:
    """Pictures (B, 3, H, W), their mask, and tokens (B, T); with the selected proposals where they are known.

    CaptureError unless they form a batch, and detection has its facts.
    """
    where = capture.path.name
    if missing := [name for name in INPUTS if name not in capture.inputs]:
        raise CaptureError(f"{where}: lacks 'input.{missing[0]}'. Capture again.")
    if missing := [name for name in FACTS if name not in capture.facts]:
        raise CaptureError(f"{where}: does not say {missing[0]!r}, which detection needs. Capture again.")
    given = capture.inputs
    pixels, mask, ids = given["pixel_values"], given["pixel_mask"], given["input_ids"]
    batch, tokens = len(capture.facts["image_sizes_hw"]), ids.shape[-1]
    phrases = capture.facts["phrases_of_tokens"]
    fits = (
        pixels.dim() == 4
        and pixels.shape[:2] == (batch, 3)
        and mask.shape == (batch, *pixels.shape[2:])
        and ids.shape == given["attention_mask"].shape == given["token_type_ids"].shape == (batch, tokens)
        and all(value.numel() and not value.is_floating_point() for n, value in given.items() if n != INPUTS[0])
        and isinstance(phrases, list)
        and [len(row) if isinstance(row, list) else 0 for row in phrases] == [tokens] * batch
        and all(isinstance(label, int) for row in phrases for label in row)
        and isinstance(capture.facts["score_threshold"], float)
    )
    if not fits:
        raise CaptureError(f"{where}: its pictures, masks and tokens do not form a batch of {batch}. Capture again.")
    kept = {name: given[name] for name in (*INPUTS, SELECTED) if name in given}
    return {name: value if name == INPUTS[0] else value.long() for name, value in kept.items()}


def detections_of(out: Output, facts: Mapping[str, Any]) -> Sequence[Detections]:
    """The queries whose best token passes the threshold, by falling score; the label is the phrase of that token.

    As `predict` of the official code (groundingdino/util/inference.py), which gives the phrase as text.
    """
    found = []
    for scores, boxes, (height, width), phrases in zip(
        out.scores, out.boxes, facts["image_sizes_hw"], facts["phrases_of_tokens"], strict=True
    ):
        best, token = scores.max(dim=1)
        kept = best > facts["score_threshold"]
        order = best[kept].argsort(descending=True, stable=True)
        labels = torch.tensor(phrases, device=token.device)[token[kept][order]]
        found.append(Detections(corners(boxes[kept][order], width, height), best[kept][order], labels))
    return found
