"""Boxes in pictures: frames where the boxes are, labels that can be read and cover none of one another."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from converter.errors import ModelError
from converter.glip import Found
from converter.grounding import lettering as letters
from converter.grounding.draw import colour, draw, ink_on, luminance
from converter.grounding.lettering import lettering
from converter.grounding.placement import place_labels

Corners = tuple[float, float, float, float]
WHITE = (255, 255, 255)


def boxes(*corners: Corners, size: tuple[int, int] = (100, 80), phrase: str = "dog") -> Found:
    count = len(corners)
    scores, labels = torch.linspace(0.9, 0.5, count), torch.arange(1, count + 1)
    return Found(*size, torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), scores, labels, (phrase,) * count)


def drawn(found: Found, **how: Any) -> NDArray[np.uint8]:
    return np.asarray(draw(Image.new("RGB", (found.width, found.height), WHITE), found, **how))


def test_a_box_is_drawn_where_it_is() -> None:
    image = Image.new("RGB", (100, 80), WHITE)
    pixels = np.asarray(draw(image, boxes((20, 30, 70, 60))))
    for x, y in ((20, 45), (70, 45), (45, 60), (70, 30), (20, 60)):
        assert tuple(pixels[y, x]) == colour(1)
    changed = (pixels != 255).any(axis=-1)
    assert not changed[34:56, 24:66].any()
    assert not changed[62:].any()
    assert not changed[:, :20].any()
    assert changed[14:30, 20:60].any()  # the name, above the box
    assert np.asarray(image).min() == 255


def test_boxes_of_two_labels_have_two_colours() -> None:
    pixels = drawn(boxes((5, 20, 30, 70), (60, 20, 90, 70)))
    assert tuple(pixels[50, 5]) == colour(1) != colour(2) == tuple(pixels[50, 60])
    assert len({colour(label) for label in range(1, 100)}) > 90


def test_the_best_box_is_on_top() -> None:
    pixels = drawn(boxes((5, 20, 60, 70), (5, 20, 90, 70)))  # one upper left corner
    assert tuple(pixels[50, 5]) == tuple(pixels[70, 30]) == colour(1)
    assert tuple(pixels[70, 80]) == colour(2)


def test_letters_can_be_read_on_every_colour() -> None:
    """4.5 is what WCAG 2.1 asks of text (success criterion 1.4.3)."""
    for label in range(1, 1300):
        paper, ink = luminance(colour(label)), luminance(ink_on(colour(label)))
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5
        assert paper > 0.13  # and frames can be seen on black


def test_a_label_stays_in_the_picture() -> None:
    pixels = drawn(boxes((95, 30, 99, 60)))
    assert (pixels[:, 50:60] == colour(1)).all(axis=-1).any()  # its background begins left of the box


@pytest.mark.parametrize("corners", [(0, 0, 99, 79), (0, 0, 0, 0), (99, 79, 99, 79), (50, 40, 50.2, 40.1)])
def test_any_box_can_be_drawn(corners: Corners) -> None:
    for size in ((100, 80), (1, 1)):
        assert drawn(boxes(corners, size=size)).shape == (*size[::-1], 3)


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(boxes()).min() == 255


@pytest.mark.parametrize("width", [1, 3, 8])
def test_lines_are_as_wide_as_asked_for(width: int) -> None:
    column = drawn(boxes((20, 100, 380, 280), size=(400, 300)), line_width=width)[:, 200]
    assert (column != 255).any(axis=-1).sum() == 2 * width


def test_lines_and_letters_grow_with_the_picture() -> None:
    counts = []
    for scale in (1, 4):
        found = boxes((80 * scale, 60 * scale, 320 * scale, 240 * scale), size=(400 * scale, 300 * scale))
        pixels = drawn(found)
        label = (pixels[: 60 * scale] != 255).any(axis=-1)
        line = (pixels[60 * scale :, 300 * scale] != 255).any(axis=-1).sum() / 2
        counts.append((line, label.any(axis=1).sum()))
    assert counts[1][0] > 2 * counts[0][0]
    assert counts[1][1] > 1.5 * counts[0][1] > 15


def test_a_small_box_is_still_seen_through() -> None:
    pixels = drawn(boxes((50, 50, 58, 57), size=(100, 80)), line_width=9)
    assert (pixels[52:56, 53:56] == 255).all()


corner = st.integers(0, 300)
areas = st.tuples(corner, corner, st.integers(0, 200), st.integers(0, 200)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
sizes = st.tuples(st.integers(5, 120), st.integers(5, 30))


@given(st.lists(st.tuples(areas, sizes), max_size=40), st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_no_label_covers_another_or_leaves_the_picture(
    rows: list[tuple[Corners, tuple[int, int]]], picture: tuple[int, int]
) -> None:
    places = place_labels([box for box, _ in rows], [label for _, label in rows], picture)
    there = [
        (x, y, x + width, y + height)
        for place, (_, (width, height)) in zip(places, rows, strict=True)
        if place is not None
        for x, y in [place]
    ]
    for x1, y1, x2, y2 in there:
        assert (x1 >= 0, y1 >= 0, x2 <= picture[0], y2 <= picture[1]) == (True,) * 4
    for a, b in combinations(there, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_label_is_above_its_box_or_in_it_or_below() -> None:
    label, picture = (40, 12), (200, 150)
    assert place_labels([(30, 50, 90, 90)], [label], picture) == [(30, 38)]
    assert place_labels([(30, 5, 90, 90)], [label], picture) == [(30, 5)]
    assert place_labels([(180, 50, 190, 60)], [label], picture) == [(160, 38)]
    first, second, third = place_labels([(30, 5, 90, 90)] * 3, [label] * 3, picture)
    assert (first, second, third) == ((30, 5), (30, 91), (30, 79))


def test_thirty_boxes_in_one_place_all_have_a_label() -> None:
    box = (200.0, 150.0, 420.0, 300.0)
    places = place_labels([box] * 30, [(70, 13)] * 30, (600, 400))
    assert None not in places
    assert place_labels([box] * 30, [(300, 200)] * 30, (600, 400)).count(None) == 29


def test_in_a_crowd_the_best_have_labels_and_the_picture_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * torch.tensor([590.0, 390.0])
    scores, labels = torch.linspace(0.9, 0.3, 200), torch.arange(1, 201)
    found = Found(600, 400, torch.cat([corners, corners + 9], dim=1), scores, labels, ("traffic light",) * 200)
    pixels = drawn(found)
    assert 0.3 < (pixels != 255).any(axis=-1).mean() < 0.45
    for label in (1, 2, 3):  # twenty pixels of its colour in a row are its label: frames are of ten
        rows = (pixels == colour(label)).all(axis=-1)
        assert np.lib.stride_tricks.sliding_window_view(rows, 20, axis=1).all(axis=-1).any()


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="a picture of 50x80, but the boxes are of one of 100x80"):
        draw(Image.new("RGB", (50, 80)), boxes((1, 2, 3, 4)))


@pytest.mark.parametrize("width", [0, -1, 2.5, True, "3"])
def test_no_such_line_is_refused(width: Any) -> None:
    with pytest.raises(ModelError, match=r"line_width: found .*, expected pixels"):
        drawn(boxes((1, 2, 30, 40)), line_width=width)


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("person", "person  0.80"),
        ("person\nwith\ttwo  dogs", "person with two dogs  0.80"),
        ("caf\u00e9 cr\u00e8me", "cafe creme  0.80"),
        ("\u4eba", "#3  0.80"),
        ("\u0436\u0443\u043a", "#3  0.80"),
        ("\x00\u202e", "#3  0.80"),
    ],
)
def test_letters_that_no_font_has_are_not_drawn_as_boxes(
    phrase: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "FONTS", ("no such font.ttf",))
    made = lettering(phrase, 3, 0.8, 12, 1000)
    assert made is not None
    assert made.text == text


def test_a_font_of_the_system_is_used_where_it_has_the_letters() -> None:
    made = lettering("\u0436\u0443\u043a", 3, 0.8, 12, 1000)
    assert made is not None
    if made.text == "#3  0.80":
        pytest.skip(f"none of the fonts {', '.join(letters.FONTS)} is installed")
    assert made.text == "\u0436\u0443\u043a  0.80"
    assert made.font.getmask(made.text).getbbox() is not None


def test_a_long_phrase_is_cut_and_its_score_is_not() -> None:
    made = lettering("a person who stands next to the red umbrella " * 100, 1, 0.8, 12, 200)
    assert made is not None
    assert made.text.startswith("a person who stands")
    assert made.text.endswith("...  0.80")
    assert 150 < made.width <= 200
    alone = lettering("person", 1, 0.8, 12, 30)
    assert alone is not None
    assert alone.text == "0.80"
    assert lettering("person", 1, 0.8, 12, 5) is None
