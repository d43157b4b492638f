"""The command line: one thin module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import click

from converter import __version__
from converter.cli.capture import capture
from converter.cli.certify import certify, verify
from converter.cli.compare import compare
from converter.cli.convert import convert
from converter.cli.detect import detect
from converter.cli.diff import diff
from converter.cli.draft import draft
from converter.cli.explain import explain
from converter.cli.inspect import inspect
from converter.cli.package import package
from converter.cli.parity import parity
from converter.cli.program import run_program
from converter.cli.publish import publish
from converter.cli.schema import schema
from converter.cli.settle import settle
from converter.cli.tables import lint, tables

__all__ = ["convert_main", "converter_main", "main"]

_EPILOG = """\b
Examples:
  converter convert --src glip_tiny_model_o365_goldg_cc_sbu.pth --dst glip-t.safetensors
  converter inspect glip_tiny_model_o365_goldg_cc_sbu.pth
  converter explain module.rpn.head.bias0 --src glip_tiny_model_o365_goldg_cc_sbu.pth
  converter parity glip-t.safetensors --reference capture.safetensors --html report.html
\b
Exit codes:
  0 done                               1 compared, and it differs
  2 wrong command line                 3 the input cannot be used
  4 a table is wrong, or in doubt      5 the table does not fit the checkpoint
  6 the destination cannot be written  7 weights do not fit the model
  8 could not be compared              9 not published, or not downloaded
  70 a fault in this program           129 hung up
  130 interrupted                      141 the reader of the output stopped early
  143 terminated"""


_SECTIONS = {
    "Convert": (inspect, convert, explain, diff),
    "Run": (detect,),
    "Prove": (parity, capture, certify, verify, compare),
    "Publish": (package, publish),
    "Describe a format": (tables, draft, settle, lint),
    "For programs": (schema,),
}


class _Program(click.Group):
    """Its help lists commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{command.name:<{width}}", command.short_help or "") for command in commands])


@click.group(
    cls=_Program,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[command for commands in _SECTIONS.values() for command in commands],
    invoke_without_command=True,
)
@click.version_option(__version__, "-V", "--version", prog_name="converter")
@click.pass_context
def main(context: click.Context) -> None:
    """Move GLIP weights between implementations and prove that nothing was lost.

    Checkpoints are never executed: no pickle is loaded, nothing in one is imported or called.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def converter_main() -> None:
    """The `converter` program."""
    run_program(main, "converter")


def convert_main() -> None:
    """The `convert` program: `converter convert` under its own name."""
    run_program(convert, "convert")
