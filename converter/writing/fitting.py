"""Whether a checkpoint holds just the weights of a model, before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping

from converter.checkpoint import Checkpoint
from converter.display import file_name, plain
from converter.errors import ModelError
from converter.mapping.ops import Shape

FLOATS = ("float16", "bfloat16", "float32", "float64")


def check_fits(expected: Mapping[str, Shape], checkpoint: Checkpoint) -> None:
    """ModelError, with all problems, unless just these names are there, in these shapes and floating point."""
    there = checkpoint.tensors
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in there]
    problems += [f"unexpected: {plain(n)} {t.shape}" for n, t in there.items() if n not in expected]
    problems += [*checkpoint.unsupported.values()]
    for name, shape in expected.items():
        if (found := there.get(name)) is None:
            continue
        if found.shape != shape:
            problems.append(f"shape: {name} is {found.shape}, expected {shape}")
        if found.dtype.name not in FLOATS:
            problems.append(f"dtype: {name} is {found.dtype}, expected one of {', '.join(FLOATS)}")
    if problems:
        raise ModelError(f"{file_name(checkpoint.path)}: does not fit the model.", problems)
