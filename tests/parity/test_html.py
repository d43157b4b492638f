"""The page of a report: by itself, safe with any name, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from converter.parity.html import to_html
from converter.parity.run import Report
from converter.parity.summary import printable
from tests.parity.test_report import HOSTILE, LOOSER, LOUD, MISSED, failed, image, report, tap, unjudged

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH (Debian: apt-get install chromium)")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"


class Page(HTMLParser):
    """What the tests ask of a page: its elements with attributes, and texts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in ("meta", "br", "input"):
            self._open.append(attributes.get("id"))

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self._open):
            self.texts[name] = self.texts.get(name, "") + data

    def find(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def large() -> Report:
    """As many activations as GLIP-T has, each with the fullest pictures there can be."""
    pictures = {
        "histogram": ((123456,) * 16,) * 16,
        "heat": tuple(tuple(1.2345678e-9 * (row + column) for column in range(32)) for row in range(32)),
    }
    return report(*(tap(f"backbone.body.layers.{i}.blocks.{i}", 1.23e-13, **pictures) for i in range(132)))


@pytest.mark.parametrize("value", [report(), failed(), unjudged(), report(detections=())])
def test_the_page_loads_nothing(value: Report) -> None:
    text = to_html(value)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "use", "image"}
    places = [a[key] for _, a in page.elements for key in ("src", "href", "action", "data") if key in a]
    assert all(str(place).startswith("#") for place in places)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|innerHTML|eval\(", text)
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_nothing_but_its_own_script_and_style_may_run() -> None:
    text = to_html(report())
    policy = next(a["content"] for _, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [hash_of(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0]) for tag in ("style", "script")]
    assert policy == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )
    assert not re.search(r"<[^>]* (style|on\w+)=", text)


def test_no_name_breaks_out() -> None:
    value = report(
        tap(HOSTILE, 1.0, module=HOSTILE), capture=HOSTILE, settings={HOSTILE: HOSTILE}, made={HOSTILE: [HOSTILE]},
        gate=LOOSER, skipped={"injected": HOSTILE},
    )  # fmt: skip
    text = to_html(value, hashes={HOSTILE: HOSTILE})
    page = Page(text)
    text.encode()
    assert len(page.find("script")) == 2
    assert json.loads(page.texts["data"])["taps"][0]["name"] == printable(HOSTILE)
    assert "<!--" not in text
    assert escape(printable(HOSTILE)) in text


def test_without_javascript_verdict_findings_table_and_boxes_are_there() -> None:
    text = to_html(failed(), hashes={"model.safetensors": "ab" * 32})
    page = Page(text)
    assert page.find("p", **{"class": "verdict fail"})
    assert "first difference</dt><dd>at head (computed by model.head): relative error 2.5e-01" in text
    assert "its parts agree, so the fault is in the code between them" in text
    assert len([a for a in page.find("tr") if "data-row" in a]) == 6
    assert "<td>0.7264</td>" in text
    assert page.find("rect", **{"class": "missed", "width": "31.4"})
    assert "ab" * 32 in text
    assert page.find("section", id="chart-section")[0].keys() >= {"hidden"}


def test_a_gate_looser_than_the_default_is_loud() -> None:
    assert f'role="alert">{LOUD}</p>' in to_html(report(gate=LOOSER))
    assert "LOOSER" not in to_html(report())


def test_what_could_not_be_judged_says_so() -> None:
    text = to_html(unjudged())
    assert '<p class="verdict open" role="status">could not be judged</p>' in text
    assert "only probes were kept" in text


def test_the_fullest_page_is_small() -> None:
    assert len(to_html(large()).encode()) < 3_000_000


@pytest.mark.parametrize("size", [(), ((),), ((float("nan"), 0.0),), ((0.0, 0.0),), ((5e-324, float("inf")),)])
def test_maps_without_a_scale_are_drawn(size: tuple[tuple[float, ...], ...]) -> None:
    Page(to_html(report(tap("a", heat=size))))


