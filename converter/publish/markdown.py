"""What a card is written with: names and sentences out of files, which stay what they are, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence


def section(title: str, text: str | None) -> str:
    """A part of a card under its heading; nothing where there is no text."""
    return f"## {title}\n\n{text}" if text else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines. A cell holds no `|`."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def code(name: str) -> str:
    """A name out of a file in a code span: nothing in it can end the span, the line or the cell."""
    return "`" + (re.sub(r"[`|\s]|[^\x20-\x7e]", "_", name)[:200] or "_") + "`"


def text(sentence: str) -> str:
    """A sentence out of a file, with nothing in it that Markdown or HTML would act on: no address either."""
    return re.sub(r"[^\w .,:;()+=/%'-]|_|\.(?=[^\W\d])|:(?=/)", "?", sentence)[:300]
