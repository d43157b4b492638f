"""Expressions of tables: integer arithmetic on the config, and nothing else."""

from __future__ import annotations

import pytest

from converter.errors import TableError
from converter.mapping.expression import affine, evaluate

CONFIG = {"depths": (2, 2, 6, 2), "dim": 96, "fusion": True, "stage": 2}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("dim * 2**stage", 384),
        ("depths[stage]", 6),
        ("len(depths) - 1", 3),
        ("3 if fusion else 1", 3),
        ("not fusion", False),
        ("(2*7 - 1)**2", 169),
        ("dim // 4 >= 24", True),
        (5, 5),
    ],
)
def test_evaluates(expression: str | int, value: object) -> None:
    assert evaluate(expression, CONFIG) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "dim.__class__",
        "[i for i in depths]",
        "lambda: 1",
        "'a' * 9**9",
        "2**64",
        "dim**30",
        "10**10**10",
        "depths[4]",
        "depths[-1]",
        "dim // 0",
        "unknown",
        "len(dim)",
        "1 +",
        "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_refuses_everything_else(expression: str) -> None:
    with pytest.raises(TableError):
        evaluate(expression, CONFIG)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("block", ("block", 1, 0)),
        ("3*block + 1", ("block", 3, 1)),
        ("period*block + period - 1", ("block", 3, 2)),
        ("2*(block + 1) - block", ("block", 1, 2)),
        ("period", (None, 0, 3)),
    ],
)
def test_affine(expression: str, expected: tuple[str | None, int, int]) -> None:
    assert affine(expression, {"period": 3}) == expected


@pytest.mark.parametrize(
    "expression", ["i*i", "i + j", "i // 2", "i - i", "i + i*(i - 1)*(i - 2)", "2**i", "i if i else 1"]
)
def test_not_affine(expression: str) -> None:
    with pytest.raises(TableError, match="capture"):
        affine(expression, {})
