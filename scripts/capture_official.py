#!/usr/bin/env python3
"""Capture what the official GLIP (microsoft/GLIP) computes: one file, to be copied to where that code runs.

    converter tables --taps glip-official --variant glip-t > taps.json       # where converter is installed
    python capture_official.py --config configs/pretrain/glip_Swin_T_O365_GoldG.yaml \\
        --weights glip_tiny_model_o365_goldg_cc_sbu.pth --taps taps.json --dst glip-t-real.safetensors
    converter parity glip-t.safetensors --reference glip-t-real.safetensors  # and back

This file alone is needed there: Python 3.8 or newer, torch, numpy, safetensors and the official package
(Pillow or OpenCV for --image). The model runs in float32 and in float64. Of every activation that taps.json names
a few hundred numbers are written, as computed in float64 (`probe` below), with the relative error of the float32 run
beside them: some 6 MB, most of it the images. --full writes the activations whole: hundreds of megabytes, for
comparing block by block.

Before that it has to show that
  - every parameter came from the checkpoint. The official loader leaves what does not match as it was, with a
    log line; so all are filled with NaN before loading, and what is NaN afterwards was not loaded.
  - looking changes nothing: with all hooks and without any, the model gives the same raw outputs and the same
    detections, bit for bit.
Otherwise nothing is written.

The official model runs on captions as it pads them. Of the padding only that is kept which fills up the longest
caption to a multiple of 32 tokens: the in-house model computes no more, so errors and probes of more could not be
compared. Nothing else depends on the padding, which is masked.

Images: --image, read as the official code reads them (BGR, resized, minus PIXEL_MEAN, divided by PIXEL_STD, padded
with zeros to a multiple of DATALOADER.SIZE_DIVISIBILITY). Without it, the synthetic ones of SYNTHETIC, the same
everywhere, as they are made of integers alone: over a smooth background lie shapes (`synthetic_image`), flat, shaded,
striped or noisy. They differ in size, in the number of shapes and in what these show, so that few units of the
network are dead on all of them. The capture holds the inputs as the model got them, so whoever compares needs neither
images nor tokenizer.
"""

# ruff: noqa: B905 - zip has no `strict` before Python 3.10
from __future__ import annotations  # Python 3.8 then takes `list[str]` and `str | None`, which it could not evaluate

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import random
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

BACKBONE, TEXT, HEAD, SELECTOR = "backbone", "language_backbone", "rpn.head", "rpn.box_selector_test"
TOKEN_LOGITS = HEAD + ".dot_product_logits."  # + level: what has its tokens in the last place
TEXT_MULTIPLE = 32  # how many tokens are computed is a multiple of this
SAMPLES, PROJECTIONS = 256, 64  # of a probe
# height, width and shapes of each: sides of 257 to 288 pixels give 5x5 and 3x3 cells on the two coarsest levels
SYNTHETIC = ((288, 288, 6), (281, 271, 24), (277, 288, 96), (288, 263, 400), (265, 288, 6))
CAPTIONS = (
    "person. traffic light. street sign. red brick wall. wooden boat. umbrella. cell phone. fire truck. old stone "
    "bridge. yellow school bus. bicycle. dog. black cat. coffee cup. kitchen table. window. green tree. white paper "
    "bag. leather shoe. clock tower. mountain. ",
    "horse. tennis ball. glass bottle. blue plastic chair. flower. airplane. baseball bat. big round mirror. car. "
    "train station. small white bird. book. computer screen. wine glass. sheep. apple tree. orange. guitar. bed. fork. "
    "lamp. ",
    "elephant. snow board. garden fence. long wooden bench. bear. tall grass. river bank. camera. suit case. red "
    "rose. sports car. hat. silver spoon. fish. police officer. large blue door. knife. roof. carpet. ",
    "child. running shoe. birthday cake. brown leather belt. piano. motor cycle. ice cream. broken window. pizza. hand "
    "bag. cow. open book. ship. striped shirt. moon. swimming pool. desk. ",
    "man with hat. two dogs. empty street. wet sand. wheel. flag. blue sky. grey cloud. small town. iron gate. "
    "chocolate. drum. goat. farm house. dirty plate. ",
)
EPILOG = """\
examples:
  python capture_official.py --config configs/pretrain/glip_Swin_T_O365_GoldG.yaml --weights glip-t.pth \\
      --taps taps.json --dst glip-t-real.safetensors
  python capture_official.py ... --image street.jpg park.jpg --caption "person. car. traffic light. "
  python capture_official.py ... --full                                   # to compare block by block
  python capture_official.py ... --set MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN 32
  python capture_official.py ... --allow-unloaded rpn.head.cls_logits     # a file without these unused weights

exit codes:
  0 written   1 refused: weights not loaded, or hooks change the outputs   2 wrong command line
  3 something cannot be used: a file, the official package, its model     6 the capture cannot be written"""


