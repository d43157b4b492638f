"""Pictures with what is annotated in them and what was predicted: boxes as SVG over the picture, labels where there is
room, and the label and score of any box under the pointer."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from converter.evaluation.markup import points, sample, scrolled, signed, text

if TYPE_CHECKING:
    from PIL import Image

Annotated: TypeAlias = tuple[str, float, float, float, float, bool]  # label, x, y, width, height, is_crowd
Predicted: TypeAlias = tuple[str, float, float, float, float, float]  # label, score, x, y, width, height
Rectangle: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

STRONGEST = 20  # predictions that are drawn of a picture
MOST_ANNOTATED = 150  # a crowd of thousands would be a page of its own
MOST_WRITTEN = 10  # labels of one kind that are written without being pointed at
LEAST_WRITTEN = 0.3  # score of a prediction whose label is
SHOWN = (540, 430)  # pixels of the screen that a picture has on a wide page, for which letters are sized
SIDE = 640  # pixels of a picture that is made smaller here
LABEL = 40  # letters of a label
NARROW, WIDE = frozenset("ijlftrI.,:;'|!()[] -"), frozenset("mwMW@%")


@dataclass(frozen=True, slots=True, eq=False)
class WorstPicture:
    """A picture to be looked at. `image`: scaled down, or the bytes of such a JPEG. Boxes are in pixels of the
    original, `width` by `height`. `other`, `other_ap`: of the second model, where two are compared."""

    name: str
    ap: float | None
    image: Image.Image | bytes
    width: int
    height: int
    annotated: Sequence[Annotated]
    predicted: Sequence[Predicted]
    other: Sequence[Predicted] | None = None
    other_ap: float | None = None


@dataclass(frozen=True, slots=True)
class _Box:
    kind: str  # a: annotated, p: predicted, q: predicted by the second model
    label: str
    score: float | None
    crowd: bool
    at: Rectangle

    @property
    def area(self) -> float:
        left, top, right, bottom = self.at
        return (right - left) * (bottom - top)

    @property
    def line(self) -> str:
        said = text(self.label, LABEL) + (" (crowd)" if self.crowd else "")
        return said if self.score is None else f"{said} {self.score:.2f}"


def gallery(pictures: Sequence[WorstPicture], names: tuple[str, str] | None = None) -> str:
    """All pictures, under a legend. `names`: of the two models, where they are compared."""
    kinds = {"a": "annotated", "p": "predicted"}
    if names is not None:
        kinds = {"a": "annotated", "p": text(names[0], LABEL), "q": text(names[1], LABEL)}
    legend = "".join(f"<li>{_switch(kind, said)}</li>" for kind, said in kinds.items())
    return (
        f'<div class="gallery"><ul class="keys kinds">{legend}<li class="tool" hidden><label>score at least '
        '<input type="range" min="0" max="1" step="0.05" value="0" class="least"> <output>0.00</output></label></li>'
        f'</ul><div class="pictures">{"".join(_figure(p, kinds) for p in pictures)}</div></div>'
    )


def _switch(kind: str, said: str) -> str:
    line = f'<g class="{kind}"><path class="under" d="M4 10H40"/><path class="over" d="M4 10H40"/></g>'
    shown = sample(f'<path class="ground" d="M0 0h44v20H0z"/>{line}', "0 0 44 20")
    return f'<label><input type="checkbox" class="show-{kind}" checked>{shown}{said}</label>'


def _figure(picture: WorstPicture, kinds: dict[str, str]) -> str:
    boxes = _boxes(picture)
    counts = {kind: sum(box.kind == kind for box in boxes) for kind in kinds}
    drawn = "".join(_drawn(box, picture, kinds[box.kind]) for box in sorted(boxes, key=lambda box: -box.area))
    said = ", ".join(f"{kinds[kind]}: {count}" for kind, count in counts.items())
    figures = f"AP <b>{points(picture.ap)}</b>"
    if picture.other is not None:
        gap = None if picture.ap is None or picture.other_ap is None else picture.ap - picture.other_ap
        figures = f"AP <b>{points(picture.ap)}</b> and <b>{points(picture.other_ap)}</b>, {signed(gap)}"
    name, content = text(picture.name), base64.b64encode(_jpeg(picture)).decode()
    return (
        f'<figure class="picture"><svg viewBox="0 0 {picture.width} {picture.height}" role="group" '
        f'font-size="{_letters(picture):.1f}" aria-label="{name}"><image width="{picture.width}" '
        f'height="{picture.height}" preserveAspectRatio="none" href="data:image/jpeg;base64,{content}"/>{drawn}'
        f'<g class="tags">{_written(boxes, picture)}</g></svg><figcaption><span><bdi>{name}</bdi></span> '
        f"<span>{figures}</span>{_listed(boxes, kinds, said)}</figcaption></figure>"
    )


def _jpeg(picture: WorstPicture) -> bytes:
    if isinstance(picture.image, bytes):
        return picture.image
    image = picture.image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return content.getvalue()


def _boxes(picture: WorstPicture) -> list[_Box]:
    found = [("a", label, None, crowd, corners) for label, *corners, crowd in picture.annotated[:MOST_ANNOTATED]]
    boxes = [_box(picture, *row) for row in found]
    for kind, predicted in (("p", picture.predicted), ("q", picture.other or ())):
        best = sorted(predicted, key=lambda row: -row[1])[:STRONGEST]
        boxes += [_box(picture, kind, label, score, False, corners) for label, score, *corners in best]
    return [box for box in boxes if all(map(math.isfinite, box.at))]


def _box(picture: WorstPicture, kind: str, label: str, score: float | None, crowd: bool, of: Sequence[float]) -> _Box:
    """Cut to the picture: what is beyond it is not seen, and its numbers may be of any length."""
    x, y, width, height = of
    corners = (x, y, x + max(width, 0), y + max(height, 0))
    sides = (picture.width, picture.height, picture.width, picture.height)
    left, top, right, bottom = (min(max(c, 0.0), float(s)) for c, s in zip(corners, sides, strict=True))
    return _Box(
        kind, label, score, crowd, (left, top, right, bottom) if all(map(math.isfinite, of)) else (math.nan,) * 4
    )


def _drawn(box: _Box, picture: WorstPicture, kind: str) -> str:
    left, top, right, bottom = (f"{c:.0f}" if picture.width > 200 else f"{c:.1f}" for c in box.at)
    place = f"M{left} {top}H{right}V{bottom}H{left}z"
    seen = "" if box.score is None else f' opacity="{0.55 + 0.45 * min(max(box.score, 0), 1):.2f}"'
    style = f"box {box.kind} crowd" if box.crowd else f"box {box.kind}"
    tag = _tag(box, picture, next(iter(_places(box, picture))))
    return (
        f'<g class="{style}" tabindex="-1"{_scored(box)}{seen}><title>{kind}: {box.line}</title>'
        f'<path class="under" d="{place}"/><path class="over" d="{place}"/>{tag}</g>'
    )


def _scored(box: _Box) -> str:
    """By which the script hides what has a low score."""
    return "" if box.score is None else f' data-s="{box.score:.2f}"'


def _letters(picture: WorstPicture) -> float:
    """Size of letters, in pixels of the original, so that they are 13 pixels on a wide page."""
    return 13 * max(picture.width / SHOWN[0], picture.height / SHOWN[1])


def _places(box: _Box, picture: WorstPicture) -> Iterable[Rectangle]:
    """Where a label may be, the best place first: of annotations at the lower edge, of predictions at the upper."""
    size = _letters(picture)
    wide, high = size * (_wide(_plain(box)) + 0.6), 1.3 * size
    left, top, right, bottom = box.at
    columns: Sequence[float] = (left, right - wide)
    above, inside, below, bottom_inside = top - high, top, bottom, bottom - high
    rows = (below, bottom_inside, above, inside) if box.kind == "a" else (above, inside, below, bottom_inside)
    if box.kind == "q":
        columns = (right - wide, left)
    for y in rows:
        for x in columns:
            x, y = min(max(x, 0), max(picture.width - wide, 0)), min(max(y, 0), max(picture.height - high, 0))
            yield x, y, x + wide, y + high


def _plain(box: _Box) -> str:
    """As long as what is written, without what HTML adds."""
    return box.label[:LABEL] + (" (crowd)" if box.crowd else "") + ("" if box.score is None else " 0.00")


def _wide(line: str) -> float:
    """About how wide a line is in usual fonts, in units of their size: it is told to be so."""
    return sum(
        1.0 if unicodedata.east_asian_width(c) in "WF" else 0.3 if c in NARROW else 0.85 if c in WIDE else 0.58
        for c in line
    )


def _tag(box: _Box, picture: WorstPicture, at: Rectangle) -> str:
    left, top, right, bottom = at
    size = _letters(picture)
    place = f"M{left:.0f} {top:.0f}H{right:.0f}V{bottom:.0f}H{left:.0f}z"
    return (
        f'<g class="tag {box.kind}"{_scored(box)}><path d="{place}"/><text x="{left + 0.3 * size:.0f}" '
        f'y="{top + size:.0f}" textLength="{right - left - 0.6 * size:.0f}" lengthAdjust="spacingAndGlyphs">'
        f"{box.line}</text></g>"
    )


def _written(boxes: Sequence[_Box], picture: WorstPicture) -> str:
    """Labels of the largest annotations and strongest predictions, as many as there is room for without overlap."""
    ranked: dict[str, Callable[[_Box], float]] = {
        "a": lambda box: -box.area, "p": lambda box: -(box.score or 0), "q": lambda box: -(box.score or 0),
    }  # fmt: skip
    chosen = [
        sorted((b for b in boxes if b.kind == kind and (b.score is None or b.score >= LEAST_WRITTEN)), key=rank)
        for kind, rank in ranked.items()
    ]
    taken: list[Rectangle] = []
    tags = []
    for rank in range(MOST_WRITTEN):
        for box in (of[rank] for of in chosen if rank < len(of)):
            place = next((at for at in _places(box, picture) if not any(_overlap(at, other) for other in taken)), None)
            if place is not None:
                taken.append(place)
                tags.append(_tag(box, picture, place))
    return "".join(tags)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _listed(boxes: Sequence[_Box], kinds: dict[str, str], said: str) -> str:
    """The boxes as a table, for those who read."""
    rows = "".join(
        f"<tr><td>{kinds[b.kind]}<th scope=row>{text(b.label, LABEL)}<td>{'' if b.score is None else f'{b.score:.2f}'}"
        f"{'crowd' if b.crowd else ''}"
        for b in boxes
    )
    table = f"<table><thead><tr><th scope=col>box<th scope=col>label<th scope=col>score<tbody>{rows}</table>"
    return f"<details><summary>{said}</summary>{scrolled(table, 'Boxes')}</details>"
