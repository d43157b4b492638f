"""Pictures in, boxes in their own pixels out; random weights find no objects, so what is tested is everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from converter.errors import ModelError
from converter.glip import GLIP, Detector, Found, Prompt
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.grounding.images import batch, to_tensor
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.saved_glip import saved_glip
from tests.support.small_folder import SETTINGS, small_folder

PICTURE = Image.fromarray(skimage.data.rocket()).resize((321, 214))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector.from_pretrained(small_folder(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def found(detector: Detector) -> Found:
    return detector.detect(PICTURE, "person. traffic light.", threshold=0.3)


def test_boxes_are_those_of_the_model_in_pixels_of_the_picture(detector: Detector, found: Found) -> None:
    ids = [detector.tokenizer.pieces.index(p) for p in ("[CLS]", "person", ".", "traffic", "light", "[SEP]")]
    tensor = to_tensor(PICTURE, SETTINGS)
    assert tensor.shape == (3, 96, 144)
    with torch.inference_mode():
        out = detector.model(batch([tensor], 32), torch.tensor([ids]), torch.ones(1, 6, dtype=torch.int64))
    (expected,) = detector.model.detect(out, [(96, 144)], {1: [1], 2: [3, 4]})
    kept = expected.scores > 0.3
    assert kept.sum() > 5
    torch.testing.assert_close(found.scores, expected.scores[kept])
    torch.testing.assert_close(found.labels, expected.labels[kept])
    torch.testing.assert_close(found.boxes, expected.boxes[kept] * torch.tensor([321 / 144, 214 / 96] * 2))


def test_each_side_is_scaled_by_its_own_factor(detector: Detector) -> None:
    """Sizes are rounded, so that the two differ: here 300/158 and 70/37."""
    picture = PICTURE.resize((300, 70))
    tensor = to_tensor(picture, SETTINGS)
    assert tensor.shape == (3, 37, 158)
    (caption,) = detector.captions(Prompt.parse("person."))
    ids = torch.tensor([caption.ids])
    with torch.inference_mode():
        out = detector.model(batch([tensor], 32), ids, torch.ones_like(ids))
    (expected,) = detector.model.detect(out, [(37, 158)], caption.positive_map)
    found = detector.detect(picture, "person.", 0.0)
    torch.testing.assert_close(found.boxes, expected.boxes * torch.tensor([300 / 158, 70 / 37] * 2), rtol=1e-6, atol=0)


def test_boxes_lie_in_the_picture_and_scores_fall(found: Found) -> None:
    assert (found.width, found.height) == PICTURE.size
    assert found.boxes.min() >= 0
    assert (found.boxes.amax(dim=0) <= torch.tensor([321, 214, 321, 214])).all()
    assert found.boxes[:, 2].max() > 300
    assert found.scores.min() > 0.3
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert set(found.phrases) <= {"person", "traffic light"}
    assert [("person", "traffic light")[label - 1] for label in found.labels.tolist()] == list(found.phrases)


def test_a_larger_copy_gives_the_same_boxes_scaled(detector: Detector) -> None:
    """Every pixel fourfold, so that both are resized to (nearly) the same tensor."""
    flat = Image.new("RGB", (160, 120), (90, 120, 30))
    small, large = (detector.detect(flat.resize(size), "dog.", 0.2) for size in ((160, 120), (640, 480)))
    assert len(small.scores) > 3
    torch.testing.assert_close(small.boxes * 4, large.boxes)
    torch.testing.assert_close(small.scores, large.scores)


def test_a_file_that_lies_on_its_side_gives_boxes_of_the_upright_picture(detector: Detector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    upright = detector.detect(PICTURE, "person.", 0.3)
    for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        turned = detector.detect(image, "person.", 0.3)
        assert (turned.width, turned.height) == PICTURE.size
        assert torch.equal(turned.boxes, upright.boxes)


def test_pictures_of_other_modes_are_taken(detector: Detector) -> None:
    gray = PICTURE.convert("L")
    assert torch.equal(
        detector.detect(gray, "dog.", 0.2).boxes, detector.detect(gray.convert("RGB"), "dog.", 0.2).boxes
    )


def test_phrases_of_a_sentence_are_looked_for(detector: Detector) -> None:
    prompt = Prompt.of_caption("a person with two dogs", [(2, 8), (18, 22)])
    assert set(detector.detect(PICTURE, prompt, 0.2).phrases) == {"person", "dogs"}


def test_what_is_found_has_the_name_that_was_given(detector: Detector) -> None:
    found = detector.detect(PICTURE, Prompt.of_names(["U.S. flag", "dog"]), 0.2)
    assert set(zip(found.labels.tolist(), found.phrases, strict=True)) == {(1, "U.S. flag"), (2, "dog")}


def test_a_long_prompt_is_looked_for_in_parts(detector: Detector) -> None:
    names = ["person"] * 126 + ["dog"] * 126
    prompt = Prompt(tuple(names))
    first, second = detector.captions(prompt)
    found = detector.detect(PICTURE, prompt, 0.0)
    assert (len(first.ids), len(second.ids)) == (255, 251)
    assert 100 <= len(found.scores) < 1000
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert [names[label - 1] for label in found.labels.tolist()] == list(found.phrases)
    alone = detector.detect(PICTURE, Prompt(tuple(names[127:])), 0.0)  # what the second caption says
    best = found.scores[found.labels > 127]
    torch.testing.assert_close(best, alone.scores[: len(best)])


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    """BERT's is what a file without a vocabulary is read with."""
    wrong = "BERT base uncased: the vocabulary has 30522 entries, the model 50. Give the vocabulary that the model was "
    with pytest.raises(ModelError, match=wrong + "trained with: --vocab vocab.txt, or vocabulary= in Python"):
        Detector.from_pretrained(saved_glip(tmp_path))


def test_a_folder_says_how_pictures_are_prepared(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small")
    assert Detector.from_pretrained(folder).settings == SETTINGS
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"preprocessing": {"shorter_side": 96}}))
    with pytest.raises(ModelError, match=r"config\.json: preprocessing: expected exactly"):
        Detector.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"preprocessing": SETTINGS.to_dict() | {"mean": 5}}))
    with pytest.raises(ModelError, match="mean is 5, expected three numbers"):
        Detector.from_pretrained(folder)


@pytest.mark.parametrize(
    "change", [{"channel_order": "rgb"}, {"value_range": [0, 1]}, {"caption_end": "."}, {"lowercase": True}]
)
def test_what_every_glip_was_trained_with_is_no_choice_of_a_folder(tmp_path: Path, change: dict[str, object]) -> None:
    folder = small_folder(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"preprocessing": SETTINGS.to_dict() | change}))
    with pytest.raises(ModelError, match=f"preprocessing: {next(iter(change))} is .*, expected"):
        Detector.from_pretrained(folder)


def test_pictures_are_of_full_size_where_nothing_else_is_said(tmp_path: Path) -> None:
    detector = Detector.from_pretrained(saved_glip(tmp_path), small_vocabulary(tmp_path))
    assert detector.settings == glip_preprocessing()
    found = detector.detect(PICTURE, "person.", threshold=0.3)
    assert len(found.scores) > 10
    assert found.boxes[:, 2:].max() > 200


def test_a_damaged_config_is_named_by_the_model(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small")
    for text in ("", "[]", "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ModelError, match="its record 'config' is invalid"):
            Detector.from_pretrained(folder)


def test_loading_gives_the_model_in_float32(detector: Detector) -> None:
    assert isinstance(detector.model, GLIP)
    assert {p.dtype for p in detector.model.parameters()} == {torch.float32}
