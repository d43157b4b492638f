"""The report of an evaluation as one HTML page that needs nothing but itself.

Everything is written here and can be read without JavaScript; charts and boxes are inline SVG that show their values
under the pointer. The script of `page.html` adds sorting, a filter, and what is hidden in the pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.display import counted
from converter.evaluation.charts import FREQUENCIES, curves, distribution, interval, strip
from converter.evaluation.gallery import WorstPicture, gallery
from converter.evaluation.markup import bar, points, policy_of, scrolled, signed, swatch, text
from converter.evaluation.paired import MARGIN

if TYPE_CHECKING:
    from converter.evaluation.metrics import ClassScore, Scores
    from converter.evaluation.paired import Paired

__all__ = ["WorstPicture", "to_html"]

LISTED = 500  # skipped pictures that are named
UNFOLDED = 100  # classes that are seen without unfolding

# of each group the figures that may be there, and what they mean
FIGURES: Mapping[str, Mapping[str, str]] = {
    "Precision": {"AP": "mean over IoU 0.50 to 0.95", "AP50": "IoU 0.50", "AP75": "IoU 0.75"},
    "Precision by size": {
        "APs": "small: below 32 by 32 pixels",
        "APm": "medium",
        "APl": "large: from 96 by 96 pixels",
    },
    "Precision by frequency": {
        "APr": "rare: in 1 to 10 pictures of the training data",
        "APc": "common: in 11 to 100",
        "APf": "frequent: in more than 100",
    },
    "Recall": {
        "AR1": "1 box for each picture",
        "AR10": "10 boxes",
        "AR100": "100 boxes",
        "AR300": "300 boxes",
        "ARs": "small",
        "ARm": "medium",
        "ARl": "large",
    },
}
VERDICTS: Mapping[str, tuple[str, str]] = {
    "identical": ("pass", "Identical: both find the same boxes, labels and scores in every picture."),
    "equal": ("pass", "Equal: a difference, if there is one, is below 0.1 AP, the last digit that is published."),
    "different": ("fail", "Different: {better} is better, by more than chance explains."),
    "undecided": ("open", "Undecided: these pictures can tell neither that they are equal nor that they differ."),
}


def to_html(
    scores: Scores,
    *,
    title: str,
    about: Sequence[tuple[str, str]],
    skipped: Sequence[tuple[str, str]],
    worst: Sequence[WorstPicture],
    paired: Paired | None = None,
    names: tuple[str, str] = ("first", "second"),
) -> str:
    """The page of `scores`. `about`: what was measured, on what and how, as rows (name, value); its row `data set` is
    in the headline; `skipped`: pictures that are not in the figures (name, reason); `worst`: pictures to look at, and
    with `other` those in which two models differ most; `paired`: the comparison of two models, called `names`."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    second = None if paired is None else paired.second
    parts = {
        "policy": policy_of(template),
        "title": text(title),
        "headline": _headline(scores, second, names, about, skipped),
        "layout": "beside" if paired is None else "stacked",
        "paired": "" if paired is None else _paired(paired, names),
        "figures": _figures(scores, second, names),
        "curves": _beside(curves, scores, second, names),
        "classes": _classes(scores.classes, None if second is None else second.classes, names),
        "strip": strip(scores.classes),
        "distribution": _beside(distribution, scores, second, names),
        "worst": _worst(worst, None if paired is None else names),
        "skipped": _skipped(skipped),
        "about": _facts([*about, ("metric", f"{scores.library}, {scores.style}")]),
    }
    # in one pass, so that inserted text is not searched for placeholders
    return re.sub(r"@\{(\w+)\}", lambda place: parts[place[1]], template)


