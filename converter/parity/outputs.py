"""Outputs of two models, recorded as files of named arrays, compared by name; it needs no torch.

Such a file is what `recorder.py` writes, a capture, or any safetensors file or dict of torch.save. Arrays called
`input.NAME` are what the model was called with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converter.checkpoint import Checkpoint
from converter.checkpoint.strict_json import parse_json
from converter.display import beside, counted, file_name, listed, quoted
from converter.errors import CaptureError
from converter.mapping.cast import FLOAT_DTYPES, as_float
from converter.mapping.ops import Array, Shape
from converter.parity.gates import Gate, find_gate, gates

INPUT = "input."
_MOST_PAIRS = 10_000  # of inputs with different names, each of A compared with each of B
_GUESS = {"bfloat16": "5e-2", "float16": "5e-3"}  # for somebody who has to say what may differ
_MASK = 1e4  # a number so many times as large as the largest of the others and as 1 is no activation


@dataclass(frozen=True, slots=True)
class Output:
    """One output of A beside that of B. Errors are differences to A's values, in float64.

    Args:
        relative: Frobenius norm of the difference over that of A's values; None where there is none to compute. What a
            mask is filled with, far above all else, counts by itself, and the worse of both is taken.
        max_abs, worst, values: largest difference, where it is, and what A and B have there.
        differing: numbers that differ, of integers and booleans, which must be equal.
        unsound: numbers that are NaN on a side, or infinite on one side only or of another sign.
        limit: what `relative` may be; None where nothing says.
        problem: why the numbers were not compared.
        constant: A's numbers are all the same, so that they prove nothing.
    """

    a: str
    b: str
    shape: Shape
    dtype: str
    relative: float | None = None
    max_abs: float | None = None
    worst: tuple[int, ...] | None = None
    values: tuple[float, float] | None = None
    differing: int = 0
    unsound: int = 0
    limit: float | None = None
    problem: str | None = None
    constant: bool = False

    @property
    def passed(self) -> bool | None:
        """Within its limit; None where nothing says what that is."""
        if self.problem or self.unsound or self.differing:
            return False
        if self.relative is not None and self.limit is not None and not self.relative <= self.limit:
            return False
        return None if self.limit is None and self.relative is not None else True

    @property
    def why(self) -> str:
        """Why it has its verdict."""
        if self.problem:
            return self.problem
        if self.unsound:
            return f"{counted(self.unsound, 'number')} NaN, or infinite on one side only"
        if self.relative is None:
            differ = f"{self.differing} of {math.prod(self.shape)} numbers differ" if self.differing else "all equal"
        elif self.limit is None:
            limit = _GUESS.get(self.dtype, "1e-5")
            differ = f"relative error {self.relative:.1e}; not judged in {self.dtype}: give a limit, --gate {limit}"
        else:
            differ = beside("relative error {}, at most {}", self.relative, self.limit)
        return f"{differ}; all numbers of A are the same, which proves nothing" if self.constant else differ


@dataclass(frozen=True, slots=True)
class Unshown:
    """`count` of `of` tensors of the weights, of which outputs do not show all, and the first of their names."""

    count: int
    of: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """The outputs that were compared, in A's order, and the names of those that were not.

    Args:
        alike: weights with the numbers of another one: exchanged, they give the same outputs.
        unreached: weights that have no part in the outputs.
    """

    outputs: tuple[Output, ...]
    inputs: int
    gate: Gate
    left: tuple[str, ...]
    alike: Unshown | None
    unreached: Unshown | None

    @property
    def passed(self) -> bool | None:
        """All within their limits; False if one is not, None if one could not be judged, or if none proves anything."""
        verdicts = {output.passed for output in self.outputs}
        if False in verdicts:
            return False
        return None if None in verdicts or all(output.constant for output in self.outputs) else True


def compare_outputs(a: Checkpoint, b: Checkpoint, pairs: Sequence[tuple[str, str]], gate: str | None) -> Compared:
    """Compare the outputs of equal name, or those of `pairs` (A's name, B's) alone.

    `gate`: another tolerance, as for `find_gate`. CaptureError if names are without a counterpart, or if the models got
    other inputs.
    """
    for side in (a, b):
        _check(side)
    chosen, left = _pairs(a, b, pairs)
    inputs = _same_inputs(a, b)
    errors = _own_errors(a)
    lowest = _lowest(
        [side.tensors[name].dtype.name for pair in chosen for side, name in zip((a, b), pair, strict=True)]
    )
    compared = [_compared(a, b, pair, gate, errors) for pair in chosen]
    alike, unreached = _unshown(a, "alike") or _unshown(b, "alike"), _unshown(b, "unreached")
    return Compared(tuple(compared), inputs, find_gate("cpu", lowest, gate), left, alike, unreached)


def _check(side: Checkpoint) -> None:
    name = file_name(side.path)
    if side.unsupported:
        first, reason = next(iter(side.unsupported.items()))
        raise CaptureError(f"{name}: {quoted(first)} cannot be read ({reason}). Record it as a plain tensor.")
    if "compact" in _facts(side):
        raise CaptureError(
            f"{name}: is a compact capture, which holds a few numbers of each activation. Capture without --compact, "
            "or compare a model with it by `converter parity`."
        )
    if not any(not name.startswith(INPUT) for name in side.tensors):
        raise CaptureError(f"{name}: holds no output. `converter compare --template` shows how to record them.")


def _unshown(side: Checkpoint, what: str) -> Unshown | None:
    """What the recorder wrote of the weights; None if there are none such, or if it is not known."""
    said = _facts(side, what)
    count, of, first = (said.get(key) for key in ("count", "of", "first"))
    if type(count) is not int or type(of) is not int or not isinstance(first, list) or not 0 < count <= of:
        return None
    names = tuple(name for name in first[:3] if isinstance(name, str))
    return Unshown(count, of, names) if names else None


def _facts(side: Checkpoint, what: str = "capture") -> Mapping[str, object]:
    """What a capture says of itself, or another JSON object of the metadata; nothing of any other file."""
    try:
        facts = parse_json(side.metadata.get(what, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _own_errors(side: Checkpoint) -> dict[str, dict[str, float]]:
    """By dtype, the errors of the captured model's own run, if A is a capture that says so."""
    errors = _facts(side).get("errors")
    found: dict[str, dict[str, float]] = {}
    for dtype, each in errors.items() if isinstance(errors, dict) else ():
        if isinstance(each, dict):
            found[dtype] = {name: error for name, error in each.items() if isinstance(error, float) and error > 0}
    return found


