"""The detector as a program uses it: what it takes, where it runs, and what else its results can be."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from converter.errors import ModelError
from converter.glip import GLIP, Detector, Found, GLIPConfig
from converter.glip.detect.detector import _title
from converter.mapping.spec import load_spec
from tests.support.small_folder import small_folder

ARRAY = skimage.data.rocket()
PHOTOGRAPHS = [Image.fromarray(getattr(skimage.data, name)()) for name in ("rocket", "coffee", "chelsea", "astronaut")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def detector(folder: Path) -> Detector:
    return Detector.from_pretrained(folder)


def assert_same(one: Found, other: Found, rounding: float = 0.0) -> None:
    assert (one.width, one.height, one.phrases) == (other.width, other.height, other.phrases)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=rounding)
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=rounding)


def test_a_picture_is_a_path_an_array_or_pillows(detector: Detector, tmp_path: Path) -> None:
    image = Image.fromarray(ARRAY)
    image.save(tmp_path / "a.png")
    expected = detector.detect(image, "person.", 0.3)
    turned = np.ascontiguousarray(ARRAY[:, ::-1])[:, ::-1]  # another order in memory
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), ARRAY, turned, Image.open(tmp_path / "a.png")):
        assert_same(detector.detect(picture, "person.", 0.3), expected)
        assert detector.draw(picture, expected).tobytes() == detector.draw(image, expected).tobytes()


def test_names_may_be_a_list(detector: Detector) -> None:
    expected = detector.detect(ARRAY, "person. traffic light.", 0.3)
    assert_same(detector.detect(ARRAY, ["person", "traffic light"], 0.3), expected)
    assert [caption.text for caption in detector.captions(("person", "dog"))] == ["person. dog"]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (ARRAY.transpose(2, 0, 1), r"an array \(3, 427, 640\) of uint8, .*array\.transpose\(1, 2, 0\)"),
        (ARRAY / 255.0, r"float64, .*\(array \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (ARRAY.transpose(2, 0, 1) / 255.0, r"float64, .*transpose.*\(array \* 255\)"),
        (ARRAY[..., 0], r"np\.stack\(\[array\] \* 3, axis=-1\)"),
        (ARRAY[..., :1], r"np\.repeat\(array, 3, axis=2\)"),
        (ARRAY[..., :2], "Give three channels"),
        (np.dstack([ARRAY, ARRAY[..., :1]]), r"array\[:, :, :3\]"),
        (ARRAY[None], r"list\(array\)"),
        (ARRAY[:0], "that has pixels"),
        (ARRAY.astype(np.int64), r"int64, .*astype\(np\.uint8\)"),
        (ARRAY.astype(np.uint16), r"uint16, .*\(array >> 8\)\.astype\(np\.uint8\)"),
        ("https://host/a.jpg", "'?https://host/a.jpg'? is an address, not a file"),
        (torch.from_numpy(ARRAY), r"a tensor \(427, 640, 3\), expected a path, a Pillow picture, or an array"),
        (b"\x89PNG", r"bytes, .*PIL\.Image\.open\(io\.BytesIO\(data\)\)"),
        (None, "NoneType, expected a path"),
        ({"a.png"}, "set, .*Several pictures are given as a list"),
        (Image.new("RGB", (0, 5)), "0x5 pixels"),
        (Image.new("F", (5, 5)), "no known maximum"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_hint(detector: Detector, picture: Any, message: str) -> None:
    with pytest.raises(ModelError, match=rf"^image: .*{message}"):
        detector.detect(picture, "dog.")
    with pytest.raises(ModelError, match=rf"^images\[1\]: .*{message}"):
        detector.detect([ARRAY, picture], "dog.")


def test_hints_help() -> None:
    """Each is followed once, and the picture is then taken, with the same pixels."""
    from converter.grounding.images import as_image

    gray = np.stack([ARRAY[..., 0]] * 3, axis=-1)
    for array, hinted, expected in (
        (ARRAY.transpose(2, 0, 1), lambda array: array.transpose(1, 2, 0), ARRAY),
        (ARRAY / 255.0, lambda array: (array * 255).round().astype(np.uint8), ARRAY),
        (ARRAY[..., 0], lambda array: np.stack([array] * 3, axis=-1), gray),
        (ARRAY[..., :1], lambda array: np.repeat(array, 3, axis=2), gray),
    ):
        np.testing.assert_array_equal(np.asarray(as_image(hinted(array))), expected)


def test_a_picture_that_pillow_cannot_read_any_more_is_an_error(detector: Detector, tmp_path: Path) -> None:
    Image.fromarray(ARRAY).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50_000])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ModelError, match=r"^image: Pillow cannot read it: "):
        detector.detect(image, "dog.")


def test_several_pictures_of_one_size_are_found_in_as_alone(detector: Detector) -> None:
    detector.to(dtype="float64")
    pictures = [photograph.resize((320, 200)) for photograph in PHOTOGRAPHS]
    together = detector.detect(pictures, "person. dog.", 0.3)
    assert isinstance(together, list)
    assert min(len(found) for found in together) > 10
    for found, picture in zip(together, pictures, strict=True):
        # 1e-15 was measured; boxes are float32
        assert_same(found, detector.detect(picture, "person. dog.", 0.3), rounding=1e-13)
    assert_same(detector.detect(tuple(pictures), "person. dog.", 0.3)[2], together[2])
    assert detector.detect([], "person.") == []
    (alone,) = detector.detect(pictures[:1], "person. dog.", 0.3)
    assert_same(alone, together[0], rounding=1e-13)


def test_a_batch_is_padded_with_zeros_to_the_largest_as_the_reference_does(detector: Detector) -> None:
    """So a picture that is padded more than alone is another input; the others are found in as alone."""
    from converter.grounding.images import to_tensor

    detector.to(dtype="float64")
    *wide, square = PHOTOGRAPHS
    together = detector.detect(PHOTOGRAPHS, "person. dog.", 0.3)
    for found, picture in zip(together[:-1], wide, strict=True):
        assert_same(found, detector.detect(picture, "person. dog.", 0.3), rounding=1e-13)
    tensor = to_tensor(square, detector.settings)
    assert tensor.shape == (3, 96, 96)
    padded = torch.zeros(1, 3, 96, 160, dtype=torch.float64)
    padded[..., :96] = tensor
    (caption,) = detector.captions("person. dog.")
    ids = torch.tensor([caption.ids])
    with torch.inference_mode():
        out = detector.model(padded, ids, torch.ones_like(ids))
    (expected,) = detector.model.detect(out, [(96, 96)], caption.positive_map)
    kept = expected.scores > 0.3
    torch.testing.assert_close(together[-1].scores, expected.scores[kept], rtol=0, atol=1e-13)
    alone = detector.detect(square, "person. dog.", 0.3)
    assert len(alone) != len(together[-1])


def test_the_best_are_kept(detector: Detector) -> None:
    names = "person. dog. cat. tree."
    every = detector.detect(ARRAY, names, 0.0, max_detections=1000)
    assert len(every) > 100
    for most in (1, 5, 99, 100, 150):
        some = detector.detect(ARRAY, names, 0.0, max_detections=most)
        assert len(some) == most
        assert torch.equal(some.scores, every.scores[:most])
        assert torch.equal(some.boxes, every.boxes[:most])
    assert len(detector.to(dtype="float64").detect(ARRAY, "person.", 0.0, max_detections=1)) == 1
    for wrong in (0, -1, 2.0, True, None):
        with pytest.raises(ModelError, match=r"max_detections: found .*, expected an integer of at least 1"):
            detector.detect(ARRAY, "dog.", max_detections=wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float64])
def test_it_runs_in_other_numbers(folder: Path, detector: Detector, dtype: Any) -> None:
    expected = detector.detect(ARRAY, "person. dog.", 0.3)
    other = Detector.from_pretrained(folder, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert other.dtype == getattr(torch, name)
    found = other.detect([ARRAY, ARRAY], "person. dog.", 0.3)[1]
    assert (found.boxes.dtype, found.boxes.device.type) == (torch.float32, "cpu")
    assert abs(len(found) - len(expected)) <= 5
    assert abs(float(found.scores[0] - expected.scores[0])) < (1e-5 if name == "float64" else 0.02)


def test_to_moves_the_model_and_gives_the_detector(detector: Detector) -> None:
    assert (detector.device, detector.dtype) == (torch.device("cpu"), torch.float32)
    assert detector.to("cpu", "bfloat16") is detector
    assert (detector.device, detector.dtype) == (torch.device("cpu"), torch.bfloat16)
    for what in (torch.float32, "float32"):
        assert detector.to(what).dtype == torch.float32
    assert detector.to(torch.device("cpu")).dtype == torch.float32
    assert detector.to() is detector


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"device": "cuda:99"}, r"there is no cuda:99 here \(\d+ CUDA devices\); choose the device cpu"),
        ({"device": "gpu"}, "'gpu' is not a device; choose cpu, cuda or cuda:N"),
        ({"dtype": "int8"}, "dtype: found 'int8', expected one of float16"),
    ],
)
def test_a_missing_device_is_told_as_by_the_command(detector: Detector, how: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detector.to(**how)
    with pytest.raises(ModelError, match=message):
        Detector.from_pretrained("absent", **how)  # type: ignore[arg-type]  # before anything is looked for
    assert (detector.device, detector.dtype) == (torch.device("cpu"), torch.float32)


def test_it_says_what_it_is(detector: Detector, folder: Path) -> None:
    assert repr(detector) == (
        "<Detector GLIP of width 8, depths 1-2-2-1, 2 text layers of 24, 2 head blocks of 32, float32 on cpu, "
        f"vocabulary: 50 entries, from {folder}>"
    )
    titles = {v.name: _title(GLIPConfig(**v.config)) for v in load_spec("glip").variants}
    assert titles == {"glip-t-a": "glip-t-a", "glip-t": "glip-t or glip-t-b or glip-t-c", "glip-l": "glip-l"}


def test_what_is_found_is_a_sequence_of_objects(detector: Detector) -> None:
    found = detector.detect(ARRAY, "person. dog.", 0.3)
    for number, (phrase, score, box, label) in enumerate(found):
        assert (phrase, label) == (found.phrases[number], int(found.labels[number]))
        assert score == float(found.scores[number])
        assert box == tuple(found.boxes[number].tolist())
    assert number + 1 == len(found) > 3
    first, second, third, *_ = found
    assert repr(found) == (
        f"<Found {len(found)} objects in 640x427: "
        + ", ".join(f"{each.phrase} {each.score:.2f}" for each in (first, second, third))
        + ", ...>"
    )
    assert (found[0], found[-1]) == (first, list(found)[-1])
    assert list(found[1:3]) == [second, third]
    assert (found[:2].width, found[:2].boxes.shape, len(found[5:5])) == (640, (2, 4), 0)
    with pytest.raises(IndexError):
        found[len(found)]
    nothing = detector.detect(ARRAY, "person.", 0.99)
    assert (len(nothing), list(nothing), repr(nothing)) == (0, [], "<Found 0 objects in 640x427>")
    found.boxes.mul_(2)  # no tensor of inference mode


def test_supervision_takes_what_is_found(detector: Detector) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = detector.detect(ARRAY, ["person", "dog"], 0.3, max_detections=20)
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.xyxy, found.boxes.numpy())
    np.testing.assert_array_equal(detections.confidence, found.scores.numpy())
    assert [("person", "dog")[number] for number in detections.class_id] == list(found.phrases)
    assert detections["class_name"].tolist() == list(found.phrases)
    assert len(detections[detections.class_id == 1]) == found.phrases.count("dog")
    assert detector.detect(ARRAY, "person.", 0.99).to_supervision().is_empty()


def test_supervision_is_named_where_it_is_not_installed(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ModelError, match=r"needs supervision .*: pip install supervision"):
        detector.detect(ARRAY, "person.", 0.3).to_supervision()


def test_a_line_is_refused_before_the_model_runs(detector: Detector, tmp_path: Path) -> None:
    line = Image.new("RGB", (4000, 1))
    line.save(tmp_path / "line.png")
    for call, where in (
        (lambda: detector.detect([ARRAY, str(tmp_path / "line.png")], "dog."), r".*/line\.png"),
        (lambda: detector.detect([ARRAY, line], "dog."), r"images\[1\]"),
    ):
        with pytest.raises(ModelError, match=rf"^{where}: found 4000x1 pixels: .* would vanish"):
            call()


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("predict", "2 pictures at once"),
        ("encode_images", "2 pictures at once"),
        ("encode_text", "a caption of . tokens"),
    ],
)
def test_what_does_not_fit_into_memory_is_told(
    method: str, what: str, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*inputs: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB.")

    monkeypatch.setattr(detector.model, method, full)
    with pytest.raises(ModelError, match=rf"^{what}: more than the memory of cpu holds\. (Give|Choose)"):
        detector.detect([ARRAY, ARRAY], "dog.")


def test_the_example_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "detect.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    small_folder(tmp_path / "to-publish")
    for name, photograph in zip(("street.jpg", "park.jpg"), PHOTOGRAPHS, strict=False):
        photograph.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert (names["found"].width, names["found"].height) == PHOTOGRAPHS[1].size
    assert set(names["found"].phrases) <= {"a person", "umbrella"}
    with Image.open("drawn.png") as drawing:
        assert drawing.size == PHOTOGRAPHS[0].size


def test_a_model_that_is_there_already_becomes_a_detector(detector: Detector, folder: Path) -> None:
    model = GLIP.from_pretrained(folder)
    made = Detector(model, detector.tokenizer)
    assert made.settings == detector.settings
    assert_same(made.detect(ARRAY, "person.", 0.3), detector.detect(ARRAY, "person.", 0.3))
    with pytest.raises(ModelError, match="the vocabulary has 30522 entries, the model 50"):
        Detector(model)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", math.nan, r"NaN in float32.* Weights are NaN or infinite: head\.box_scale\. Training diverged"),
        ("float16", 6e4, r"NaN in float16.* The weights are finite, .* beyond float16\. Try bfloat16"),
    ],
)
def test_a_model_that_computes_nan_finds_nothing_and_says_so(
    folder: Path, dtype: str, value: float, message: str
) -> None:
    detector = Detector.from_pretrained(folder, dtype=dtype)
    weight = detector.model.head.box_scale if math.isnan(value) else detector.model.text_encoder.embeddings.word.weight
    with torch.no_grad():
        weight.fill_(value)
        if not math.isnan(value):
            detector.model.text_encoder.embeddings.position.weight.fill_(value)
    with pytest.raises(ModelError, match=message):
        detector.detect(ARRAY, "person.", 0.3)


def test_numbers_of_numpy_are_numbers(detector: Detector) -> None:
    expected = detector.detect(ARRAY, "person.", 0.3, 2)
    assert_same(detector.detect(ARRAY, "person.", np.float64(0.3), np.int64(2)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", ["0.3", None, math.nan, -0.1, 30])
def test_a_threshold_that_is_no_score_is_refused(detector: Detector, threshold: Any) -> None:
    with pytest.raises(ModelError, match=r"threshold: .* is not a score\. Give a number from 0 to 1"):
        detector.detect(ARRAY, "person.", threshold)


def test_what_is_found_in_several_pictures_is_drawn_one_by_one(detector: Detector) -> None:
    found = detector.detect([ARRAY], "person.", 0.3)
    with pytest.raises(ModelError, match=r"draw: found list, .* draw each\."):
        detector.draw(ARRAY, found)  # type: ignore[arg-type]


def test_pictures_are_prepared_on_the_cpu_whatever_torchs_default_is(detector: Detector, folder: Path) -> None:
    expected = detector.detect(ARRAY, "person.", 0.3)
    torch.set_default_device("meta")
    try:
        assert_same(Detector.from_pretrained(folder).detect(ARRAY, "person.", 0.3), expected)
    finally:
        torch.set_default_device(None)
