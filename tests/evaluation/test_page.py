"""The page of an evaluation: what is in it, in which order, and that nobody's name breaks out of it."""

from __future__ import annotations

import base64
import io
import math
import re
from html import escape, unescape
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from converter.display import plain
from tests.parity.test_html import Page, hash_of
from tests.parity.test_report import HOSTILE
from tests.support.evaluated import class_score, compared, large, page, picture, scores

PICTURE = re.compile(r"data:image/jpeg;base64,[\w+/=]+")


def words(text: str) -> str:
    """What a page says, without its elements."""
    body = text.partition("<body>")[2].partition("<script>")[0]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def section(text: str, heading: str) -> str:
    return text.partition(f'<h2 id="{heading}">')[2].partition("<h2 ")[0]


def drawn(text: str, kind: str) -> list[str]:
    """What the boxes of a kind say."""
    return re.findall(rf'<g class="box {kind}[^>]*><title>(.*?)</title>', text)


@pytest.mark.parametrize("text", [page(), page(paired=compared(), worst=[picture(other=[])]), page(large())])
def test_the_page_loads_nothing(text: str) -> None:
    found = Page(text)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "use"}
    places = [a[key] for _, a in found.elements for key in ("src", "href", "action", "data") if key in a]
    assert all(str(place).startswith("#") or PICTURE.fullmatch(str(place)) for place in places)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(|https?://", text)


def test_nothing_but_its_own_script_and_style_may_run() -> None:
    text = page()
    policy = next(a["content"] for _, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    style, script = (hash_of(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0]) for tag in ("style", "script"))
    assert policy == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'sha256-{style}'; script-src 'sha256-{script}'"
    )
    assert not re.search(r"<[^>]* (style|on\w+)=", text)


@pytest.mark.parametrize(
    "hostile", [HOSTILE, "</title></script><script>x()</script>", "'\"><svg onload=x()>", "a\u202eb"]
)
def test_no_name_breaks_out(hostile: str) -> None:
    one = picture(
        name=hostile, annotated=[(hostile, 1, 1, 9, 9, False)], predicted=[(hostile, 0.9, 1, 1, 9, 9)],
        other=[(hostile, 0.8, 1, 1, 9, 9)],
    )  # fmt: skip
    value = scores(classes=(class_score(1, hostile, 0.5),), library=hostile)
    plainly, shown = page(), page(
        value, title=hostile, about=[("data set", hostile), (hostile, hostile)], skipped=[(hostile, hostile)],
        worst=[one, picture(name=hostile)], paired=compared(first=value, second=value), names=(hostile, hostile),
    )  # fmt: skip
    shown.encode()
    assert shown.count("<script>") == plainly.count("<script>") == 1
    elements, usual = Page(shown).elements, Page(plainly).elements
    assert {tag for tag, _ in elements} - {tag for tag, _ in usual} <= {"circle", "bdi", "h3"}
    assert not [key for _, attributes in elements for key in attributes if key.startswith("on")]
    assert "\u202e" not in shown
    assert shown.count(escape(plain(hostile, 40))) > 15


def test_a_name_that_looks_like_a_place_in_the_page_is_a_name() -> None:
    assert "<h1>@{about}</h1>" in page(title="@{about}")


def test_what_is_read_without_a_script() -> None:
    said = words(page())
    for line in (
        "A detector on pets 46.6 AP data set pets val pictures 4 classes 2 of 3 annotated 14 boxes predicted 3,702",
        "1 picture was skipped: see which, and why",
        "AP 46.6 mean over IoU 0.50 to 0.95 AP50 50.0 IoU 0.50",
        "dog 7 1,234 75.0 75.0 75.0 cat 7 1,234 25.0 25.0 25.0 yeti 0 1,234 \N{EN DASH}",
        "Best dog 75.0, worst cat 25.0",
        "mean 53.0, median 59.0, 3 pictures",
        "val/7.jpg AP 3.1 annotated: 2, predicted: 2",
        "val/9.jpg cannot be decoded",
        "device cpu metric faster-coco-eval 1.8.0, coco",
    ):
        assert line in said
    assert Page(page()).find("div", id="tools")[0].keys() >= {"hidden"}


def test_the_parts_are_in_the_order_in_which_one_asks() -> None:
    ids = re.findall(r'<h2 id="([\w-]+)"', page())
    assert ids == ["figures", "curves", "classes", "by-class", "by-picture", "worst", "skipped", "about"]


def test_what_is_not_there_is_said() -> None:
    nothing = scores(
        figures={"AP": None}, classes=(), pictures={1: None}, precision={"IoU 0.50": (0.0,) * 101}, style="lvis"
    )
    said = words(page(nothing, skipped=[], worst=[], about=[]))
    assert "\N{EN DASH} AP pictures 1 classes 0" in said
    assert "skipped none" in said
    for line in (
        "No class is annotated.",
        "No picture has an AP of its own",
        "None are kept.",
        "No picture was skipped.",
    ):
        assert line in said
    assert 'role="alert"' not in page(skipped=[])