def _headline(
    scores: Scores,
    second: Scores | None,
    names: tuple[str, str],
    about: Sequence[tuple[str, str]],
    skipped: Sequence[tuple[str, str]],
) -> str:
    """What is to be known first: the AP, of what, and whether it is of all of it."""
    on = next((value for name, value in about if name.lower().replace(" ", "") == "dataset"), None)
    measured = sum(c.ap is not None for c in scores.classes)
    predicted = [f"{sum(c.predicted for c in of.classes):,}" for of in (scores, second) if of is not None]
    facts = [
        ("data set", f"<bdi>{text(on)}</bdi>" if on else ""),
        ("pictures", f"{len(scores.pictures):,}"),
        ("classes", f"{measured:,}" + (f" of {len(scores.classes):,}" if measured < len(scores.classes) else "")),
        ("annotated", f"{sum(c.annotated for c in scores.classes):,} boxes"),
        ("predicted", f"{' and '.join(predicted)} boxes"),
        ("skipped", f"{len(skipped):,}" if skipped else "none"),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    loud = ""
    if skipped:
        said = counted(len(skipped), "picture was", "pictures were")
        loud = f'<p class="loud" role="alert">{said} skipped: <a href="#skipped">see which, and why</a>.</p>'
    models = [(scores, "")] if second is None else [(scores, _name(names[0])), (second, _name(names[1]))]
    figures = "".join(f"<span><b>{points(of.figures.get('AP'))}</b> AP {name}</span> " for of, name in models)
    return f'<p class="headline">{figures}</p><dl class="facts">{rows}</dl>{loud}'


def _name(name: str) -> str:
    return f"<bdi>{text(name, 60)}</bdi>"


def _paired(paired: Paired, names: tuple[str, str]) -> str:
    """The verdict in words, the interval beside the margin, and in how many pictures which model is better."""
    style, verdict = VERDICTS[paired.verdict]
    verdict = verdict.replace("{better}", _name(names[0 if paired.difference > 0 else 1]))
    low, high = paired.interval
    drawn = interval(paired.difference, paired.interval, MARGIN, "The difference with its interval, and the margin")
    return (
        f'<section aria-label="Comparison"><p class="verdict {style}" role="status">{verdict}</p><div class="beside">'
        f"<figure>{drawn}<figcaption>AP of a picture, {_name(names[0])} minus {_name(names[1])}, in points: "
        f"<b>{signed(paired.difference)}</b> in the mean, {signed(low)} to {signed(high)} with 95 % confidence. "
        f"The band is the margin of equality, &plusmn;{100 * MARGIN:.2f}.</figcaption></figure>"
        f"{_shares(paired, names)}</div></section>"
    )


def _shares(paired: Paired, names: tuple[str, str]) -> str:
    counts = (
        ("better", paired.better, f"{_name(names[0])} better"),
        ("equal", paired.equal, "equal"),
        ("worse", paired.worse, f"{_name(names[1])} better"),
    )
    total = max(sum(count for _, count, _ in counts), 1)
    at, drawn, keys = 0.0, "", ""
    for kind, count, said in counts:
        drawn += f'<path class="{kind}" d="M{at:.2f} 0h{100 * count / total:.2f}v10H{at:.2f}z"/>'
        at += 100 * count / total
        keys += f"<li>{swatch(kind)}{said}: <b>{count:,}</b></li>"
    return (
        '<figure class="low"><svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="Pictures in which either is better">{drawn}</svg><figcaption>In how many pictures'
        f'<ul class="keys">{keys}</ul></figcaption></figure>'
    )


def _figures(scores: Scores, second: Scores | None, names: tuple[str, str]) -> str:
    """The figures in groups, those of a second model and the difference beside them."""
    known = {name for group in FIGURES.values() for name in group}
    groups = {**FIGURES, "Other": {name: "" for name in scores.figures if name not in known}}
    head = ["figure", *([text(name, 40) for name in names] + ["difference"] if second else [""]), ""]
    rows = []
    for group, meanings in groups.items():
        present = [name for name in meanings if name in scores.figures]
        if present:
            rows.append(f'<tbody><tr><th class="group" scope="rowgroup" colspan="{len(head)}">{group}</th></tr>')
        for name in present:
            rows.append(
                f'<tr><th scope="row">{text(name)}</th>{_values(scores.figures[name], second, name)}'
                f"<td>{text(meanings[name])}</td></tr>"
            )
        rows.append("</tbody>" if present else "")
    top = "".join(f'<th scope="col">{shown}</th>' for shown in head)
    thead = f"<thead><tr>{top}</tr></thead>" if second else ""
    return f'<div class="across"><table class="figures">{thead}{"".join(rows)}</table></div>'


def _values(value: float | None, second: Scores | None, name: str) -> str:
    if second is None:
        return f"<td{bar(value)}>{points(value)}</td>"
    other = second.figures.get(name)
    gap = None if value is None or other is None else value - other
    return f"<td{bar(value)}>{points(value)}</td><td{bar(other)}>{points(other)}</td><td>{signed(gap)}</td>"


def _beside(drawn: Callable[[Scores], str], scores: Scores, second: Scores | None, names: tuple[str, str]) -> str:
    """A chart, and that of the second model beside it."""
    if second is None:
        return drawn(scores)
    both = "".join(
        f"<div><h3>{_name(name)}</h3>{drawn(of)}</div>" for name, of in zip(names, (scores, second), strict=True)
    )
    return f'<div class="beside">{both}</div>'


def _classes(classes: Sequence[ClassScore], second: Sequence[ClassScore] | None, names: tuple[str, str]) -> str:
    """A table, the best class first, in two parts of which the second is folded."""
    others = {c.id: c for c in second or ()}
    frequent = any(c.frequency is not None for c in classes)
    ordered = sorted(classes, key=lambda c: (c.ap is None, -(c.ap or 0), c.id))
    head = ["class", *(["frequency"] if frequent else []), "annotated", "predicted", "AP", "AP50", "recall"]
    if second is not None:
        head += [f"AP, {text(names[1], 40)}", "difference"]
    top = "".join(f"<th scope=col>{shown}" for shown in head)
    rows = [_class(c, others.get(c.id), frequent, second is not None) for c in ordered]

    def table(part: str, some: Iterable[str]) -> str:
        content = f"<table class=classes><thead><tr>{top}<tbody id={part}>\n" + "\n".join(some) + "</table>"
        return scrolled(content, "Figures of each class")

    folded = rows[UNFOLDED:]
    more = (
        f"<details id=more><summary>{len(folded):,} more</summary>{table('rest', folded)}</details>" if folded else ""
    )
    return table("first", rows[:UNFOLDED]) + more


def _class(c: ClassScore, other: ClassScore | None, frequent: bool, compared: bool) -> str:
    """A row. End tags are left out, as a table may be of 1,203 classes."""
    frequency = f"<td>{FREQUENCIES.get(c.frequency, '')}" if frequent else ""
    row = (
        f"<tr><th scope=row>{text(c.name)}{frequency}<td>{c.annotated:,}<td>{c.predicted:,}"
        f"<td{bar(c.ap)}>{points(c.ap)}<td>{points(c.ap50)}<td>{points(c.recall)}"
    )
    if compared:
        ap = None if other is None else other.ap
        row += f"<td{bar(ap)}>{points(ap)}<td>{signed(None if c.ap is None or ap is None else c.ap - ap)}"
    return row


def _worst(pictures: Sequence[WorstPicture], names: tuple[str, str] | None) -> str:
    """The worst pictures, and before them those that differ most where two models are compared."""
    apart = [picture for picture in pictures if picture.other is not None]
    alone = [picture for picture in pictures if picture.other is None]
    parts = []
    if apart:
        parts.append(f'<h2 id="apart">Pictures that differ most</h2>{gallery(apart, names)}')
    if alone or not apart:
        shown = gallery(alone) if alone else "<p>None are kept.</p>"
        parts.append(f'<h2 id="worst">Worst pictures</h2>{shown}')
    return "".join(parts)


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return "<p>No picture was skipped.</p>"
    rows = "".join(f"<tr><th scope=row>{text(name)}<td>{text(reason, 400)}" for name, reason in skipped[:LISTED])
    if len(skipped) > LISTED:
        rows += f"<tr><th scope=row>and {len(skipped) - LISTED:,} more<td>"
    table = f"<table class=texts><thead><tr><th scope=col>picture<th scope=col>reason<tbody>{rows}</table>"
    return scrolled(table, "Pictures that were skipped")


def _facts(rows: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value, 400)}</dd>' for name, value in rows)}</dl>"
