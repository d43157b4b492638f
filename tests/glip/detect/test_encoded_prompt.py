"""A prompt is read once for many pictures, a picture once for all captions of a prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import skimage.data
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from converter.cli import main
from converter.errors import ModelError
from converter.glip import Detector, Prompt
from tests.support.detecting import PROMPT, write_pictures
from tests.support.small_folder import small_folder

PICTURES = [getattr(skimage.data, name)() for name in ("rocket", "coffee")]
LONG = Prompt.of_names(["person", "dog", "cat", "tree", "car"], per_caption=2)  # three captions


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    return Detector.from_pretrained(small_folder(tmp_path / "small"))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often modules of each class are called meanwhile."""
    calls: Counter[str] = Counter()
    handle = register_module_forward_hook(lambda module, *_: calls.update([type(module).__name__]))
    try:
        yield calls
    finally:
        handle.remove()


def test_an_encoded_prompt_finds_the_same(detector: Detector) -> None:
    expected = [detector.detect(picture, LONG, 0.2) for picture in PICTURES]
    with counted() as calls:
        prompt = detector.encode(LONG)
        found = [detector.detect(picture, prompt, 0.2) for picture in PICTURES]
    assert (calls["TextEncoder"], calls["SwinTransformer"], calls["Head"]) == (3, 2, 6)
    for one, other in zip(found, expected, strict=True):
        assert len(one) > 5
        assert one.phrases == other.phrases
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
    assert repr(prompt) == "<EncodedPrompt 5 phrases in 3 captions>"


def test_of_a_batch_each_caption_is_read_once(detector: Detector) -> None:
    with counted() as calls:
        detector.detect(PICTURES, LONG)
    assert (calls["TextEncoder"], calls["SwinTransformer"], calls["Head"]) == (3, 1, 3)


def test_a_prompt_that_was_encoded_before_a_move_is_refused(detector: Detector) -> None:
    prompt = detector.encode("person.")
    detector.to(dtype="float64")
    with pytest.raises(ModelError, match=r"^text: encoded in float32, but the model is in float64\. Encode again"):
        detector.detect(PICTURES[0], prompt)
    assert len(detector.detect(PICTURES[0], detector.encode("person."), 0.2)) > 0


def test_the_command_reads_its_prompt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_folder(tmp_path / "small")
    write_pictures(tmp_path / "photos", 3)
    with counted() as calls:
        result = CliRunner().invoke(main, ["detect", "small", "photos", *PROMPT])
    assert result.exit_code == 0, result.output
    assert (calls["TextEncoder"], calls["SwinTransformer"], calls["Head"]) == (1, 3, 3)


def test_pictures_that_the_model_sees_in_one_size_are_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two resolutions of one shape, and another shape between them."""
    monkeypatch.chdir(tmp_path)
    small_folder(tmp_path / "small")
    image = Image.fromarray(PICTURES[0])
    for name, size in (("a", (240, 160)), ("b", (160, 240)), ("c", (480, 320))):
        image.resize(size).save(f"{name}.png")
    command = ["detect", "small", "a.png", "b.png", "c.png", *PROMPT, "--json"]
    alone = json.loads(CliRunner().invoke(main, command).stdout)["images"]
    with counted() as calls:
        together = json.loads(CliRunner().invoke(main, [*command, "--batch", "3"]).stdout)["images"]
    assert calls["SwinTransformer"] == 2
    for one, other in zip(together, alone, strict=True):
        assert (one["image"], one["labels"]) == (other["image"], other["labels"])
        assert one["scores"] == pytest.approx(other["scores"], abs=2e-6)