def test_figures_of_lvis_are_grouped_and_unknown_ones_are_kept() -> None:
    said = words(page(scores(figures={"AP": 0.2, "APr": None, "AR300": 0.3, "AR7": 0.4})))
    assert "Precision by frequency APr \N{EN DASH} rare" in said
    assert "Recall AR300 30.0 300 boxes Other AR7 40.0" in said
    assert "APs" not in said


def test_after_a_hundred_classes_the_others_are_folded() -> None:
    text = page(large())
    opened, _, folded = section(text, "classes").partition("<details")
    assert (opened.count("<tr><th"), folded.count("<tr><th")) == (101, 1104)  # and a header each
    assert "1,103 more</summary>" in folded
    assert "<details" not in section(page(), "classes")


def test_classes_without_annotations_are_the_last() -> None:
    classes = (class_score(1, "yeti", None), class_score(2, "cat", 0.0), class_score(3, "dog", 0.5))
    assert re.findall(r"<th scope=row>(\w+)", section(page(scores(classes=classes)), "classes")) == [
        "dog",
        "cat",
        "yeti",
    ]


def test_a_page_of_lvis_is_small() -> None:
    text = page(large(), worst=[])
    many = [("a thing", 0.5, 1, 1, 9, 9)] * 300
    boxes = page(large(), worst=[picture(predicted=many) for _ in range(20)])
    assert len(text) < 300_000
    assert len(PICTURE.sub("", boxes)) < len(text) + 250_000


def test_bars_of_classes_fall_within_their_frequency() -> None:
    strip = section(page(large(count=9)), "by-class")
    assert re.findall(r'class="bar f-(\w)" d="M(\d)', strip)[:3] == [("f", "0"), ("c", "3"), ("r", "6")]
    assert re.findall(r"<title>thing of kind (\d)", strip) == list("630741852")
    assert "frequent: 3 classes" in strip


def test_curves_tell_their_values_at_each_recall() -> None:
    chart = section(page(), "curves")
    assert chart.count('class="hit"') == 101
    assert 'd="M44.0 30.0 ' in chart  # recall 0, precision 1: the upper left corner
    assert "recall 50 0.50: 50.0 0.75: 40.0 0.50:0.95: 25.0" in words(f"<body>{chart}")
    assert "<b>AP50 50.0</b>" in chart
    assert "recall, % IoU 0.50 IoU 0.75 IoU 0.50:0.95 0 100.0 80.0 50.0 10 90.0" in words(f"<body>{chart}")


def test_every_picture_is_in_a_column() -> None:
    chart = section(page(), "by-picture")
    counts = dict(re.findall(r"AP (\d+ to \d+): (\d+)", chart))
    assert {span: count for span, count in counts.items() if count != "0"} == {
        "0 to 5": "1",
        "55 to 60": "1",
        "95 to 100": "1",
    }
    assert len(counts) == 20


@pytest.mark.parametrize("count", [1, 9, 87, 1000, 19808])
def test_an_axis_of_counts_has_few_ticks(count: int) -> None:
    chart = section(page(scores(pictures=dict.fromkeys(range(count), 0.5))), "by-picture")
    ticks = [int(t.replace(",", "")) for t in re.findall(r'<text class="end" x="38" [^>]*>([\d,]+)<', chart)]
    assert ticks[0] == 0
    assert ticks[-1] >= count
    assert 2 <= len(ticks) <= 7


def test_the_strongest_predictions_are_drawn() -> None:
    many = [("cat", i / 100, 1.0, 1.0, 50.0, 50.0) for i in range(40)]
    shown = drawn(page(worst=[picture(predicted=many)]), "p")
    assert sorted(shown) == [f"predicted: cat 0.{i}" for i in range(20, 40)]


def test_annotations_and_predictions_are_told_apart() -> None:
    text = page()
    assert drawn(text, "a") == ["annotated: dog (crowd)", "annotated: cat"]  # the small ones lie above
    assert drawn(text, "p") == ["predicted: cat 0.88", "predicted: dog 0.12"]
    assert 'class="over" d="M100 50H300V200H100z"' in text
    assert [a["class"] for a in Page(text).find("input") if a["type"] == "checkbox"] == ["show-a", "show-p"]


def test_boxes_end_where_the_picture_does() -> None:
    beyond = [
        ("cat", 0.9, -50.0, 400.0, 1e300, 1e300),
        ("cat", 0.8, math.nan, 1, 1, 1),
        ("cat", 0.7, 0, 0, math.inf, 1),
    ]
    text = page(worst=[picture(annotated=[], predicted=beyond)])
    assert re.findall(r'class="over" d="(M0 4[^"]+)"', text) == ["M0 400H640V480H0z"]
    assert drawn(text, "p") == ["predicted: cat 0.90"]


