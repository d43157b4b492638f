"""Capture what the official Grounding DINO (IDEA-Research/GroundingDINO) computes, as its package has it.

    converter tables --taps groundingdino-official --variant grounding-dino-tiny > taps.json
    official/bin/python scripts/capture_grounding_dino.py groundingdino-swint --weights groundingdino_swint_ogc.pth \\
        --taps taps.json --dst grounding-dino-tiny.safetensors

It runs in the environment of official_grounding_dino.py, with that file, capture_official.py and the folder `converter`
where they are in this repository. As capture_official.py does for GLIP, it writes of every activation a few hundred
numbers (or, with --full, all) as computed in float64, with the relative error of the float32 run beside them, and shows
before that every parameter came from the checkpoint and that looking changes nothing.

In the float64 run nothing is computed in float32, which the official code asks for here and there; the float32 run is
as it is. The proposals that become queries are those of the float64 run in both: near ties fall otherwise in float32,
and then nothing that follows is in the same order. They are kept as `input.selected`.

Pictures: --image, read as the official code reads them, or the synthetic ones of SYNTHETIC, the same everywhere.
Captions: with --image --caption, which --vocabulary (BERT's vocab.txt) divides; else TOKENS. Detections are those of
the official `predict` (groundingdino/util/inference.py): boxes of the queries whose best token passes the threshold,
with its score; the label is the number of the phrase, from 1 on, that this token is in.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from capture_official import (
    NotWritten,
    Refused,
    Stop,
    Tap,
    Taps,
    alike,
    common_versions,
    copied,
    gathering,
    listed,
    make_deterministic,
    named,
    own_errors,
    probes_of,
    read_image,
    read_taps,
    same,
    say,
    sha256_of,
    state_dict_entry,
    synthetic_image,
    unwrapped,
    write,
)
from official_grounding_dino import CONFIGS, SPECIAL_TOKENS, build, run

sys.path.append(str(Path(__file__).resolve().parent.parent))
from converter.grounding_dino.switches import exact, selecting

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT, LONG = 800, 1333  # sides of a picture, groundingdino/util/inference.py
# height, width and shapes of each. The second is padded and has fewer cells than there are queries: some are made of
# cells beside it, whose boxes begin at the limits of what a box can be. The first is so long that proposals at its ends
# are no valid ones, either
SYNTHETIC = ((180, 432, 24), (130, 300, 96))
# ids of bert-base-uncased between [CLS] and [SEP]; the second is padded. The three phrases of it have three lengths
CAPTIONS = (
    "person. bicycle. traffic light. new wooden boat. cell phone. fire. parking meter. umbrella. stop sign.",
    "traffic light. two person inside the line. umbrella.",
)
TOKENS = (
    (2711, 1012, 10165, 1012, 4026, 2422, 1012, 2047, 4799, 4049, 1012, 3526, 3042, 1012, 2543, 1012, 5581, 8316, 1012,
     12977, 1012, 2644, 3696, 1012),
    (4026, 2422, 1012, 2048, 2711, 2503, 1996, 2240, 1012, 12977, 1012),
)  # fmt: skip
THRESHOLD = 0.35  # of a score: box_threshold of the official examples
PADDING, LONGEST = 0, 256


class Given(NamedTuple):
    """What the model is called with, and what the capture says of it beside."""

    inputs: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Ran(NamedTuple):
    """A run: activations by name, (boxes, scores, labels) for each picture, and the proposals (B, queries) it took."""

    activations: dict[str, torch.Tensor]
    detections: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    selected: torch.Tensor


# ------------------------------------------------------------------------------------------------------- the model


def load_audited(model: torch.nn.Module, path: str, names: Sequence[str] | None) -> dict[str, Any]:
    """Load weights as the official code does, and say what it did with them; Refused if a parameter was not loaded.
    `names`: the tensors by which the weights are known."""
    from groundingdino.util.misc import clean_state_dict

    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    for value in state.values():
        value.fill_(float("nan"))
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)["model"]
        told = model.load_state_dict(clean_state_dict(read), strict=False)
    except Exception as error:
        raise Stop(f"--weights {path}: the official loader fails: {named(error)}") from error
    if unsound := [key for key, value in state.items() if bool(torch.isnan(value).any())]:
        raise Refused(f"{len(unsound)} parameters hold NaN or did not come from the checkpoint: {listed(unsound)}")
    for key in told.unexpected_keys:
        say(f"  key of the checkpoint that went nowhere: {key}")
    audit: dict[str, Any] = {"audit": {"unloaded": [], "renamed": [], "unused": list(told.unexpected_keys)}}
    if names is not None:
        audit["state_dict"] = state_dict_entry(read, unwrapped(read), names)
    return audit


# ----------------------------------------------------------------------------------------------------------- inputs


def given_by(arguments: argparse.Namespace) -> Given:
    """Pictures and tokens of the command line, or the synthetic ones."""
    if arguments.image:
        pictures = [read_image(path, SHORT, LONG) for path in arguments.image]
    else:
        pictures = [synthetic_image(index, *settings) for index, settings in enumerate(SYNTHETIC)]
    tokens, captions = tokens_of(arguments)
    if len(tokens) == 1:
        tokens, captions = tokens * len(pictures), captions * len(pictures)
    pixels, mask = padded([picture.flip(2).permute(2, 0, 1) for picture in pictures])
    ids = torch.full((len(tokens), max(map(len, tokens))), PADDING)
    for row, of_picture in zip(ids, tokens, strict=True):
        row[: len(of_picture)] = torch.tensor(of_picture)
    attended = torch.tensor([[place < len(row) for place in range(ids.shape[1])] for row in tokens]).long()
    inputs = {
        "pixel_values": pixels,
        "pixel_mask": mask,
        "input_ids": ids,
        "attention_mask": attended,
        "token_type_ids": torch.zeros_like(ids),
    }
    facts = {
        "captions": captions,
        "image_sizes_hw": [[int(size) for size in picture.shape[:2]] for picture in pictures],
        "phrases_of_tokens": [phrases_of(row) for row in ids.tolist()],
        "score_threshold": arguments.threshold,
        "images": [os.path.basename(path) for path in arguments.image] or "synthetic",
    }
    return Given(inputs, facts)


def padded(pictures: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pictures (B, 3, H, W), zero below and to the right of smaller ones, and 1 where a picture is."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    pixels = torch.zeros(len(pictures), 3, height, width)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.int64)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    for picture, into, there in zip(pictures, pixels, mask, strict=True):
        into[:, : picture.shape[1], : picture.shape[2]] = (picture / 255.0 - mean) / deviation
        there[: picture.shape[1], : picture.shape[2]] = 1
    return pixels, mask


def tokens_of(arguments: argparse.Namespace) -> tuple[list[list[int]], list[str]]:
    """The ids of each caption with [CLS] and [SEP], no more than the model takes, and the captions as they are read."""
    if not arguments.caption:
        return [[SPECIAL_TOKENS[0], *ids, SPECIAL_TOKENS[1]] for ids in TOKENS], list(CAPTIONS)
    from groundingdino.util.inference import preprocess_caption
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(arguments.vocabulary, do_lower_case=True)
    captions = [preprocess_caption(caption) for caption in arguments.caption]
    return [tokenizer(caption)["input_ids"][:LONGEST] for caption in captions], captions


def phrases_of(ids: Sequence[int]) -> list[int]:
    """For each token the number of its phrase from 1 on: a dot or question mark ends one, and belongs to it. [CLS] is
    in the first, [SEP] and what follows in the last."""
    ends = [place for place, token in enumerate(ids) if token in SPECIAL_TOKENS[2:]]
    last = max(len(ends), 1)
    return [min(1 + sum(end < place for end in ends), last) for place in range(len(ids))]


# ---------------------------------------------------------------------------------------------------------- running


def predict(model: torch.nn.Module, given: Given) -> tuple[dict[str, torch.Tensor], list[tuple[Any, Any, Any]]]:
    """The model's output, and (boxes, scores, labels) of each picture by falling score."""
    dtype = next(model.parameters()).dtype
    inputs = {**given.inputs, "pixel_values": given.inputs["pixel_values"].to(dtype)}
    with torch.no_grad():
        out = run(model, inputs)
    sizes, phrases, threshold = (given.facts[n] for n in ("image_sizes_hw", "phrases_of_tokens", "score_threshold"))
    of_pictures = zip(out["pred_logits"].sigmoid(), out["pred_boxes"], sizes, phrases, strict=True)
    return out, [detected(*of_picture, threshold) for of_picture in of_pictures]


