"""A file that costs nothing to make costs little to refuse, through every door: at most 1 s and 200 MiB.

Time is that of the processor, so that other work on the machine does not count; memory is the kernel's peak above what
the process held before it opened the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.bombs import BESIDE, HEADERS, TEXTS, beside, configured, header, tiny_tensors
from tests.support.doors import DOORS, MEBIBYTES, SECONDS, Opened, doors_of
from tests.support.saved_glip import ledger
from tests.support.small_capture import write
from tests.support.small_folder import small_folder

Through = Callable[[str, Path], Opened]
EVERY_DOOR = ["thousands of offsets of 4,000 digits", "5 million lists in the record config"]
# these weights may be converted by who does not read the record, or the record is none of theirs
MAY_PASS = ("in the record", "metadata of")

CONFIGS: dict[str, dict[str, Any]] = {
    "a depth of 2**62": {"depths": [1 << 62, 2, 2, 1]},
    "depths that sum up": {"depths": [65] * 4},
    "a window of 2**31": {"window_size": 1 << 31},
    "a window of 30000": {"window_size": 30_000},
    "blocks without end": {"head_blocks": 10**300},
    "a vocabulary of 2**40": {"vocab_size": 1 << 40},
    "a long prompt": {"prompt_length": 1 << 40},
    "a negative prompt": {"prompt_length": -1},
    "large patches": {"patch_size": 10**9},
    "many heads": {"num_heads": [1 << 62] * 4},
    "text heads": {"text_heads": 1 << 62},
    "a wide image encoder": {"embed_dim": 1 << 40},
    "a wide MLP": {"mlp_ratio": 10**300},
    "a ratio that is a fraction": {"mlp_ratio": 1.5},
    "large anchors": {"anchor_sizes": [10**300] * 5},
    "negative strides": {"anchor_strides": [-8] * 5},
    "positions": {"max_positions": 1 << 40},
    "100,000 fields": {format(number, "x"): 1 for number in range(100_000)},
    "the largest that is allowed, of other weights": {"depths": [64] * 4, "text_layers": 64, "head_blocks": 64},
}
PREPROCESSING: dict[str, dict[str, Any]] = {
    "a side of 65536": {"shorter_side": 65536, "longer_side": 65536},
    "a multiple of 65536": {"size_multiple": 65536},
    "a mean beyond floats": {"mean": [10**300] * 3},
    "tokens": {"caption_tokens": 10**9},
    "100,000 fields": {format(number, "x"): 1 for number in range(100_000)},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the doors are opened with: a sound model, a capture of it, and a picture."""
    folder = tmp_path_factory.mktemp("house")
    model = small_folder(folder / "model")
    (model / "conversion.json").write_text(json.dumps(ledger(model / "model.safetensors")))
    write(folder / "capture.safetensors")
    Image.new("RGB", (80, 60)).save(folder / "p.png")
    return folder


@pytest.fixture(scope="module")
def through(house: Path) -> Iterator[Through]:
    with doors_of(house) as through:
        yield through


def check(what: str, opened: Opened, *, refused: bool = True) -> None:
    assert not opened.error, (what, opened)
    assert (opened.said is not None) or not refused, what
    assert opened.seconds < SECONDS, (what, opened)
    assert opened.growth < MEBIBYTES, (what, opened)
    lines = (opened.said or "").splitlines()
    assert all(len(line) < 2000 for line in lines), what
    assert all(line.isprintable() for line in lines), what


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_costs_little(kind: str, through: Through, tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(header(kind))
    for door in (
        DOORS if kind in EVERY_DOOR else ("from_pretrained", "load_capture" if "capture" in kind else "open_checkpoint")
    ):
        refused = not any(words in kind for words in MAY_PASS)
        check(f"{kind}: {door}", through(door, path), refused=refused or door in ("from_pretrained", "load_capture"))


def test_a_million_tensors_are_refused(through: Through, tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(tiny_tensors(250_000))  # the header may have 16 MiB, so that a million do not fit
    for door in ("open_checkpoint", "from_pretrained", "inspect", "diff"):
        check(door, through(door, path))


@pytest.mark.parametrize("name", BESIDE)
def test_a_text_beside_weights_costs_little(name: str, house: Path, through: Through, tmp_path: Path) -> None:
    for number, (text, make) in enumerate(TEXTS.items()):
        folder = beside(house / "model", tmp_path / str(number), name, make())
        for door in BESIDE[name] if number == 0 else BESIDE[name][:1]:
            # a broken config.json of a folder is another tool's, if it does not say of which model it is
            check(f"{text}: {door}", through(door, folder), refused=False)


@pytest.mark.parametrize("what", CONFIGS)
def test_values_of_a_configuration_are_bounded(what: str, house: Path, through: Through, tmp_path: Path) -> None:
    folder = configured(house / "model", tmp_path / "model", "config", **CONFIGS[what])
    for door in ("from_pretrained", "package"):
        check(door, through(door, folder))


@pytest.mark.parametrize("what", PREPROCESSING)
def test_values_of_the_preprocessing_are_bounded(what: str, house: Path, through: Through, tmp_path: Path) -> None:
    check(
        what, through("detect", configured(house / "model", tmp_path / "model", "preprocessing", **PREPROCESSING[what]))
    )


def test_the_doors_are_open(house: Path, through: Through) -> None:
    """Each reads what is sound, or refuses it for what it is not; none is shut by a mistake of the harness."""
    doors = [
        door
        for door in DOORS
        if door not in ("get_model", "load_capture", "certify", "publish", "reference", "compare")
    ]
    opened = {door: through(door, house / "model") for door in doors}
    refused = {door: found.said or found.error for door, found in opened.items()}
    assert {door for door, said in refused.items() if said} <= {"convert", "explain", "verify"}, refused
