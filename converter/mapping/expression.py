"""Arithmetic in tables and specs: `3*block + 1`, `depths[stage]`, `3 if fusion else 1`.

Expressions are data from a JSON file, so they are parsed by `ast` and walked here over a closed set of nodes;
nothing is ever evaluated by Python itself.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

from converter.display import quoted
from converter.errors import TableError

Value: TypeAlias = int | bool | str | tuple[int, ...]

# a shape is a product of a few small numbers; anything larger is a mistake or an attack
_LARGEST = 1 << 62
_LONGEST = 400

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.Gt: lambda a, b: a > b,
    ast.LtE: lambda a, b: a <= b,
    ast.GtE: lambda a, b: a >= b,
}


def evaluate(expression: str | int, names: Mapping[str, Value]) -> Value:
    """Value of `expression` with `names` bound: integers, `+ - * // **`, indexing, comparison, `not`, `x if c else y`.

    Raises `TableError` naming the expression: for any other syntax, an unknown name, or a number beyond 2**62.
    """
    if isinstance(expression, int):
        return expression
    try:
        return _walk(_parse(expression), names)
    except _UNREADABLE as error:
        raise TableError(f"expression {quoted(expression)} cannot be parsed: {error}") from None
    except _REFUSED as error:
        raise TableError(f"expression {expression!r}: {error}") from None


def integer(expression: str | int, names: Mapping[str, Value]) -> int:
    """`evaluate`, where only a whole number will do (a shape, a count)."""
    value = evaluate(expression, names)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TableError(f"expression {expression!r} gives {value!r}, a whole number was expected")
    return value


def affine(expression: str, constants: Mapping[str, Value]) -> tuple[str | None, int, int]:
    """`(name, a, b)` for an expression that is `a*name + b` in one free name; `(None, 0, b)` where there is none."""
    try:
        tree = _parse(expression)
        name, scale, offset = _linear(tree, constants)
    except _UNREADABLE as error:
        raise TableError(f"capture {{{expression}}} cannot be parsed: {error}") from None
    except _REFUSED as error:
        raise TableError(f"capture {{{expression}}}: {error}; write a*name + b") from None
    if name is not None and scale == 0:
        raise TableError(f"capture {{{expression}}} does not depend on {name!r}")
    return name, scale, offset


def _linear(node: ast.expr, constants: Mapping[str, Value]) -> tuple[str | None, int, int]:
    """`node` as `a*name + b`, so that an affine capture is proved affine rather than probed."""
    match node:
        case ast.Name(id=name) if name not in constants:
            return name, 1, 0
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as operator, right=right):
            (first, a, b), (second, c, d) = _linear(left, constants), _linear(right, constants)
            if first and second and first != second:
                raise _Rejected(f"two unknowns, {first!r} and {second!r}")
            if isinstance(operator, ast.Mult):
                if first and second:
                    raise _Rejected(f"{first!r} is multiplied by itself")
                return first or second, a * d + c * b, b * d
            sign = -1 if isinstance(operator, ast.Sub) else 1
            return first or second, a + sign * c, b + sign * d
    return None, 0, _number(node, constants)


class _Rejected(Exception):
    pass


_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_REFUSED = (_Rejected, ZeroDivisionError, IndexError, TypeError)


@lru_cache(maxsize=4096)  # the same few are evaluated for every layer
def _parse(expression: str) -> ast.expr:
    if len(expression) > _LONGEST:
        raise ValueError(f"it has {len(expression)} characters, {_LONGEST} are the most")
    return ast.parse(expression.strip(), mode="eval").body


def _walk(node: ast.expr, names: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=int() as value):
            return _bounded(value)
        case ast.Name(id=name):
            if name not in names:
                raise _Rejected(f"unknown name {name!r}; known: {', '.join(sorted(names)) or 'none'}")
            return names[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = _number(left, names), _number(right, names)
            if not (0 <= exponent <= 62 and abs(base) <= 1 << 31):
                raise _Rejected(f"{base}**{exponent} is out of range")
            return _bounded(base**exponent)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            return _bounded(_BINARY[type(operator)](_number(left, names), _number(right, names)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _walk(operand, names)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, names)
        case ast.Compare(left=left, ops=[comparison], comparators=[right]) if type(comparison) in _COMPARE:
            return _COMPARE[type(comparison)](_number(left, names), _number(right, names))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _walk(body if _walk(test, names) else orelse, names)
        case ast.Subscript(value=value, slice=index):
            items = _walk(value, names)
            if not isinstance(items, tuple):
                raise _Rejected("only a list of the config can be indexed")
            position = _number(index, names)
            if not 0 <= position < len(items):
                raise _Rejected(f"index {position} is outside a list of {len(items)}")
            return items[position]
        case ast.Call(func=ast.Name(id="len"), args=[argument], keywords=[]):
            items = _walk(argument, names)
            if not isinstance(items, tuple):
                raise _Rejected("len() takes a list of the config")
            return len(items)
    raise _Rejected(f"{type(node).__name__} is not part of the language")


def _number(node: ast.expr, names: Mapping[str, Value]) -> int:
    value = _walk(node, names)
    if not isinstance(value, int):
        raise _Rejected(f"a number was expected, not {value!r}")
    return int(value)


def _bounded(value: int) -> int:
    if abs(value) > _LARGEST:
        raise _Rejected("the number is beyond 2**62")
    return value
