"""Two checkpoints on the disk, and what `converter diff` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.cli.diff import diff as command
from converter.mapping.load import load_table
from converter.planning.fit import make_plan
from converter.writing.convert import convert

Weights = dict[str, torch.Tensor]


def saved(weights: Weights, path: Path, **options: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, path, **options)
    else:
        torch.save({"model": weights}, path, **options)
    return path


def converted(source: Path, table: Path, path: Path, *, dtype: str | None = None, **options: Any) -> Path:
    with open_checkpoint(source) as checkpoint:
        convert(checkpoint, make_plan(load_table(table), checkpoint, dtype=dtype), path, **options)
    return path


def changed(path: Path, change: Callable[[Weights], object]) -> Path:
    """A safetensors file with `change` made to its weights, without the metadata."""
    weights = load_file(path)
    change(weights)
    return saved(weights, path.with_name("changed.safetensors"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def compare(a: Path, b: Path, *options: object) -> dict[str, Any]:
    """What `--json` says; the exit code must be that of its verdict."""
    result = run(a, b, *options, "--json")
    content: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if content["equal"] else 1), result.output
    assert content["compared"] == content["identical"] + len(content["different"])
    return content


def the_difference(content: dict[str, Any]) -> dict[str, Any]:
    """The one tensor that differs, where nothing else is wrong."""
    assert content["only_in_a"] == content["only_in_b"] == content["unreadable"] == []
    (pair,) = content["different"]
    return dict(pair)
