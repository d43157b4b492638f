"""What is found, beside transformers' own processor; every picture by itself, in a batch, and with many captions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image
from transformers import AutoProcessor

from converter.errors import ModelError
from converter.grounding.found import Found
from converter.grounding.prompt import Prompt
from converter.grounding_dino.detect.detector import Detector, check_cells
from converter.grounding_dino.detect.scores import phrase_scores
from converter.grounding_dino.family import FAMILY
from tests.support.small_grounding_dino import SIZES, small_folder, small_model

PROMPT = "cat. remote control. cup."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("dino") / "small")


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return FAMILY.detector(small_model(), folder, None)


@cache
def picture(name: str, width: int = 120, height: int = 90) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).resize((width, height))


def same(one: Found, other: Found, tolerance: float = 1e-4) -> bool:
    close = torch.allclose(one.boxes, other.boxes, atol=100 * tolerance) and torch.allclose(
        one.scores, other.scores, atol=tolerance
    )
    return close and one.phrases == other.phrases


def test_boxes_and_scores_are_those_of_transformers(folder: Path, detector: Detector) -> None:
    """Of boxes whose likeliest token is a phrase's; transformers also keeps those of [CLS], [SEP] and full stops."""
    image, processor = picture("coffee"), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=[PROMPT.rstrip(".").split(". ")], return_tensors="pt")
    with torch.inference_mode():
        out = small_model()(**inputs)
    (theirs,) = processor.post_process_grounded_object_detection(out, threshold=0.3, target_sizes=[(90, 120)])
    (caption,) = detector.encode(PROMPT).captions
    named = [at for tokens in caption.positive_map.values() for at in tokens]
    likeliest = out.logits[0].argmax(dim=-1)[out.logits[0].sigmoid().amax(dim=-1) > 0.3]
    of_phrases = torch.tensor([at in named for at in likeliest.tolist()])
    order = theirs["scores"][of_phrases].argsort(descending=True)
    found = detector.detect(image, PROMPT, threshold=0.3)
    also = theirs["boxes"][of_phrases]
    kept = torch.tensor([any(torch.allclose(box, other) for other in also) for box in found.boxes])
    assert len(order) > 5
    torch.testing.assert_close(found.scores[kept], theirs["scores"][of_phrases][order])
    torch.testing.assert_close(found.boxes[kept], also[order])


def test_a_box_has_the_phrase_with_the_likeliest_token(detector: Detector) -> None:
    tokens = torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.5], [0.1, 0.3, 0.1, 0.2, 0.1]])
    assert phrase_scores(tokens, {1: [1], 2: [2, 3]}, "max").tolist() == [
        [pytest.approx(0.1), pytest.approx(0.6)], [pytest.approx(0.3), pytest.approx(0.2)],
    ]  # fmt: skip
    assert phrase_scores(tokens, {1: [1], 2: [2, 3]}, "mean")[0].tolist() == pytest.approx([0.1, 0.4], abs=1e-6)


def test_a_picture_gives_the_same_in_a_batch_and_by_itself(detector: Detector) -> None:
    images = [picture("coffee"), picture("astronaut"), picture("rocket")]
    found = detector.detect(images, PROMPT, threshold=0.2)
    assert len(found) == 3
    for image, together in zip(images, found, strict=True):
        assert same(together, detector.detect(image, PROMPT, threshold=0.2))


def test_pictures_of_other_sizes_are_filled_up_and_the_model_is_told(detector: Detector) -> None:
    found = detector.detect([picture("coffee"), picture("astronaut", 90, 120)], PROMPT, threshold=0.2)
    assert [(each.width, each.height) for each in found] == [(120, 90), (90, 120)]
    assert found[0].boxes[:, 2].max() < 240


def test_captions_beyond_the_first_are_asked_as_well(detector: Detector) -> None:
    names = [f"old stone bridge number {number}" for number in range(60)]
    encoded = detector.encode(names)
    assert len(encoded.captions) == 2
    found = detector.detect(picture("coffee"), encoded, threshold=0.0, max_detections=1000)
    assert len(found) == 2 * SIZES["queries"]
    assert {label <= 40 for label in found.labels.tolist()} == {True, False}
    assert all(found.phrases[at] == names[label - 1] for at, label in enumerate(found.labels.tolist()))


def test_the_best_come_first_and_no_more_than_asked(detector: Detector) -> None:
    found = detector.detect(picture("coffee"), PROMPT, threshold=0.0, max_detections=5)
    assert len(found) == 5
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert detector.detect(picture("coffee"), PROMPT, threshold=1.0).phrases == ()
    assert detector.detect([], PROMPT) == []


def test_phrases_of_a_sentence(detector: Detector) -> None:
    prompt = Prompt.of_phrases("a cup on the table", ["a cup", "table"])
    assert set(detector.detect(picture("coffee"), prompt, threshold=0.0).phrases) <= {"a cup", "table"}


def test_drawn_pictures_have_the_size_of_what_was_searched(detector: Detector) -> None:
    image = picture("coffee")
    assert detector.draw(image, detector.detect(image, PROMPT, threshold=0.3)).size == image.size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threshold": 2}, "threshold: 2 is not a score"), ({"max_detections": 0}, "expected an integer of at least 1"),
        ({"images": 5}, "image: found int"), ({"prompt": ""}, "prompt: found ''"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(detector: Detector, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        detector.detect(**{"images": picture("coffee"), "prompt": PROMPT, **arguments})


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    model = FAMILY.build(SIZES)
    with torch.no_grad():
        model.model.level_embed[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"computes NaN in float32.*Weights are NaN or infinite: model\.level_embed"):
        FAMILY.detector(model, folder, None).detect(picture("coffee"), PROMPT)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    with pytest.raises(ModelError, match="the vocabulary has 6 entries, the model 30522"):
        FAMILY.detector(small_model(), tmp_path, None)


def test_a_picture_of_fewer_cells_than_queries_is_refused() -> None:
    check_cells(64, 64, small_model())
    with pytest.raises(ModelError, match=r"picture of 60x4 pixels as 15 cells, and makes 30 queries of them"):
        check_cells(4, 60, small_model())
