"""Boxes by onnxruntime are the model's own: the same ones, in the same order, ties and all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from converter.glip.exported_detection import OPERATORS, Boxes, ExportedDetection
from converter.glip.model.config import LEVELS, RULES
from converter.glip.model.detection import Detections, detect
from converter.glip.model.head import Output
from tests.support.small_glip import small_config

Sizes = list[tuple[int, int]]  # height and width of each level, in cells
CONFIG = small_config()
LIMIT = math.log(0.05 / 0.95)  # the logit of the score that a phrase has to exceed


class Alone(nn.Module):
    """Detection without the model, of logits (B, H, W, T), so that the length of a level is no input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.detection = ExportedDetection(CONFIG)

    def forward(
        self, logits: list[Tensor], deltas: list[Tensor], centerness: list[Tensor], sizes: Tensor, phrases: Tensor
    ) -> Boxes:
        return self.detection(_output(logits, deltas, centerness), sizes, phrases)


def _output(logits: list[Tensor], deltas: list[Tensor], centerness: list[Tensor]) -> Output:
    return Output(tuple(level.flatten(1, 2) for level in logits), tuple(deltas), tuple(centerness))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The detection by onnxruntime, exported for any size."""
    import onnxruntime

    path = tmp_path_factory.mktemp("detection") / "detection.onnx"
    batch, tokens, labels = Dim("batch", max=64), Dim("tokens", max=256), Dim("labels", max=256)
    sides = [(Dim(f"height_{level}", max=512), Dim(f"width_{level}", max=512)) for level in range(LEVELS)]
    maps = [{0: batch, 2: height, 3: width} for height, width in sides]
    logits = [{0: batch, 1: height, 2: width, 3: tokens} for height, width in sides]
    example = predictions(2, [(20, 28), (10, 14), (5, 7), (3, 4), (2, 3)], 10)
    arguments = (*example, torch.tensor([[150, 200], [160, 220]]), torch.eye(4, 10, dtype=torch.bool))
    shapes = (logits, maps, maps, {0: batch}, {0: labels, 1: tokens})
    with warnings.catch_warnings(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        warnings.simplefilter("ignore")
        program = torch.export.export(Alone(), arguments, dynamic_shapes=shapes, strict=False)
        made = torch.onnx.export(
            program, (), dynamo=True, optimize=False, verbose=False, custom_translation_table=dict(OPERATORS)
        )
    assert made is not None
    made.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predictions(
    batch: int, sizes: Sizes, tokens: int, seed: int = 0, spread: float = 1.0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Random logits (B, H, W, T), deltas and centerness for each level."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return (
        [random(*size, tokens) * spread - 2 for size in sizes],
        [random(4, *size) for size in sizes],
        [random(1, *size) for size in sizes],
    )


def pyramid(height: int, width: int) -> Sizes:
    """Of a picture of so many pixels, P3 to P7."""
    return [(-(-height // stride), -(-width // stride)) for stride in CONFIG.anchor_strides]


def run(session: Any, parts: tuple[list[Tensor], ...], sizes: list[tuple[int, int]], phrases: Tensor) -> Boxes:
    levels = [level for part in parts for level in part]
    inputs = [*levels, torch.tensor(sizes), phrases]
    names = [each.name for each in session.get_inputs()]
    fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return Boxes(*map(torch.from_numpy, session.run(None, fed)))


def both(
    session: Any, parts: tuple[list[Tensor], ...], sizes: list[tuple[int, int]], phrases: Tensor
) -> Iterator[tuple[Detections, Detections]]:
    """What is found in each picture by onnxruntime and by the model itself."""
    found = run(session, parts, sizes, phrases)
    positive_map = {label: row.nonzero()[:, 0].tolist() for label, row in enumerate(phrases, 1) if row.any()}
    expected = detect(CONFIG, _output(*parts), sizes, positive_map)
    assert found.pictures.tolist() == sorted(found.pictures.tolist())
    for image, each in enumerate(expected):
        own = found.pictures == image
        yield Detections(found.boxes[own], found.scores[own], found.labels[own]), each


def assert_same(found: Detections, expected: Detections, pixels: float = 1e-4) -> None:
    assert found.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(found.boxes, expected.boxes, atol=pixels, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)


def assert_same_but_for_roundings(found: Detections, expected: Detections) -> None:
    """In the same order but where only a rounding tells scores apart: PyTorch rounds equal logits by their place.

    So the last ones may be others, where there are a hundred.
    """
    is_full = min(len(found.scores), len(expected.scores)) >= RULES.most
    count = min(len(found.scores), len(expected.scores)) if is_full else len(expected.scores)
    torch.testing.assert_close(found.scores[:count], expected.scores[:count], atol=1e-6, rtol=0)
    least = expected.scores[count - 1] + 1e-6 if is_full else -1
    left = list(range(len(found.scores)))
    for box, score, label in zip(*expected, strict=True):
        like = [
            place
            for place in left
            if found.labels[place] == label
            and abs(found.scores[place] - score) <= 1e-6
            and (found.boxes[place] - box).abs().amax() <= 1e-4
        ]
        assert like or score <= least
        if like:
            left.remove(like[0])
    assert is_full or not left


def phrases_of(labels: int, tokens: int, seed: int, longest: int = 3) -> Tensor:
    """Neighbouring tokens of random places and lengths for each label."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, tokens, (labels, 1), generator=generator)
    length = torch.randint(1, longest + 1, (labels, 1), generator=generator)
    place = torch.arange(tokens)
    return (place >= first) & (place < first + length)


