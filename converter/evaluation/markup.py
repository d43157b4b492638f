"""Names and figures as the HTML of a report."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape

from converter.display import plain

NAME = 120  # characters of a name that are shown
NOT_MEASURED = "&ndash;"
SHADES = 20  # of the bars behind figures, as the style sheet has them


def text(value: str, limit: int = NAME) -> str:
    """Anybody's text, which ends no element and changes the direction of no other text."""
    return escape(plain(value, limit))


def points(value: float | None) -> str:
    """An AP or AR of 0 to 1 as it is published: 46.6."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of AP in points, with a digit more than is published: +0.04."""
    if value is None:
        return NOT_MEASURED
    shown = f"{100 * value:+.2f}"
    return "0.00" if shown in ("+0.00", "-0.00") else shown.replace("-", "&minus;")


def bar(value: float | None) -> str:
    """The attribute of a cell whose bar is as long as `value` of 0 to 1; nothing where there is none."""
    return f' class="b{round(SHADES * min(max(value, 0.0), 1.0))}"' if value is not None else ""


def sample(drawn: str, box: str = "0 0 10 10") -> str:
    """What stands before an entry of a legend."""
    return f'<svg class="key" viewBox="{box}" aria-hidden="true">{drawn}</svg>'


def swatch(style: str) -> str:
    return sample(f'<path class="{style}" d="M0 0h10v10H0z"/>')


def scrolled(table: str, label: str) -> str:
    """A table that scrolls by itself where it is larger than the screen, with the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def policy_of(template: str) -> str:
    """What a page may load: the one script and style sheet that are in it, and pictures that are in it."""
    found = {kind: re.search(rf"<{kind}>(.*?)</{kind}>", template, re.DOTALL) for kind in ("style", "script")}
    hashes = {
        kind: base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        for kind, content in found.items()
        if content is not None
    }
    return "; ".join(
        ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
        + [f"{kind}-src 'sha256-{digest}'" for kind, digest in hashes.items()]
    )
