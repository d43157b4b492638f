"""The small GLIP in every format as real files, and the command line on them."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from converter.cli import main
from converter.planning.formats import make_route
from tests.support.small_formats import FORMATS, Weights, execute, hub_weights


def weights_in(name: str) -> Weights:
    weights = hub_weights()
    return execute(make_route(FORMATS["glip"], FORMATS[name], weights), weights)


def tensors_in(name: str, **extra: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    found = OrderedDict((n, torch.from_numpy(a.copy())) for n, a in weights_in(name).arrays.items())
    found.update(extra)
    return found


def official(**extra: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    unused = {f"module.rpn.head.cls_logits.{n}": torch.randn(5) for n in ("weight", "bias")}
    return tensors_in("glip-official", **unused, **extra)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def refusal(*arguments: object, code: int) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    error: dict[str, Any] = json.loads(result.stdout)["error"]
    return error


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def official_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))