def hash_of(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def then(page: str, code: str) -> str:
    """The page with more at the end of its script, allowed to run."""
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    return page.replace(script, script + code).replace(hash_of(script), hash_of(script + code))


Browse = Callable[..., Page]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Opens a page in a browser and returns what the script made of it; complaints fail the test."""

    def run(text: str, fragment: str = "", *flags: str, complaints: bool = False) -> Page:
        dumped = start(tmp_path, text, fragment, "--dump-dom", *flags)
        assert ("CONSOLE" in dumped.stderr) == complaints, dumped.stderr
        return Page(dumped.stdout)

    return run


def start(folder: Path, text: str, fragment: str, *flags: str) -> subprocess.CompletedProcess[str]:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    profile = folder / f"profile-{len(list(folder.iterdir()))}"
    profile.mkdir()
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, f"{path.as_uri()}{fragment}"]
    environment = {**os.environ, "LANG": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)


@in_browser
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_a_fragment_opens_an_activation(browse: Browse, scheme: str) -> None:
    value = report(tap("a"), tap(HOSTILE, 2e-13), tap("c"))
    page = browse(to_html(value), f"#tap={quote(printable(HOSTILE), safe='')}", scheme)
    assert page.texts["chosen"] == printable(HOSTILE)
    assert "2.00e-13" in page.texts["numbers"]
    assert "2 of 3" in page.texts["state"]
    assert "column 3 of 2 x 3 cells" in page.texts["pictures"]
    assert "How many numbers have which error" in page.texts["pictures"]
    assert [a["aria-label"] for a in page.find("path", role="option", **{"aria-selected": "true"})] == [
        f"{printable(HOSTILE)}, {mode}: pass, relative error 2.00e-13, limit 1.00e-10, the reference's own 5.00e-14"
        for mode in ("propagated", "injected")
    ]


@in_browser
@pytest.mark.parametrize(("scheme", "background"), [(LIGHT, (0xFF, 0xFF, 0xFF)), (DARK, (0x14, 0x17, 0x1B))])
def test_light_and_dark_follow_the_system(tmp_path: Path, scheme: str, background: tuple[int, ...]) -> None:
    picture = tmp_path / "page.png"
    start(tmp_path, to_html(failed()), "", scheme, "--window-size=480,800", f"--screenshot={picture}")
    assert first_pixel(picture.read_bytes()) == background


@in_browser
def test_the_page_opens_where_the_models_part(browse: Browse) -> None:
    page = browse(to_html(failed()))
    assert page.texts["chosen"] == "head"
    assert "exactly 0" not in page.texts["chart"]
    assert len(page.find("path", role="option")) == 6
    assert len(page.find("path", role="option", tabindex="0")) == 1
    assert [a["class"] for a in page.find("path", role="option", **{"aria-selected": "true"})] == [
        "point propagated beyond", "point injected beyond",
    ]  # fmt: skip


@in_browser
def test_an_activation_that_is_not_there_is_said(browse: Browse) -> None:
    assert browse(to_html(report()), "#tap=nothing").texts["state"] == "There is no activation nothing in this report."


@in_browser
@pytest.mark.parametrize(
    ("keys", "focused"),
    [
        (["ArrowRight"], "two, propagated"),
        (["ArrowDown"], "one, injected"),
        (["End", "ArrowDown", "ArrowLeft"], "two, injected"),
        (["ArrowLeft"], "one, propagated"),
    ],
)
def test_arrow_keys_walk_along_the_network(browse: Browse, keys: list[str], focused: str) -> None:
    press = """
        points[0].element.focus();
        for (const key of KEYS) {
            document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        }
        document.title = document.activeElement.getAttribute("aria-label") + " | " + location.hash;
        document.querySelector("title").id = "title";
    """.replace("KEYS", json.dumps(keys))
    page = browse(then(to_html(failed()), press))
    label, _, fragment = page.texts["title"].partition(" | ")
    assert label.startswith(f"{focused}: pass")
    if focused.startswith("two"):
        assert fragment == "#tap=two"
        assert page.texts["chosen"] == "two"
    assert page.find("div", **{"class": "tooltip"})[0].get("hidden") is None


@in_browser
def test_the_table_sorts_and_filters(browse: Browse) -> None:
    value = report(tap("low", 1e-15, module="x"), tap("none", float("nan")), tap("high", 1e-12, cosine=None))
    use = """
        document.querySelector("th[data-by=relative] button").click();
        document.getElementById("filter").value = "X";
        document.getElementById("mode").value = "injected";
        document.getElementById("mode").dispatchEvent(new Event("input"));
    """
    page = browse(then(to_html(value), use))
    order = [a["data-row"] for a in page.find("tr") if "data-row" in a]
    assert order == ["1", "4", "2", "5", "0", "3"]  # NaN is the worst
    assert page.texts["count"] == "1 of 6 rows"
    assert [a["data-row"] for a in page.find("tr") if "data-row" in a and "hidden" not in a] == ["3"]
    assert [a["data-by"] for a in page.find("th") if "aria-sort" in a] == ["relative"]


@in_browser
@pytest.mark.parametrize(
    "value",
    [
        unjudged(),
        report(tap("a", 0.0, limit=0.0, own=0.0, heat=((0.0,),)), tap("b", float("nan"), heat=((float("nan"),),))),
        report(tap("a", histogram=None, heat=None, max_abs=None, needed=None, cosine=None)),
        report(modes={}, detections=(image(missed=(MISSED,)),)),
        large(),
    ],
    ids=["unjudged", "zero-and-nan", "probes", "nothing", "large"],
)
def test_no_report_makes_the_browser_complain(browse: Browse, value: Report) -> None:
    page = browse(to_html(value))
    assert len(page.find("path", role="option")) == sum(map(len, value.modes.values()))


@in_browser
def test_another_script_does_not_run(browse: Browse) -> None:
    page = browse(to_html(failed()).replace('"use strict";', '"use strict"; '), complaints=True)
    assert "chosen" not in page.texts


def first_pixel(png: bytes) -> tuple[int, ...]:
    """Red, green and blue of the upper left corner, which no filter of PNG changes."""
    data, at = b"", 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return tuple(zlib.decompress(data)[1:4])
