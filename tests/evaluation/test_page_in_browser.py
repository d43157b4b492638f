"""What a browser makes of the page of an evaluation, with and without its script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.test_html import DARK, LIGHT, Page, first_pixel, in_browser, start, then
from tests.parity.test_report import HOSTILE
from tests.support.evaluated import class_score, compared, large, page, picture, scores

pytestmark = in_browser
Open = Callable[..., Page]

# what a test found out in the page, where it is read again
SAY = "; const said = document.createElement('p'); said.id = 'said'; document.body.append(said); said.textContent = "
SEEN = """
    const boxes = [...document.querySelectorAll(".picture .box")];
    const seen = boxes.filter((box) => getComputedStyle(box).display !== "none");
"""
ROWS = "[...document.querySelectorAll('.classes tbody th')].map((cell) => cell.textContent).join()"


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a page and returns what it is then; complaints fail the test."""

    def run(text: str, *flags: str, complaints: bool = False) -> Page:
        dumped = start(tmp_path, text, "", "--dump-dom", *flags)
        assert ("CONSOLE" in dumped.stderr) == complaints, dumped.stderr
        return Page(dumped.stdout)

    return run


def hostile() -> str:
    value = scores(classes=(class_score(1, HOSTILE, 0.5),), library=HOSTILE)
    boxes = [(HOSTILE, 0.5, 1, 1, 9, 9)]
    return page(
        value, title=HOSTILE, about=[(HOSTILE, HOSTILE)], skipped=[(HOSTILE, HOSTILE)], names=(HOSTILE, HOSTILE),
        worst=[picture(name=HOSTILE, predicted=boxes, other=boxes)], paired=compared(first=value, second=value),
    )  # fmt: skip


PAGES = {
    "usual": page,
    "large": lambda: page(large()),
    "nothing": lambda: page(scores(classes=(), pictures={}, figures={}), worst=[], skipped=[], about=[]),
    "compared": lambda: page(paired=compared(), worst=[picture(other=[("cat", 0.5, 10, 10, 20, 20)])]),
    "hostile": hostile,
    "long names": lambda: page(paired=compared(), names=("first" * 20, "second" * 20), title="title" * 30),
}


@pytest.mark.parametrize(("name", "scheme"), [*((name, LIGHT) for name in PAGES), ("compared", DARK)])
def test_no_page_makes_the_browser_complain(opened: Open, name: str, scheme: str) -> None:
    found = opened(PAGES[name](), scheme)
    assert "hidden" not in found.find("div", id="tools")[0]
    assert "Skipped" in found.texts["skipped"]


@pytest.mark.parametrize(("scheme", "background"), [(LIGHT, (0xFF, 0xFF, 0xFF)), (DARK, (0x14, 0x17, 0x1B))])
def test_light_and_dark_follow_the_system(tmp_path: Path, scheme: str, background: tuple[int, ...]) -> None:
    shot = tmp_path / "page.png"
    start(tmp_path, page(), "", scheme, "--window-size=480,800", f"--screenshot={shot}")
    assert first_pixel(shot.read_bytes()) == background


def test_another_script_does_not_run_and_is_not_needed(opened: Open) -> None:
    found = opened(page().replace('"use strict";', '"use strict"; '), complaints=True)
    assert "hidden" in found.find("div", id="tools")[0]
    assert "hidden" in found.find("li", **{"class": "tool"})[0]
    assert [a["aria-label"] for a in found.find("svg", role="group")] == ["val/7.jpg"]
    assert "dog71,23475.075.075.0" in found.texts["first"].replace("\n", "")


def test_another_style_does_not_apply(opened: Open) -> None:
    opened(page().replace("<style>", "<style> "), complaints=True)


def test_a_picture_from_elsewhere_is_not_loaded(opened: Open) -> None:
    opened(page().replace("data:image/jpeg;base64,", "https://localhost/"), complaints=True)


@pytest.mark.parametrize("name", ["usual", "compared", "large", "hostile", "long names"])
def test_nothing_is_wider_than_a_telephone(opened: Open, name: str) -> None:
    say = SAY + "String(document.documentElement.scrollWidth <= document.documentElement.clientWidth);"
    assert opened(then(PAGES[name](), say), "--window-size=400,900").texts["said"] == "true"


