"""The charts of a report as inline SVG: colours come from the style sheet, values show where the pointer is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from converter.display import counted
from converter.evaluation.markup import points, sample, signed, swatch, text

if TYPE_CHECKING:
    from converter.evaluation.metrics import ClassScore, Scores

# units of the charts, so few that letters are still read where a chart is as narrow as a telephone
WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 462, 30, 256
BINS = 20  # of AP over pictures
SPACED = 200  # classes, up to which their bars have gaps
# in the order in which they are drawn
FREQUENCIES: Mapping[str | None, str] = {"f": "frequent", "c": "common", "r": "rare", None: "all"}
_FIGURE_OF = {"IoU 0.50": "AP50", "IoU 0.75": "AP75", "IoU 0.50:0.95": "AP"}


def _x(share: float) -> float:
    return LEFT + share * (RIGHT - LEFT)


def _y(share: float) -> float:
    return BOTTOM - share * (BOTTOM - TOP)


def _frame(label: str, content: Iterable[str], height: int = HEIGHT) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(content)}</svg>'


def _axes(across: str, up: str, ticks: Sequence[tuple[float, str]]) -> str:
    """A grid, with 0 to 100 from left to right, and `ticks` (share of the height, text) upwards."""
    drawn = [
        f'<path class="grid" d="M{LEFT} {_y(share):.1f}H{RIGHT}"/>'
        f'<text class="end" x="{LEFT - 6}" y="{_y(share) + 4:.1f}">{shown}</text>'
        for share, shown in ticks
    ]
    for i in range(6):
        x = f"{_x(i / 5):.1f}"
        drawn.append(f'<path class="grid" d="M{x} {BOTTOM}v5"/><text x="{x}" y="{BOTTOM + 18}">{20 * i}</text>')
    middle = (TOP + BOTTOM) / 2
    drawn.append(
        f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/><text x="{_x(0.5):.1f}" y="{HEIGHT - 6}">{across}</text>'
    )
    drawn.append(f'<text x="10" y="{middle}" transform="rotate(-90 10 {middle})">{up}</text>')
    return "".join(drawn)


def curves(scores: Scores) -> str:
    """Precision at each recall, a curve for each IoU; the pointer shows the values of all at its recall."""
    drawn = [_axes("recall, %", "precision, %", [(i / 5, str(20 * i)) for i in range(6)])]
    keys = []
    for place, (name, values) in enumerate(scores.precision.items()):
        line = " ".join(f"{_x(r):.1f} {_y(p):.1f}" for r, p in zip(scores.recall, values, strict=True))
        drawn.append(f'<path class="curve s{place}" d="M{line}"/>')
        figure = _FIGURE_OF.get(name, "")
        shown = f" <b>{figure} {points(scores.figures.get(figure))}</b>" if figure in scores.figures else ""
        keys.append(f"<li>{_line(f'curve s{place}')}{text(name)}{shown}</li>")
    drawn += _readings(scores)
    chart = _frame("Precision at each recall, for each IoU", drawn)
    legend = f'<figcaption><ul class="keys">{"".join(keys)}</ul></figcaption>'
    return f"<figure>{chart}{legend}</figure>{_values(scores)}"


def _values(scores: Scores) -> str:
    """Ten steps of the curves as a table, for those who have no pointer."""
    head = "".join(f"<th scope=col>{text(name)}" for name in ("recall, %", *scores.precision))
    rows = "".join(
        f"<tr><th scope=row>{100 * recall:.0f}" + "".join(f"<td>{points(v[i])}" for v in scores.precision.values())
        for i, recall in enumerate(scores.recall)
        if i % 10 == 0
    )
    return f"<details><summary>as a table</summary><table><thead><tr>{head}<tbody>{rows}</table></details>"


def _line(style: str) -> str:
    return sample(f'<path class="{style}" d="M0 5H30"/>', "0 0 30 10")


def _readings(scores: Scores) -> Iterable[str]:
    """For each recall a strip that, under the pointer, shows a line, points and values."""
    series = list(scores.precision.values())
    wide = (RIGHT - LEFT) / max(len(scores.recall) - 1, 1)
    for index, recall in enumerate(scores.recall):
        at = _x(recall)
        dots = "".join(
            f'<circle class="s{i}" cx="{at:.1f}" cy="{_y(v[index]):.1f}" r="3.5"/>' for i, v in enumerate(series)
        )
        said = " ".join(
            f'<tspan class="s{i}" dx="10">{text(name.removeprefix("IoU "))}: {points(values[index])}</tspan>'
            for i, (name, values) in enumerate(scores.precision.items())
        )
        yield (
            f'<g class="hit"><rect x="{at - wide / 2:.1f}" y="{TOP}" width="{wide:.1f}" height="{BOTTOM - TOP}"/>'
            f'<g class="shown"><path d="M{at:.1f} {TOP}V{BOTTOM}"/>{dots}'
            f'<text class="end" x="{RIGHT}" y="18">recall {100 * recall:.0f} {said}</text></g></g>'
        )


def distribution(scores: Scores) -> str:
    """How many pictures have which AP."""
    known = [ap for ap in scores.pictures.values() if ap is not None]
    if not known:
        return "<p>No picture has an AP of its own: nothing is annotated, and nothing was predicted.</p>"
    counts = [0] * BINS
    for ap in known:
        counts[min(int(ap * BINS + 1e-9), BINS - 1)] += 1
    step = _step(max(counts))
    top = step * math.ceil(max(counts) / step)
    drawn = [_axes("AP of a picture", "pictures", [(i / top, f"{i:,}") for i in range(0, top + 1, step)])]
    for index, count in enumerate(counts):
        x, wide, y = _x(index / BINS), (RIGHT - LEFT) / BINS, _y(count / top)
        span = f"{100 * index // BINS} to {100 * (index + 1) // BINS}"
        drawn.append(
            f'<g class="hit"><rect x="{x:.1f}" y="{TOP}" width="{wide:.1f}" height="{BOTTOM - TOP}"/>'
            f'<path class="column" d="M{x + 1:.1f} {BOTTOM}V{y:.1f}h{wide - 2:.1f}V{BOTTOM}z"/>'
            f'<text class="end shown" x="{RIGHT}" y="18">AP {span}: {count:,}</text></g>'
        )
    mean, middle = statistics.fmean(known), statistics.median(known)
    drawn.append(f'<path class="mean" d="M{_x(mean):.1f} {TOP}V{BOTTOM}"/>')
    chart = _frame("How many pictures have which AP", drawn)
    said = f"mean {points(mean)}, median {points(middle)}, {len(known):,} pictures"
    return f"<figure>{chart}<figcaption>{_line('mean')}{said}</figcaption></figure>"


def _step(most: int) -> int:
    """Between ticks of an axis of counts: 1, 2 or 5 times a power of ten, so that there are at most six."""
    power: int = 10 ** int(math.log10(max(most, 1)))
    return next((step for step in (power // 5, power // 2, power, 2 * power) if step and most / step <= 5), 5 * power)


def strip(classes: Sequence[ClassScore]) -> str:
    """A bar for each class, the best first, of each frequency by itself. Stretched to the width that there is."""
    order = list(FREQUENCIES)
    known = sorted(
        (c for c in classes if c.ap is not None), key=lambda c: (order.index(c.frequency), -(c.ap or 0), c.id)
    )
    if not known:
        return "<p>No class is annotated.</p>"
    wide = 0.8 if len(known) <= SPACED else 1
    bars: dict[str | None, list[str]] = {}
    hits = []
    for place, c in enumerate(known):
        bars.setdefault(c.frequency, []).append(f"M{place} 100V{100 - 100 * (c.ap or 0):.1f}h{wide}V100z")
        hits.append(f'<path d="M{place}.5 0v100"><title>{text(c.name, 60)}: {points(c.ap)}</title></path>')
    drawn = "".join(f'<path class="bar f-{of or "all"}" d="{"".join(d)}"/>' for of, d in bars.items())
    grid = "".join(f'<path class="grid" d="M0 {y}H{len(known)}"/>' for y in (0, 25, 50, 75, 100))
    keys = "".join(
        f"<li>{swatch(f'bar f-{of}')}{FREQUENCIES[of]}: {counted(len(d), 'class', 'classes')}</li>"
        for of, d in bars.items()
        if of
    )
    ranked = sorted(known, key=lambda c: -(c.ap or 0))
    said = f"Best {_named(ranked[0])}, worst {_named(ranked[-1])}, in the middle {_named(ranked[len(ranked) // 2])}."
    scale = "".join(f"<span>{share}</span>" for share in (100, 75, 50, 25, 0))
    return (
        f'<figure class="stretched"><div class="scale" aria-hidden="true">{scale}</div><svg class="strip" role="img" '
        f'viewBox="0 0 {len(known)} 100" preserveAspectRatio="none" aria-label="AP of each class, the best first">'
        f'{grid}{drawn}<g class="hits">{"".join(hits)}</g></svg><figcaption><output id="pointed">{said}</output>'
        f'<ul class="keys">{keys}</ul></figcaption></figure>'
    )


def _named(c: ClassScore) -> str:
    return f"<bdi>{text(c.name, 60)}</bdi> {points(c.ap)}"


def interval(difference: float, ends: tuple[float, float], margin: float, label: str) -> str:
    """A difference with its interval as an error bar, beside the margin within which two models are equal."""
    low, high = ends
    reach = 1.15 * max(abs(low), abs(high), abs(difference), 1.5 * margin)
    half = (WIDTH - 40) / 2

    def at(value: float) -> float:
        return WIDTH / 2 + half * value / reach

    y, top, bottom = 52, 24, 78
    ticks = "".join(
        f'<path class="grid" d="M{at(v):.1f} {bottom}v5"/><text x="{at(v):.1f}" y="{bottom + 18}">{_tick(v)}</text>'
        for v in _spread(reach)
    )
    bar = f"M{at(low):.1f} {y}H{at(high):.1f}M{at(low):.1f} {y - 8}v16M{at(high):.1f} {y - 8}v16"
    drawn = (
        f'<rect class="margin" x="{at(-margin):.1f}" y="{top}" width="{at(margin) - at(-margin):.1f}" '
        f'height="{bottom - top}"/><path class="axis" d="M20 {bottom}H{WIDTH - 20}"/>',
        f'<path class="zero" d="M{at(0):.1f} {top}V{bottom}"/><text x="{at(0):.1f}" y="16">equal</text>{ticks}',
        f'<path class="error" d="{bar}"/><circle class="error" cx="{at(difference):.1f}" cy="{y}" r="5.5">'
        f"<title>{signed(difference)}</title></circle>",
    )
    return _frame(label, drawn, height=bottom + 26)


def _tick(value: float) -> str:
    return f"{100 * value:+g}".replace("-", "&minus;") if value else "0"


def _spread(reach: float) -> Sequence[float]:
    """Ticks on both sides of zero, so few that their texts have room."""
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(power * by for by in (0.2, 0.5, 1, 2, 5) if reach / (power * by) <= 2.6)
    return [step * i for i in range(-int(reach / step), int(reach / step) + 1)]
