"""The options of all commands that run a model: where, in which numbers, and beside which captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from converter.cli.output import PATH

references = click.option(
    "--reference",
    "references",
    required=True,
    multiple=True,
    type=PATH,
    help="Capture to compare with. Repeatable: of several, each is compared with.",
)
root = click.option("--root", help="State dict to take where the file holds several (model, model_ema, ...).")
MODEL = """\b
MODEL is what `convert` wrote, or a checkpoint of any format that it recognises:
that is converted on the way, in memory, by the same plan and the same checks."""
JOINED = """\
Tensors of several dtypes that become one are then joined as float32."""
DTYPES = ("float64", "float32", "bfloat16", "float16")


def run_options(
    dtype: str, threads: str = "CPU threads. Default: torch's."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--device, --dtype (default: `dtype`), --tf32 and --threads (help: `threads`)."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--threads", type=click.IntRange(1, 1024), help=threads),
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