class Stop(Exception):
    """The capture is not made; `code` is the exit code."""

    code = 3


class Refused(Stop):
    """The model runs, but what it computes would be no reference."""

    code = 1


class NotWritten(Stop):
    """The destination."""

    code = 6


class Tap(NamedTuple):
    """`output` leads from what the module at the path `module` returns to the activation called `name`; `axes`: the
    order in which the capture has its axes, where it is another one."""

    name: str
    module: str
    output: tuple[Any, ...]
    axes: tuple[int, ...] = ()


class Taps(NamedTuple):
    """What `converter tables --taps` wrote. tensors: names of those by which the weights are known, None from before
    they were written."""

    table: str
    model: str
    sha256: str
    taps: list[Tap]
    tensors: list[str] | None


class Batch(NamedTuple):
    """What the model is called with; `images` is the official ImageList, in float32 on the CPU."""

    images: Any
    captions: list[str]
    positive_map: dict[int, list[int]]


class Audit(NamedTuple):
    """unloaded: parameters that kept their initial value, as was allowed; renamed: (parameter, key) loaded from a key
    of another name; unused: keys that went nowhere; state_dict: by what the weights are known, if that was asked."""

    unloaded: list[str]
    renamed: list[tuple[str, str]]
    unused: list[str]
    state_dict: dict[str, str] | None


class Run(NamedTuple):
    """activations by name; given: the inputs as the model got them; detections: (boxes, scores, labels) per image."""

    activations: dict[str, Any]
    given: dict[str, Any]
    detections: list[tuple[Any, Any, Any]]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------- reading


def read_taps(path: str) -> Taps:
    """The taps at `path`; Stop if it is something else."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        content = json.loads(data.decode("utf-8"))
        taps = [
            Tap(str(t["name"]), str(t["module"]), tuple(t["output"]), tuple(map(int, t.get("axes", ()))))
            for t in content["taps"]
        ]
        names = [str(name) for name in content["tensors"]] if "tensors" in content else None
        read = Taps(str(content["table"]), str(content["model"]), hashlib.sha256(data).hexdigest(), taps, names)
    except OSError as error:
        raise Stop(f"--taps {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Stop(f"--taps {path}: not what `converter tables --taps TABLE --variant MODEL` prints") from None
    names = [tap.name for tap in taps]
    if not names or len(set(names)) != len(names):
        raise Stop(f"--taps {path}: names no tap, or one twice")
    return read


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_sources(folder: str) -> str:
    """Of names and contents of all Python files below: the official package has no version that changes."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    lines = (
        f"{os.path.relpath(path, folder)} {sha256_of(path)}\n".encode()
        for path in sorted(paths)
        if path.endswith(".py")
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