def test_written_labels_cover_no_other() -> None:
    crowd = [("a person", 0.9, 40.0 * (i % 7), 30.0 * (i % 5), 60.0, 50.0) for i in range(20)]
    standing = [("a person", 35.0 * i, 20.0 * i, 70.0, 80.0, False) for i in range(12)]
    text = page(worst=[picture(annotated=standing, predicted=crowd)])
    tags = text.partition('<g class="tags">')[2].partition("</svg>")[0]
    places = [tuple(map(int, p)) for p in re.findall(r'<path d="M(\d+) (\d+)H(\d+)V(\d+)H', tags)]
    assert len(places) > 10
    for (left, top, right, bottom), other in combinations(places, 2):
        assert left >= other[2] - 1 or other[0] >= right - 1 or top >= other[3] - 1 or other[1] >= bottom - 1
    assert all(right <= 641 and bottom <= 481 for _, _, right, bottom in places)


def embedded(text: str) -> bytes:
    return base64.b64decode(PICTURE.findall(text)[0].partition(",")[2])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16"])
def test_pictures_of_every_mode_are_made_small(mode: str) -> None:
    with Image.open(io.BytesIO(embedded(page(worst=[picture(image=Image.new(mode, (2000, 1000)))])))) as shown:
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", (640, 320))


def test_a_picture_that_is_a_jpeg_stays_as_it_is() -> None:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    assert embedded(page(worst=[picture(image=content.getvalue())])) == content.getvalue()


def test_many_skipped_pictures_are_counted() -> None:
    text = page(skipped=[(f"{i}.jpg", "not found") for i in range(2000)])
    assert "499.jpg" in text
    assert "500.jpg" not in text
    assert "and 1,500 more" in text


# ---- two models
def pair(names: tuple[str, str] = ("mine", "theirs"), **changed: Any) -> str:
    value = compared(**changed)
    other = [("cat", 0.5, 10, 10, 20, 20)]
    return page(
        value.first, paired=value, names=names, worst=[picture(other=other, other_ap=0.131), picture(name="alone")]
    )


def test_two_models_are_shown_side_by_side() -> None:
    said = words(pair())
    for line in (
        "46.6 AP mine 40.0 AP theirs",
        "annotated 14 boxes predicted 3,702 and 2,468 boxes",
        "AP of a picture, mine minus theirs , in points: +0.02 in the mean",
        "\N{MINUS SIGN}0.06 to +0.09 with 95 % confidence",
        "mine better: 2 equal: 5 theirs better: 1",
        "figure mine theirs difference Precision AP 46.6 40.0 +6.60 mean",
        "dog 7 1,234 75.0 75.0 75.0 75.0 0.00 cat 7 1,234 25.0 25.0 25.0 50.0 \N{MINUS SIGN}25.00",
        "val/7.jpg AP 3.1 and 13.1 , \N{MINUS SIGN}10.00",
    ):
        assert line in said
    assert section(pair(), "curves").count('class="curve s0"') == 4  # with those of the legends


def test_pictures_that_differ_have_the_boxes_of_both() -> None:
    apart, worst = section(pair(), "apart"), section(pair(), "worst")
    assert drawn(apart, "q") == ["theirs: cat 0.50"]
    assert drawn(apart, "p") == ["mine: cat 0.88", "mine: dog 0.12"]
    assert drawn(worst, "q") == []
    assert "alone" in worst
    assert "alone" not in apart


@pytest.mark.parametrize("verdict", ["identical", "equal", "different", "undecided"])
def test_the_verdict_is_in_words(verdict: str) -> None:
    assert re.search(rf'role="status">{verdict.capitalize()}: [\w<]', pair(verdict=verdict))


@pytest.mark.parametrize(("difference", "better"), [(0.2, "mine"), (-0.2, "theirs")])
def test_the_better_one_is_named(difference: float, better: str) -> None:
    assert f"Different: {better} is better" in words(pair(verdict="different", difference=difference))


@pytest.mark.parametrize("ends", [(-0.0006, 0.0009), (0.02, 0.04), (-0.3, -0.1), (0.0, 0.0)])
def test_the_interval_is_drawn_beside_the_margin(ends: tuple[float, float]) -> None:
    text = pair(interval=ends, difference=sum(ends) / 2)
    low, high = map(float, re.findall(r'class="error" d="M([\d.]+) 52H([\d.]+)M', text)[0])
    left, wide = map(float, re.findall(r'class="margin" x="([\d.]+)" y="24" width="([\d.]+)"', text)[0])
    assert (low - 240) / wide == pytest.approx(ends[0] / 0.002, rel=0.05, abs=0.05)
    assert (high - 240) / wide == pytest.approx(ends[1] / 0.002, rel=0.05, abs=0.05)
    assert (left <= low and high <= left + wide) == (max(map(abs, ends)) <= 0.001)
    assert 20 <= low <= high <= 460