@pytest.mark.parametrize(
    ("clicks", "order"),
    [
        (["AP"], "cat,dog,yeti"),  # what is not measured stays last
        (["class", "class"], "yeti,dog,cat"),
        (["predicted", "predicted"], "cat,yeti,dog"),
        (["predicted", "AP"], "dog,cat,yeti"),
    ],
)
def test_classes_are_sorted(opened: Open, clicks: list[str], order: str) -> None:
    value = scores(
        classes=(
            class_score(1, "cat", 0.25, annotated=1200, predicted=9),
            class_score(2, "dog", 0.75, annotated=30, predicted=1000),
            class_score(3, "yeti", None, annotated=0, predicted=80),
        )
    )
    press = f"""for (const title of {clicks})
        [...document.querySelectorAll("th button")].find((button) => button.textContent === title).click();"""
    found = opened(then(page(value), press + SAY + ROWS))
    assert found.texts["said"] == order
    assert len([a for a in found.find("th") if "aria-sort" in a]) == 1


def test_classes_are_filtered_out_of_the_folded_part_too(opened: Open) -> None:
    use = 'byId("filter").value = " KIND 120"; byId("filter").dispatchEvent(new Event("input"));'
    found = opened(then(page(large()), use + SAY + "first.rows.length + ' ' + byId('more').hidden;"))
    assert found.texts["said"] == "4 true"  # 120, 1200, 1201, 1202
    assert found.texts["count"] == "4 of 1,203 classes"


def test_sorted_classes_fill_the_open_part_first(opened: Open) -> None:
    use = 'document.querySelector("th[aria-sort] button").click();'
    found = opened(then(page(large()), use + SAY + "first.rows.length + ' ' + first.rows[0].cells[0].textContent;"))
    assert found.texts["said"] == "100 thing of kind 0"


def test_predictions_of_a_low_score_are_hidden(opened: Open) -> None:
    use = """
        const slider = document.querySelector(".least");
        slider.value = 0.5;
        slider.dispatchEvent(new Event("input"));
    """
    found = opened(then(page(), use + SEEN + SAY + "seen.map((box) => box.querySelector('title').textContent).join()"))
    assert found.texts["said"] == "annotated: dog (crowd),annotated: cat,predicted: cat 0.88"


@pytest.mark.parametrize(("kind", "left"), [("a", "pp"), ("p", "aa")])
def test_boxes_of_a_kind_are_hidden_without_a_script(opened: Open, kind: str, left: str) -> None:
    use = f'document.querySelector(".show-{kind}").checked = false;'
    found = opened(then(page(), use + SEEN + SAY + "seen.map((box) => box.classList[1]).join('')"))
    assert found.texts["said"] == left


def test_a_box_that_is_tapped_says_what_it_is(opened: Open) -> None:
    use = """const box = document.querySelector(".box.p"), tag = box.querySelector(".tag");
        const before = getComputedStyle(tag).visibility; box.focus();
        const others = getComputedStyle(document.querySelector(".tags")).visibility;
    """
    found = opened(
        then(page(), use + SAY + "[before, getComputedStyle(tag).visibility, others, tag.textContent].join()")
    )
    assert found.texts["said"] == "hidden,visible,hidden,cat 0.88"


def test_a_class_that_is_pointed_at_is_named(opened: Open) -> None:
    bar = 'document.querySelector(".hits path:nth-child(2)")'
    use = f'{bar}.dispatchEvent(new Event("pointerover", {{ bubbles: true }}));'
    assert opened(then(page(), use)).texts["pointed"] == "cat: 25.0"


def test_every_bar_has_its_length(opened: Open) -> None:
    """The style sheet has one rule for each length that is written."""
    say = SAY + "getComputedStyle(document.querySelector('#first td[class]')).backgroundImage"
    for ap, to in ((0.0, "0"), (0.26, "25%"), (1.0, "100%")):
        said = opened(then(page(scores(classes=(class_score(1, "cat", ap),))), say)).texts["said"]
        assert f") {to}, " in said.replace(" 0%,", " 0,").replace(" 0px,", " 0,")


def test_a_hostile_page_runs_nothing(opened: Open) -> None:
    value: Any = opened(then(hostile(), SAY + "String(document.scripts.length)"))
    assert value.texts["said"] == "1"
    assert len(value.find("style")) == 1