def _pairs(
    a: Checkpoint, b: Checkpoint, pairs: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """What is compared with what, and what is not."""
    names = [[name for name in side.tensors if not name.startswith(INPUT)] for side in (a, b)]
    for pair in pairs:
        for side, name, there in zip((a, b), pair, names, strict=True):
            if name not in side.tensors:
                raise CaptureError(f"{file_name(side.path)}: has no output {quoted(name)}; it has {_some(there)}")
    if pairs:
        left = [f"{n} of {x}" for x, there, at in (("A", names[0], 0), ("B", names[1], 1)) for n in there
                if n not in {pair[at] for pair in pairs}]  # fmt: skip
        return list(pairs), tuple(left)
    only = [sorted(set(one) - set(other)) for one, other in (names, names[::-1])]
    if any(only):
        said = [f"only in {x}: {_some(found)}" for x, found in zip("AB", only, strict=True) if found]
        raise CaptureError(
            "outputs are compared by name, and not all are in both; --pair A_NAME=B_NAME pairs them", said
        )
    return [(name, name) for name in names[0]], ()


def _some(names: Sequence[str]) -> str:
    return listed(map(quoted, names), 8)


def _same_inputs(a: Checkpoint, b: Checkpoint) -> int:
    """How many inputs both files have. CaptureError if the models got other ones."""
    first, second = ([name for name in side.tensors if name.startswith(INPUT)] for side in (a, b))
    if not first or not second:
        return 0
    if len(set(first) - set(second)) * len(second) > _MOST_PAIRS:
        raise CaptureError(f"{len(first)} inputs of A have other names in B. Record both with the same names.")
    for name in first:
        candidates = [name] if name in b.tensors else second  # an argument may have another name there
        if not any(_equal(a, name, b, other) for other in candidates):
            raise CaptureError(
                f"{quoted(name)} of A is not what B got, so that outputs say nothing of weights. Record both with the "
                "same inputs: the same numbers, from the same seed."
            )
    return len(first)


def _equal(a: Checkpoint, name: str, b: Checkpoint, other: str) -> bool:
    return a.tensors[name].shape == b.tensors[other].shape and np.array_equal(_read(a, name), _read(b, other))


def _read(side: Checkpoint, name: str) -> Array:
    return as_float(side.read(name), side.tensors[name].dtype)


def _lowest(dtypes: Sequence[str]) -> str:
    """The least exact of some floating-point types."""
    return max((d for d in dtypes if d in FLOAT_DTYPES), key=FLOAT_DTYPES.index, default="float64")


def _compared(
    a: Checkpoint, b: Checkpoint, pair: tuple[str, str], gate: str | None, errors: Mapping[str, Mapping[str, float]]
) -> Output:
    one, other = a.tensors[pair[0]], b.tensors[pair[1]]
    dtypes = (one.dtype.name, other.dtype.name)
    floats = [name in FLOAT_DTYPES for name in dtypes]
    output = partial(Output, *pair, one.shape)
    if one.shape != other.shape:
        return output(", ".join(dict.fromkeys(dtypes)), problem=f"is {one.shape} in A and {other.shape} in B")
    if any("complex" in name for name in dtypes) or len(set(floats)) > 1:
        return output(", ".join(dtypes), problem=f"is {dtypes[0]} in A and {dtypes[1]} in B, which are not compared")
    first, second = _read(a, pair[0]), _read(b, pair[1])
    if not all(floats):
        differing = first != second
        return output(dtypes[0], differing=int(differing.sum()), worst=_place(differing), constant=_is_constant(first))
    dtype = _lowest(dtypes)
    return _measured(
        output, dtype, first, second, _limit(find_gate("cpu", dtype, gate), errors.get(dtype, {}), pair[0])
    )


def _measured(output: partial[Output], dtype: str, first: Array, second: Array, limit: float | None) -> Output:
    first, second = first.astype(np.float64), second.astype(np.float64)
    same = (first == second) & np.isinf(first)  # a mask's minus infinity, in both
    unsound = int(((~np.isfinite(first) | ~np.isfinite(second)) & ~same).sum())
    if unsound or not first.size:
        return output(dtype, unsound=unsound, limit=limit, problem=None if first.size else "is empty")
    finite = np.where(same, 0.0, first)
    with np.errstate(over="ignore"):  # an infinite difference is beyond every limit
        difference = np.abs(np.where(same, 0.0, second) - finite)
    place = _place(difference)
    return output(
        dtype,
        relative=max(_relative(difference[group], finite[group]) for group in _groups(np.abs(finite))),
        max_abs=float(difference[place]),
        worst=place,
        values=(float(finite[place]), float(np.where(same, 0.0, second)[place])),
        limit=limit,
        constant=_is_constant(first),
    )


def _groups(sizes: Array) -> list[Array]:
    """Which numbers have an error of their own: those of a mask (-1e9, the lowest float) beside which others vanish."""
    top = float(sizes.max())
    masked = sizes > top / 2
    rest = float(sizes[~masked].max(initial=0.0))
    apart = top > _MASK * max(rest, 1.0) and not masked.all()
    return [masked, ~masked] if apart else [np.ones(sizes.shape, bool)]


def _relative(difference: Array, values: Array) -> float:
    """Of one group; scaled, as squares of large numbers are infinite."""
    scale = float(np.abs(values).max()) or 1.0
    return float(np.linalg.norm(difference / scale) / (np.linalg.norm(values / scale) or 1.0))


def _is_constant(values: Array) -> bool:
    """Whether there is nothing in it that a wrong weight could change: one value everywhere, or zero."""
    return not values.size or bool(values.min() == values.max() and (values.size > 1 or not values.any()))


def _place(values: Array) -> tuple[int, ...]:
    """Index of the largest value."""
    return tuple(map(int, np.unravel_index(int(np.argmax(values)), values.shape))) if values.size else ()


def _limit(gate: Gate, errors: Mapping[str, float], name: str) -> float | None:
    if gate.relative is not None:
        return gate.relative
    limit = (gate.times or math.inf) * errors.get(name, math.inf)
    return limit if limit < gates()["most"]["relative"] else None


def worst_first(outputs: Sequence[Output]) -> Iterator[Output]:
    """Failed ones before those that were not judged, before the rest; among these the largest errors first."""
    rank = {False: 0, None: 1, True: 2}
    yield from sorted(outputs, key=lambda output: (rank[output.passed], -(output.relative or 0.0)))