def detected(
    scores: torch.Tensor, boxes: torch.Tensor, size: Sequence[int], phrases: Sequence[int], threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of scores (queries, tokens) and boxes (queries, 4), centre and size in shares of the picture."""
    best, token = scores.max(dim=1)
    kept = best > threshold
    order = best[kept].argsort(descending=True, stable=True)
    centre, extent = boxes[kept][order].split(2, dim=1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
    corners = corners * torch.tensor([size[1], size[0], size[1], size[0]], dtype=boxes.dtype)
    labels = torch.tensor(phrases, dtype=torch.int64)[token[kept][order]]
    return corners.contiguous(), best[kept][order].contiguous(), labels.contiguous()


def run_proved(model: torch.nn.Module, given: Given, taps: Sequence[Tap], selected: torch.Tensor | None) -> Ran:
    """Run without hooks and with all; Refused unless outputs and detections agree bit for bit."""
    dtype = next(model.parameters()).dtype
    with exact() if dtype == torch.float64 else contextlib.nullcontext(), selecting(selected) as seen:
        clean, clean_detections = predict(model, given)
        with gathering(model, taps) as activations:
            out, detections = predict(model, given)
        if silent := [tap.name for tap in taps if tap.name not in activations]:
            raise Stop(f"the model never ran what {len(silent)} taps look at: {listed(silent)}")
        changed = [name for name, value in clean.items() if not same(value, out[name])]
        pairs = enumerate(zip(clean_detections, detections, strict=True))
        changed += [f"the detections of picture {i}" for i, (a, b) in pairs if not alike(a, b)]
        if changed or not same(seen[0], seen[1]):
            raise Refused(f"hooks change what the model computes, or it is not deterministic: {listed(changed)}")
    tokens = given.inputs["input_ids"].shape[1]
    activations = {name: of_tokens(value, tokens) for name, value in activations.items()}
    for name, value in activations.items():
        if not bool(torch.isfinite(value).all()):
            raise Refused(f"{name} holds NaN or infinity in {dtype}: no reference to measure by")
    return Ran(activations, detections, copied(seen[0]))


def of_tokens(value: torch.Tensor, tokens: int) -> torch.Tensor:
    """Logits of as many tokens as the captions have, where the model makes 256 of them; zero where one is masked."""
    if value.shape[-1] != LONGEST or not bool((value == -torch.inf).any()):
        return value
    return value[..., :tokens].masked_fill(value[..., :tokens] == -torch.inf, 0.0).contiguous()


# ------------------------------------------------------------------------------------------------------ the capture


def tensors_of(ran: Ran, given: Given) -> dict[str, torch.Tensor]:
    """All tensors of the capture, by name."""
    tensors = {**ran.activations, **{f"input.{name}": value for name, value in given.inputs.items()}}
    tensors["input.pixel_mask"] = given.inputs["pixel_mask"].to(torch.uint8)  # an eighth of the size
    tensors["input.selected"] = ran.selected
    for index, found in enumerate(ran.detections):
        tensors |= {f"detections.{index}.{p}": v for p, v in zip(("boxes", "scores", "labels"), found, strict=True)}
    return tensors


def facts_of(arguments: argparse.Namespace, taps: Taps) -> dict[str, Any]:
    """What the capture says of its making, the results of runs aside."""
    return {
        "name": arguments.name or os.path.splitext(os.path.basename(arguments.dst))[0],
        "model": taps.model,
        "table": taps.table,
        "device": "cpu",
        "weights": f"{os.path.basename(arguments.weights)}, sha256 {sha256_of(arguments.weights)}",
        "tools": {
            **common_versions("cpu"),
            os.path.basename(__file__): "sha256 " + sha256_of(os.path.abspath(__file__)),
            "groundingdino-py": importlib.metadata.version("groundingdino-py"),
        },
        "official_config": f"groundingdino/config/{CONFIGS[arguments.model]}",
        "taps_sha256": taps.sha256,
    }


def capture(arguments: argparse.Namespace) -> str:
    """Make and write the capture; a sentence about it."""
    if os.path.exists(arguments.dst) and not arguments.force:
        raise NotWritten(f"--dst {arguments.dst} exists; --force replaces it")
    taps = read_taps(arguments.taps)
    make_deterministic()
    say(f"building {arguments.model}")
    model = build(arguments.model)
    say(f"loading {arguments.weights}")
    audit = load_audited(model, arguments.weights, taps.tensors)
    given = given_by(arguments)
    facts: Mapping[str, Any] = {**facts_of(arguments, taps), **given.facts, **audit}

    say("running in float64, with hooks and without")
    double = run_proved(model.double(), given, taps.taps, None)
    say("running in float32, with hooks and without")
    single = run_proved(model.float(), given, taps.taps, double.selected)
    errors = own_errors(double.activations, single.activations)
    facts = {**facts, "dtype": "float64", "errors": {"float32": errors}}
    kept = double
    if not arguments.full:
        probes, said = probes_of(double.activations)
        kept, facts = double._replace(activations=probes), {**facts, "compact": said}
    write(arguments.dst, tensors_of(kept, given), dict(facts))
    found = [len(labels) for _, _, labels in double.detections]
    return f"written: {arguments.dst}, {len(kept.activations)} activations, {found} detections, " + (
        f"float32 off by at most {max(errors.values()):.1e}, {os.path.getsize(arguments.dst) / 1e6:.1f} MB"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the official code")
    parser.add_argument("--taps", required=True, metavar="FILE", help="what `converter tables --taps` printed")
    parser.add_argument("--dst", required=True, metavar="FILE", help="capture to write, .safetensors")
    parser.add_argument("--force", action="store_true", help="replace --dst")
    parser.add_argument("--name", help="name of the capture; default: that of --dst")
    parser.add_argument("--full", action="store_true", help="write activations whole, not some numbers of each")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="default: synthetic ones")
    parser.add_argument("--caption", nargs="+", default=[], metavar="TEXT", help="one for all pictures or one for each")
    parser.add_argument("--vocabulary", metavar="FILE", help="vocab.txt of bert-base-uncased, for --caption")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="least score of a detection")
    arguments = parser.parse_args(argv)
    if bool(arguments.image) != bool(arguments.caption) or bool(arguments.caption) != bool(arguments.vocabulary):
        parser.error("--image, --caption and --vocabulary go together")
    if len(arguments.caption) not in (0, 1, len(arguments.image)):
        parser.error(f"{len(arguments.caption)} captions for {len(arguments.image)} images; give one, or one each")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        print(capture(arguments))
    except Stop as stop:
        say(f"error: {stop}")
        return stop.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