def synthetic_image(index: int, height: int, width: int, shapes: int) -> Any:
    """(H, W, 3) uint8 in the order B, G, R, of shapes that are painted one over the other, the first over everything.

    Numbers are drawn from PCG64(index), the upper 24 bits each: 15 for a shape, then one per pixel if it is noisy.
    Later shapes are smaller, down to an eighth of the image. All of it is integer arithmetic.
    """
    import numpy as np

    random = np.random.PCG64(index)

    def draw(count: int) -> Any:
        return (random.random_raw(count) >> np.uint64(40)).astype(np.int64)

    rows, columns = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, 3), np.int64)
    for shape in range(shapes):
        tall, broad, row, column, outline, filling, steep, flat, period, *colours = (int(x) for x in draw(15))
        y, x = rows - row % height, columns - column % width
        if shape == 0:
            tall = broad = 2 * max(height, width)
        else:
            tall = 2 + tall % (height // min(shape + 1, 8))
            broad = 2 + broad % (width // min(shape + 1, 8))
        if outline % 2:
            inside = (y * broad) ** 2 + (x * tall) ** 2 <= (tall * broad) ** 2
        else:
            inside = (abs(y) <= tall) & (abs(x) <= broad)
        if filling % 4 == 0 or shape == 0:  # shaded from the centre on
            share = (abs(y) * 255 // tall + abs(x) * 255 // broad) // 2
        elif filling % 4 == 1:  # stripes
            share = (y * (1 + steep % 5) + x * (flat % 5)) // (1 + period % 12) % 2 * 255
        elif filling % 4 == 2:  # noise
            share = draw(height * width).reshape(height, width) % 256
        else:
            share = np.zeros_like(y)
        first, second = (np.array(of_three) % 256 for of_three in (colours[:3], colours[3:]))
        colour = first + (second - first) * share[..., None] // 255
        image = np.where(inside[..., None], colour, image)
    return as_image(image.astype(np.uint8))


def as_image(pixels: Any) -> Any:
    """A tensor in memory of its own of an array (H, W, 3) uint8."""
    import torch

    return torch.from_numpy(pixels).clone()


def read_image(path: str, min_size: int, max_size: int) -> Any:
    """(H, W, 3) uint8 in the order B, G, R, resized; Stop if it cannot be read."""
    if not os.path.isfile(path):
        raise Stop(f"--image {path}: no such file")
    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        return read_image_by_opencv(path, min_size, max_size)
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError) as error:
        raise Stop(f"--image {path}: {error}") from None
    height, width = resized(image.size[1], image.size[0], min_size, max_size)
    image = image.resize((width, height), Image.BILINEAR)
    return as_image(np.array(image)).flip(2)


def read_image_by_opencv(path: str, min_size: int, max_size: int) -> Any:
    """As `read_image`. OpenCV interpolates otherwise than Pillow; what the model got is in the capture."""
    try:
        import cv2
    except ImportError:
        raise Stop("--image needs Pillow or OpenCV; install one, or leave --image out for synthetic images") from None
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise Stop(f"--image {path}: OpenCV cannot read it")
    height, width = resized(image.shape[0], image.shape[1], min_size, max_size)
    return as_image(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))


def resized(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `min_size`, less where the longer one would exceed `max_size`."""
    short, long = min(height, width), max(height, width)
    if long / short * min_size > max_size:
        min_size = round(max_size * short / long)
    if short == min_size:
        return height, width
    return (int(min_size * height / width), min_size) if width < height else (min_size, int(min_size * width / height))


# ------------------------------------------------------------------------------------------------------- the model


def build(cfg: Any, config: str, overrides: Sequence[str], device: str) -> Any:
    """The official model in eval mode on the CPU, its weights not loaded."""
    from maskrcnn_benchmark.modeling.detector import build_detection_model

    try:
        cfg.merge_from_file(config)
        cfg.merge_from_list(list(overrides))
        cfg.MODEL.DEVICE = device
    except Exception as error:
        raise Stop(f"--config {config} or --set: {named(error)}") from error
    try:
        model = build_detection_model(cfg)
        model.eval()  # on a line of its own: the official train() and eval() return None
    except Exception as error:
        raise Stop(
            f"the official package cannot build the model of {config}: {named(error)}. (It takes BERT's config and "
            "tokenizer from the Hugging Face hub or its cache.)"
        ) from error
    return model


def load_audited(cfg: Any, model: Any, arguments: argparse.Namespace, names: Sequence[str] | None) -> Audit:
    """Load --weights by the official loader and find out what it did; Refused if a parameter was not loaded. `names`:
    the tensors by which the weights are known."""
    import torch
    from maskrcnn_benchmark.utils.checkpoint import DetectronCheckpointer

    # integer buffers are positions and indices that the constructor computes, and cannot be NaN
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point() and value.numel()}
    initial = {key: value.clone() for key, value in state.items()}
    for value in state.values():
        value.fill_(float("nan"))
    checkpointer = DetectronCheckpointer(cfg, model)
    read: dict[str, Any] = {}
    read_file = checkpointer._load_file

    def remember(path: str) -> Any:
        content = read_file(path)
        read.update(content["model"])
        return content

    checkpointer._load_file = remember
    try:
        # force: without it a file `last_checkpoint` in the current folder is followed instead of the path
        checkpointer.load(arguments.weights, force=True)
    except Exception as error:
        raise Stop(f"--weights {arguments.weights}: the official loader fails: {named(error)}") from error

    state = {key: value for key, value in model.state_dict().items() if key in initial}
    unloaded = [key for key, value in state.items() if bool(torch.isnan(value).all())]
    unsound = [key for key, value in state.items() if key not in unloaded and bool(torch.isnan(value).any())]
    if unsound:
        raise Refused(f"the checkpoint holds NaN in {listed(unsound)}")
    renamed, unused = where_keys_went(model.state_dict(), read)
    known_by = None if names is None else state_dict_entry(read, {**unwrapped(read), **dict(renamed)}, names)
    audit = Audit(unloaded, renamed, unused, known_by)
    for key in audit.unused:
        say(f"  key of the checkpoint that went nowhere: {key}")
    for key, other in audit.renamed:
        say(f"  {key} was loaded from {other}")
    refused = [key for key in unloaded if not any(key.startswith(prefix) for prefix in arguments.allow_unloaded)]
    if refused:
        raise Refused(
            f"{len(refused)} of {len(state)} parameters did not come from the checkpoint: {listed(refused)}. The "
            "official code would run with random values there. Is --config that of --weights? What the model does not "
            "use may be left out: --allow-unloaded PREFIX"
        )
    for key in unloaded:
        state[key].copy_(initial[key])
    say(f"  {len(state) - len(unloaded)} of {len(state)} parameters came from the checkpoint")
    return audit


def where_keys_went(state: dict[str, Any], read: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """(parameter, key) where the names differ, as the official loader matches suffixes; keys that went nowhere."""
    import torch

    renamed, unused = [], []
    for name, key in sorted(unwrapped(read).items()):
        value = read[key]

        def holds(parameter: str, value: Any = value) -> bool:
            found = state[parameter].cpu()
            return found.shape == value.shape and torch.equal(found, value.cpu().to(found.dtype))

        if name in state and holds(name):
            continue
        others = [p for p in state if p != name and p.endswith(name) and holds(p)]
        renamed += [(parameter, key) for parameter in others]
        if not others:
            unused.append(key)
    return renamed, unused


def unwrapped(read: dict[str, Any]) -> dict[str, str]:
    """The keys of a state dict, each by its name without the `module.` that a distributed run puts before all."""
    wrapped = all(key.startswith("module.") for key in read)
    return {key[len("module.") :] if wrapped else key: key for key in read}


def state_dict_entry(read: dict[str, Any], keys: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    """By what the weights are known, bit for bit as converter/writing/ledger.py makes it: SHA-256 over a line
    `name dtype shape sha256`, sorted, for each tensor of `names` as the file holds it under `keys`; and their dtype."""
    tensors = {name: read[keys[name]] for name in names if name in keys}
    dtypes = {name: str(value.dtype)[len("torch.") :] for name, value in tensors.items()}
    lines = sorted(
        f"{name} {dtypes[name]} {list(value.shape)} {hashlib.sha256(raw_bytes(value)).hexdigest()}"
        for name, value in tensors.items()
    )
    kinds = sorted(set(dtypes.values()))
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"dtype": kinds[0] if len(kinds) == 1 else "mixed", "sha256": sha256}


def raw_bytes(values: Any) -> bytes:
    """The bytes of a tensor in C order; numpy has no bfloat16."""
    import torch

    values = copied(values)
    data: bytes = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy().tobytes()
    return data


# ----------------------------------------------------------------------------------------------------------- inputs


def make_batch(cfg: Any, model: Any, arguments: argparse.Namespace) -> Batch:
    """Images and captions of the command line, or the synthetic ones."""
    import torch
    from maskrcnn_benchmark.structures.image_list import to_image_list

    if arguments.image:
        min_size = arguments.min_size or cfg.INPUT.MIN_SIZE_TEST
        max_size = arguments.max_size or cfg.INPUT.MAX_SIZE_TEST
        images = [read_image(path, int(min_size), int(max_size)) for path in arguments.image]
    else:
        images = [synthetic_image(index, *settings) for index, settings in enumerate(SYNTHETIC)]
    captions = list(arguments.caption or CAPTIONS)
    if len(captions) == 1:
        captions *= len(images)
    mean, deviation = (
        torch.tensor([float(x) for x in values]).view(3, 1, 1) for values in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    )
    normalised = [(image.permute(2, 0, 1).float() - mean) / deviation for image in images]
    labels = arguments.positive_map or phrase_tokens(cfg, model.tokenizer, captions[0])
    return Batch(to_image_list(normalised, cfg.DATALOADER.SIZE_DIVISIBILITY), captions, labels)


def phrase_tokens(cfg: Any, tokenizer: Any, caption: str) -> dict[int, list[int]]:
    """Labels from 1 on: the token positions of each phrase of `caption`, phrases being what dots separate."""
    encoded = tokenizer.batch_encode_plus(
        [caption], max_length=cfg.MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN, truncation=True
    )
    found: dict[int, list[int]] = {}
    for match in re.finditer(r"[^\s.](?:[^.]*[^\s.])?", caption):
        first, last = encoded.char_to_token(0, match.start()), encoded.char_to_token(0, match.end() - 1)
        if first is not None and last is not None:  # else it was cut off
            found[len(found) + 1] = list(range(first, last + 1))
    if not found:
        raise Stop(f"the caption {caption!r} has no phrase; separate phrases by dots, or give --positive-map")
    return found


# ---------------------------------------------------------------------------------------------------------- running


def predict(model: Any, batch: Batch, device: str, dtype: Any) -> list[tuple[Any, Any, Any]]:
    """(boxes, scores, labels) of each image by falling score, on the CPU."""
    import torch

    random.seed(0)  # with MLM_LOSS the official forward masks tokens at random, in eval mode too
    torch.manual_seed(0)
    with torch.no_grad():
        images = batch.images.to(device=device, dtype=dtype)
        found = model(images, captions=list(batch.captions), positive_map=dict(batch.positive_map))
    detections = []
    for boxes in found:
        scores = boxes.get_field("scores").detach().cpu()
        values = scores.tolist()
        order = torch.tensor(sorted(range(len(values)), key=lambda i, values=values: -values[i]), dtype=torch.int64)
        fields = (boxes.bbox.detach().cpu(), scores, boxes.get_field("labels").detach().cpu().long())
        detections.append(tuple(field[order].contiguous() for field in fields))
    return detections


@contextlib.contextmanager
def gathering(model: Any, taps: Sequence[Tap]) -> Iterator[dict[str, Any]]:
    """While active, tapped activations gather in the dict; nothing is changed."""
    modules = dict(model.named_modules())
    by_module: dict[str, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tap.module, []).append(tap)
    missing = sorted(set(by_module) - set(modules))
    if missing:
        raise Stop(f"the model has no module {listed(missing)}; are --taps those of this model's variant?")
    activations: dict[str, Any] = {}

    def keep(of_module: Sequence[Tap]) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            for tap in of_module:
                if tap.name in activations:
                    raise Stop(f"{tap.module} runs more than once, so {tap.name} is ambiguous")
                activations[tap.name] = copied(follow(output, tap))

        return hook

    handles = [modules[path].register_forward_hook(keep(of_module)) for path, of_module in by_module.items()]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def observing(model: Any, taps: Sequence[Tap]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """While active, tapped activations and the model's inputs gather in the two dicts; nothing is changed."""
    modules = dict(model.named_modules())
    if not {BACKBONE, TEXT} <= set(modules):
        raise Stop(f"the model has no module {listed(sorted({BACKBONE, TEXT} - set(modules)))}")
    given: dict[str, Any] = {}

    def keep_images(module: Any, inputs: Any) -> None:
        images = inputs[0]["img"] if isinstance(inputs[0], dict) else inputs[0]
        given["input.images"] = copied(images)

    def keep_text(module: Any, inputs: Any) -> None:
        given["input.input_ids"] = copied(inputs[0]["input_ids"]).long()
        given["input.attention_mask"] = copied(inputs[0]["attention_mask"]).long()

    with gathering(model, taps) as activations:
        handles = [
            modules[BACKBONE].register_forward_pre_hook(keep_images),
            modules[TEXT].register_forward_pre_hook(keep_text),
        ]
        try:
            yield activations, given
        finally:
            for handle in handles:
                handle.remove()


def follow(value: Any, tap: Tap) -> Any:
    """From what a module returned to the tensor: by index, by key of a dict, or by attribute."""
    import torch

    try:
        for step in tap.output:
            if isinstance(value, torch.Tensor):
                raise TypeError("a tensor already")  # an index would silently take one image of the batch
            value = value[step] if isinstance(step, int) or isinstance(value, dict) else getattr(value, step)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"a {type(value).__name__}, no tensor")
        if tap.axes:
            value = value.permute(tap.axes)
    except (KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        path = ", ".join(map(str, tap.output)) or "itself"
        raise Stop(f"tap {tap.name}: what {tap.module} returns leads nowhere by {path} ({named(error)})") from None
    return value


def copied(tensor: Any) -> Any:
    """On the CPU, in memory of its own: later layers may work in place."""
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def run_proved(model: Any, batch: Batch, taps: Sequence[Tap], device: str, dtype: Any) -> Run:
    """Run without hooks and with all; Refused unless raw outputs and detections agree bit for bit."""
    import torch

    with reading_head(model, taps) as raw:
        clean = predict(model, batch, device, dtype)
    with observing(model, taps) as (activations, given):
        detections = predict(model, batch, device, dtype)
    silent = [tap.name for tap in taps if tap.name not in activations]
    if silent or len(given) != 3:
        raise Stop(f"the model never ran what {len(silent)} taps look at: {listed(silent or [BACKBONE])}")
    for name, value in activations.items():
        if not bool(torch.isfinite(value).all()):
            raise Refused(f"{name} holds NaN or infinity in {dtype}: no reference to measure by")
    changed = [name for name in raw if not same(raw[name], activations[name])]
    changed += [f"the detections of image {i}" for i, (a, b) in enumerate(zip(clean, detections)) if not alike(a, b)]
    if changed:
        with reading_head(model, taps) as again:
            repeated = predict(model, batch, device, dtype)
        if not (all(same(raw[name], again[name]) for name in raw) and all(map(alike, clean, repeated))):
            raise Refused(
                f"two runs without any hook differ: the model is not deterministic on {device}, and nothing can be "
                "told from what it computes. Try --device cpu, or another torch"
            )
        raise Refused(f"hooks change what the model computes: others are {listed(changed)}")
    return without_padding(Run(activations, given, detections))


def without_padding(run: Run) -> Run:
    """The same with as many tokens as the in-house model computes: up to the last that any caption attends to, rounded
    up to a multiple of 32."""
    attended = run.given["input.attention_mask"].amax(dim=0).tolist()
    length = max(position + 1 for position, value in enumerate(attended) if value)
    tokens = min(len(attended), -(-length // TEXT_MULTIPLE) * TEXT_MULTIPLE)

    def cut(name: str, value: Any) -> Any:
        if name.startswith(TOKEN_LOGITS):
            return value[:, :, :tokens].contiguous()
        if name.startswith((TEXT + ".", "input.input_ids", "input.attention_mask")) or name.endswith(".lang"):
            return value[:, :tokens].contiguous()
        return value

    activations, given = ({name: cut(name, value) for name, value in part.items()} for part in run[:2])
    return run._replace(activations=activations, given=given)


@contextlib.contextmanager
def reading_head(model: Any, taps: Sequence[Tap]) -> Iterator[dict[str, Any]]:
    """While active, the head's raw outputs gather in the dict. This is not a hook: the clean run must not have any."""
    of_head = [tap for tap in taps if tap.module == HEAD]
    head = dict(model.named_modules()).get(HEAD)
    if head is None or not of_head:
        raise Stop(f"the model, or --taps, has no {HEAD}, whose outputs show that hooks change nothing")
    forward = head.forward
    raw: dict[str, Any] = {}

    def reading(*inputs: Any, **options: Any) -> Any:
        output = forward(*inputs, **options)
        raw.update({tap.name: copied(follow(output, tap)) for tap in of_head})
        return output

    head.forward = reading
    try:
        yield raw
    finally:
        del head.forward


def alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """The same boxes, scores and labels."""
    return all(map(same, a, b))


def same(a: Any, b: Any) -> bool:
    """Equal in dtype, shape and every bit."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    whole = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16}
    kind = whole.get(a.dtype, a.dtype)
    return torch.equal(a.view(kind), b.view(kind))


@contextlib.contextmanager
def post_processing_in_float32(model: Any) -> Iterator[None]:
    """While active, raw outputs are rounded to float32 in front of the box selection."""
    import torch

    def rounded(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(rounded(item) for item in value)
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value

    def hook(module: Any, inputs: Any) -> Any:
        return tuple(rounded(value) for value in inputs)

    handle = dict(model.named_modules())[SELECTOR].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run_float32(model: Any, batch: Batch, taps: Sequence[Tap], device: str) -> Run:
    """The run in float32; Stop where the model does not run."""
    import torch

    try:
        return run_proved(model, batch, taps, device, torch.float32)
    except Stop:
        raise
    except Exception as error:
        hint = " Its deformable convolution is made for CUDA alone; use --device cuda." if device == "cpu" else ""
        raise Stop(f"the model does not run on {device}: {named(error)}.{hint}") from error


def run_float64(model: Any, batch: Batch, taps: Sequence[Tap], device: str) -> tuple[Run | None, str]:
    """The run in float64, or None where the device or a kernel cannot; and what to say of it. Leaves it in float64."""
    import torch

    selector = SELECTOR in dict(model.named_modules())
    reasons: list[str] = []
    for rounded in (False, True) if selector else (False,):
        try:
            model.double()
            with post_processing_in_float32(model) if rounded else contextlib.nullcontext():
                run = run_proved(model, batch, taps, device, torch.float64)
            note = "float64" + (f" (post-processing in float32: in float64, {reasons[0]})" if rounded else "")
            return run, note
        except Stop:
            raise
        except Exception as error:
            reasons.append(named(error))
            say("  float64{}: {}".format(" with post-processing in float32" if rounded else "", reasons[-1]))
    dtype = f"float32 (in float64, the model does not run on {device}: {reasons[-1]})"
    say(f"note: this capture is {dtype}. It measures nothing better than float32")
    return None, dtype


def own_errors(exact: dict[str, Any], rounded: dict[str, Any]) -> dict[str, float]:
    """Relative Frobenius error of each activation."""
    errors = {}
    for name, value in exact.items():
        value = value.double()
        errors[name] = float((rounded[name].double() - value).norm()) / (float(value.norm()) or 1.0)
    return errors


# ------------------------------------------------------------------------------------------------------ the capture


def probe(name: str, values: Any) -> Any:
    """A few hundred numbers that stand for a tensor, bit for bit those of converter/parity/probes.py: elements at
    random places, and sums over all elements with random signs; a small tensor, whole."""
    import numpy as np
    import torch

    flat = values.detach().cpu().double().flatten()
    size = flat.numel()
    if size <= SAMPLES + PROJECTIONS:
        return flat
    random = np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    bounds = np.arange(SAMPLES + 1) * size // SAMPLES
    places = bounds[:-1] + (random.random_raw(SAMPLES) % np.diff(bounds).astype(np.uint64)).astype(np.int64)
    places[0], places[-1] = 0, size - 1
    words = random.random_raw(-(-PROJECTIONS * size // 64)).astype("<u8")
    bits = torch.from_numpy(np.unpackbits(words.view(np.uint8), count=PROJECTIONS * size).reshape(PROJECTIONS, size))
    sums = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for begin in range(0, size, 8192):  # in float64 they take eight times the memory, and so many fit the cache
        sums += bits[:, begin : begin + 8192].double() @ flat[begin : begin + 8192]
    projections = 2 * sums - flat.sum()  # a bit b stands for the sign 2b - 1
    return torch.cat([flat[torch.from_numpy(places)], projections])


def probes_of(activations: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The probes of each, and what the capture has to say of it: shape and Frobenius norm."""
    said = {
        name: {"shape": list(value.shape), "norm": float(value.double().norm())} for name, value in activations.items()
    }
    return {name: probe(name, value) for name, value in activations.items()}, said


def tensors_of(run: Run) -> dict[str, Any]:
    """All tensors of the capture, by name."""
    images = run.given["input.images"].float()
    if not same(images.to(run.given["input.images"].dtype), run.given["input.images"]):
        raise Refused("the backbone got images that are not float32 numbers, which captures cannot hold")
    tensors = {**run.activations, **run.given, "input.images": images}
    for index, (boxes, scores, labels) in enumerate(run.detections):
        prefix = f"detections.{index}."
        tensors.update({prefix + "boxes": boxes, prefix + "scores": scores, prefix + "labels": labels})
    return tensors


def write(path: str, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    """The capture, whole or not at all, with the permissions of any new file: save_file would leave it to its owner."""
    from safetensors.torch import save

    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(save(tensors, metadata={"capture": json.dumps(facts, sort_keys=True, allow_nan=False)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise NotWritten(f"--dst {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def tool_versions(device: str) -> dict[str, str]:
    """Of what took part."""
    import maskrcnn_benchmark

    return {
        **common_versions(device),
        "maskrcnn_benchmark": "sources sha256 " + sha256_of_sources(maskrcnn_benchmark.__path__[0]),
    }


def common_versions(device: str) -> dict[str, str]:
    """Of what takes part whatever the model."""
    import numpy
    import safetensors
    import torch

    versions = {
        "capture_official.py": "sha256 " + sha256_of(os.path.abspath(__file__)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(numpy.__version__),
        "safetensors": str(getattr(safetensors, "__version__", "unknown")),
        "machine": torch.cuda.get_device_name(torch.device(device))
        if device.startswith("cuda")
        else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "tf32": "off",
    }
    if device.startswith("cuda"):
        versions.update({"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())})
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        versions["transformers"] = str(transformers.__version__)
    return versions


def make_deterministic() -> None:
    """The same sums in the same order in every run, and none of them in TF32."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if hasattr(torch, "use_deterministic_algorithms"):
        # torch < 1.11 has no warn_only: there an official kernel without a deterministic form would stop it
        with contextlib.suppress(TypeError):
            torch.use_deterministic_algorithms(True, warn_only=True)


def check_paths(arguments: argparse.Namespace) -> None:
    """Stop, or NotWritten, before minutes are spent."""
    if os.path.exists(arguments.dst) and not arguments.force:
        raise NotWritten(f"--dst {arguments.dst} exists; --force replaces it")
    if not os.path.isdir(os.path.dirname(arguments.dst) or "."):
        raise NotWritten(f"--dst {arguments.dst}: there is no such folder")
    for option, path in (("--config", arguments.config), ("--weights", arguments.weights)):
        if not os.path.isfile(path):
            raise Stop(f"{option} {path}: no such file")


def facts_of(arguments: argparse.Namespace, taps: Taps, audit: Audit, batch: Batch, device: str) -> dict[str, Any]:
    """What the capture says of its making, the results of runs aside."""
    return {
        "name": arguments.name or os.path.splitext(os.path.basename(arguments.dst))[0],
        "model": taps.model,
        "table": taps.table,
        "device": device,
        "weights": f"{os.path.basename(arguments.weights)}, sha256 {sha256_of(arguments.weights)}",
        "tools": tool_versions(device),
        "captions": batch.captions,
        "image_sizes_hw": [[int(size[0]), int(size[1])] for size in batch.images.image_sizes],
        "positive_map_label_to_token": {str(label): tokens for label, tokens in batch.positive_map.items()},
        "official_config": arguments.config,
        "official_overrides": list(arguments.set),
        "images": [os.path.basename(path) for path in arguments.image] or "synthetic",
        "taps_sha256": taps.sha256,
        "audit": {"unloaded": audit.unloaded, "renamed": audit.renamed, "unused": audit.unused},
        **({} if audit.state_dict is None else {"state_dict": audit.state_dict}),
    }


def capture(arguments: argparse.Namespace) -> str:
    """Make and write the capture; a sentence about it."""
    check_paths(arguments)
    taps = read_taps(arguments.taps)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    try:
        import numpy  # noqa: F401 - else their absence shows only at the end
        import safetensors.torch  # noqa: F401
        import torch
        from maskrcnn_benchmark.config import cfg
    except ImportError as error:
        raise Stop(
            f"{error}; run this where the official package, torch, numpy and safetensors are installed"
        ) from None
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    make_deterministic()

    say(f"building the model of {arguments.config}")
    model = build(cfg, arguments.config, arguments.set, device)
    say(f"loading {arguments.weights}")
    audit = load_audited(cfg, model, arguments, taps.tensors)
    if audit.state_dict is None:
        say("note: --taps is of an older `converter tables`, so the capture will not say of which weights it is")
    model.to(device)
    batch = make_batch(cfg, model, arguments)
    described = facts_of(arguments, taps, audit, batch, device)  # files as they are now, before minutes of running

    say(f"running in float32 on {device}, with hooks and without")
    single = run_float32(model, batch, taps.taps, device)
    say(f"running in float64 on {device}, with hooks and without")
    double, dtype = run_float64(model, batch, taps.taps, device)
    run = double or single
    found = sum(len(labels) for _, _, labels in run.detections)
    if not found:
        say("note: nothing was detected, so this capture says nothing of decoding and suppression; try --image")

    facts = {
        **described,
        "dtype": dtype[:400],
        "errors": {} if double is None else {"float32": own_errors(double.activations, single.activations)},
    }
    if not arguments.full:
        probes, facts["compact"] = probes_of(run.activations)
        run = run._replace(activations=probes)
    write(arguments.dst, tensors_of(run), facts)
    kept = "{} activations in {}{}".format(
        len(run.activations), dtype.split()[0], "" if arguments.full else ", compact"
    )
    return f"written: {arguments.dst}, {kept}, {found} detections, {os.path.getsize(arguments.dst) / 1e6:.1f} MB"


# -------------------------------------------------------------------------------------------------- the command line


def named(error: BaseException) -> str:
    """`TypeError: the message`, on one line and not too long."""
    text = "{}: {}".format(type(error).__name__, " ".join(str(error).split())).rstrip(": ")
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the official code prints is shown only if it fails: it prints a tensor on each call."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except BaseException:
        if printed.getvalue().strip():
            say("printed meanwhile, at the end:\n" + printed.getvalue().rstrip()[-2000:])
        raise


def listed(names: Sequence[str], limit: int = 8) -> str:
    more = "" if len(names) <= limit else f" and {len(names) - limit} more"
    return ", ".join(names[:limit]) + more


def positive_map(text: str) -> dict[int, list[int]]:
    """Of `{"1": [1], "2": [3, 4]}`."""
    content = json.loads(text)
    found = {int(label): [int(token) for token in tokens] for label, tokens in content.items()}
    if not found or min(found) < 1 or not all(found.values()):
        raise ValueError(text)
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration file of the official code")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the official code")
    parser.add_argument("--taps", required=True, metavar="FILE", help="what `converter tables --taps` printed")
    parser.add_argument("--dst", required=True, metavar="FILE", help="capture to write, .safetensors")
    parser.add_argument("--force", action="store_true", help="replace --dst")
    parser.add_argument("--name", help="name of the capture; default: that of --dst")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: cuda where there is one")
    parser.add_argument(
        "--full", action="store_true", help="write activations whole, not a few hundred numbers of each"
    )
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="FILE",
                        help="one or more, repeatable; default: synthetic ones")  # fmt: skip
    parser.add_argument("--caption", nargs="+", action="extend", default=[], metavar="TEXT",
                        help="one for all images or one for each, repeatable; phrases end with dots")  # fmt: skip
    parser.add_argument("--positive-map", type=positive_map, metavar="JSON",
                        help='{"label": [token, ...]}, labels from 1; default: those of the first caption')  # fmt: skip
    parser.add_argument("--min-size", type=int, metavar="N", help="shorter side of --image; default: the config's")
    parser.add_argument("--max-size", type=int, metavar="N", help="longest side of --image; default: the config's")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                        help="override an entry of --config; repeatable")  # fmt: skip
    parser.add_argument("--allow-unloaded", action="append", default=[], metavar="PREFIX",
                        help="parameters that the checkpoint may lack; repeatable")  # fmt: skip
    arguments = parser.parse_args(argv)
    if "" in arguments.allow_unloaded:
        parser.error("--allow-unloaded needs a prefix: without one, nothing would be audited")
    arguments.set = [item for pair in arguments.set for item in pair]
    images = len(arguments.image) or len(SYNTHETIC)
    if not arguments.dst.endswith(".safetensors"):
        parser.error("captures are safetensors; let --dst end in .safetensors")
    if arguments.image and not arguments.caption:
        parser.error("--image needs a --caption that says what to look for")
    if len(arguments.caption) not in (0, 1, images):
        parser.error(f"{len(arguments.caption)} captions for {images} images; give one for all, or one each")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        with quiet():
            done = capture(arguments)
        print(done)
    except Stop as stop:
        if stop.__cause__ is not None:  # of the official code: whoever has to look into it needs the place
            traceback.print_exception(type(stop.__cause__), stop.__cause__, stop.__cause__.__traceback__)
        say(f"error: {stop}")
        return stop.code
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
