"""The options of all commands that run a model: where, and in which numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DTYPES = ("float64", "float32", "bfloat16", "float16")


def run_options(dtype: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--device, --dtype (default: `dtype`), --tf32 and --threads."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. Default: torch's."),
            click.option("--tf32", is_flag=True, help="Let CUDA round float32 products to TF32. Default: IEEE."),
            click.option(
                "--dtype",
                type=click.Choice(DTYPES),
                default=dtype,
                show_default=True,
                help="Dtype to run the model in.",
            ),
            click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        ):
            command = option(command)
        return command

    return decorate
