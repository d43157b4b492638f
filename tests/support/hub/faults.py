"""Answers that are none: what goes wrong on the way, and what the Hub refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer.

    `kind`: `status`, `drop-before` (connection closed, nothing done), `drop-after` (done, and then closed),
    `late` (closed at once, done after `seconds`), `flip` (one byte of the download), `truncate` (its second half),
    `slow`.
    """

    kind: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    body: str = ""


def status(code: int, **headers: str) -> Fault:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault("status", code, named)


class Refusal(Exception):
    """An error answer."""

    def __init__(self, code: int, message: str, error_code: str = "", **body: Any) -> None:
        self.code, self.message, self.error_code = code, message, error_code
        self.body = {"error": message, **body}