ORDINARY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))
FEW = st.tuples(st.integers(1, 3), st.integers(1, 3))


@ORDINARY
@given(
    batch=st.integers(1, 3),
    sizes=st.lists(SIDES, min_size=LEVELS, max_size=LEVELS),
    tokens=st.integers(1, 20),
    labels=st.integers(1, 6),
    spread=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    seed=st.integers(0, 2**32),
)
def test_what_is_found_is_what_the_model_finds(
    session: Any, batch: int, sizes: Sizes, tokens: int, labels: int, spread: float, seed: int
) -> None:
    parts = predictions(batch, sizes, tokens, seed, spread)
    pictures = [(8 * sizes[0][0] - 3 * image, 8 * sizes[0][1] - image) for image in range(batch)]
    for found, expected in both(session, parts, pictures, phrases_of(labels, tokens, seed)):
        assert_same_but_for_roundings(found, expected)


@ORDINARY
@given(data=st.data(), labels=st.integers(1, 4), most=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_of_equal_scores_and_equal_boxes_the_same_ones_are_found(
    session: Any, data: st.DataObject, labels: int, most: int, seed: int
) -> None:
    """Few different numbers, so that nearly all of it ties: boxes without area, pixel by pixel, and without end.

    Maps are of multiples of 16 cells: where they are not, PyTorch rounds the last of them in another way.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [(4 * height, 4 * width) for height, width in data.draw(st.lists(FEW, min_size=LEVELS, max_size=LEVELS))]

    def some(values: list[float], *shape: int) -> Tensor:
        count = data.draw(st.integers(1, len(values)))
        return torch.tensor(values)[torch.randint(0, count, (2, *shape), generator=generator)]

    logits = [some([0.0, -2.0, -40.0, 4.0, 60.0, LIMIT + 1e-4, LIMIT - 1e-4], *size, 5) for size in sizes]
    deltas = [
        torch.cat([some([0.0, 1.25, -2.5], 2, *size), some([0.0, -400.0, 400.0], 2, *size)], dim=1) for size in sizes
    ]
    centerness = [some([0.0, 3.0, -120.0][:most], 1, *size) for size in sizes]
    pictures = [(8 * sizes[0][0], 8 * sizes[0][1] - 7), (1, 1)]
    for found, expected in both(session, (logits, deltas, centerness), pictures, phrases_of(labels, 5, seed, 2)):
        assert_same(found, expected)


def flat(sizes: Sizes, logit: float = 0.0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The same score everywhere on the first level, nothing on the others, and boxes that are the anchors."""
    logits = [torch.full((1, *size, 1), -40.0 if level else logit) for level, size in enumerate(sizes)]
    return logits, [torch.zeros(1, 4, *size) for size in sizes], [torch.zeros(1, 1, *size) for size in sizes]


def test_boxes_whose_iou_is_the_limit_are_both_kept(session: Any) -> None:
    # anchors of 64 pixels that are 16 apart share 48 of 80 columns
    found, expected = next(both(session, flat(pyramid(64, 320)), [(64, 320)], torch.ones(1, 1, dtype=torch.bool)))
    assert_same(found, expected)
    whole = found.boxes[(found.boxes[:, 2] - found.boxes[:, 0] == 63) & (found.boxes[:, 1] == found.boxes[0, 1])]
    assert 16 in (whole[1:, 0] - whole[:-1, 0]).tolist()


def test_all_that_tie_with_the_hundredth_are_kept(session: Any) -> None:
    found, expected = next(both(session, flat(pyramid(320, 320)), [(320, 320)], torch.ones(1, 1, dtype=torch.bool)))
    assert_same(found, expected)
    assert len(found.scores) > 100
    assert len(set(found.scores.tolist())) == 1


@pytest.mark.parametrize(("logit", "is_found"), [(LIMIT + 1e-5, True), (LIMIT - 1e-5, False)])
def test_a_phrase_has_to_score_more_than_the_threshold(session: Any, logit: float, is_found: bool) -> None:
    boxes = run(session, flat(pyramid(64, 64), logit), [(64, 64)], torch.ones(1, 1, dtype=torch.bool))
    assert bool(len(boxes.scores)) == is_found


def test_of_a_row_without_tokens_nothing_is_found(session: Any) -> None:
    phrases = torch.tensor([[False], [True]])
    boxes = run(session, flat(pyramid(64, 64)), [(64, 64)], phrases)
    assert set(boxes.labels.tolist()) == {2}


def test_eighty_labels_in_a_picture_of_full_size(session: Any) -> None:
    sizes, phrases = pyramid(800, 1333), phrases_of(80, 256, seed=0)
    for found, expected in both(session, predictions(1, sizes, 256), [(800, 1333)], phrases):
        assert_same(found, expected, pixels=2.5e-4)  # two steps of float32 beyond 1024
        assert len(found.scores) == 100
