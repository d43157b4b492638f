"""The command line: one thin module per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

import click

from converter import __version__
from converter.cli.program import run_program

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


# each command: the module that has it, and what it is for
_SECTIONS = {
    "Convert": {
        "inspect": ("inspect", "Show what a checkpoint holds"),
        "convert": ("convert", "Write a checkpoint in another format"),
        "explain": ("explain", "Say what becomes of one tensor"),
        "export": ("export", "Write a model as an ONNX file"),
        "diff": ("diff", "Compare the weights of two checkpoints"),
    },
    "Run": {
        "detect": ("detect", "Find things in pictures"),
        "evaluate": ("evaluate", "Measure AP on a data set"),
    },
    "Prove": {
        "parity": ("parity", "Compare activations with a capture"),
        "capture": ("capture", "Record activations to compare with"),
        "certify": ("certify", "Compare, and write a certificate"),
        "verify": ("verify", "Check weights against their certificate"),
        "compare": ("compare", "Compare recorded outputs of two models"),
    },
    "Publish": {
        "package": ("package", "Build the folder to publish"),
        "sign": ("sign", "Sign that folder"),
        "publish": ("publish", "Put that folder on the Hub"),
    },
    "Describe a format": {
        "tables": ("tables", "List formats and variants"),
        "draft": ("draft", "Propose a table for an unknown model"),
        "settle": ("settle", "List or settle the doubts of a table"),
        "lint": ("tables", "Check tables"),
    },
    "For programs": {"schema": ("schema", "Print the schema of a command's JSON")},
}


class _Commands(Mapping[str, click.Command]):
    """All commands by name. The module of one is imported when it is asked for, so that help waits for none."""

    def __init__(self) -> None:
        self._listed = {name: listed for section in _SECTIONS.values() for name, listed in section.items()}

    def __getitem__(self, name: str) -> click.Command:
        module, short_help = self._listed[name]
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        command.short_help = short_help
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


class _Program(click.Group):
    """Its help lists commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", short_help) for name, (_, short_help) in commands.items()])


@click.group(
    cls=_Program,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=_Commands(),
    invoke_without_command=True,
)
@click.version_option(__version__, "-V", "--version", prog_name="converter")
@click.pass_context
def main(context: click.Context) -> None:
    """Move a model's weights between implementations and prove that nothing was lost: GLIP, Grounding DINO.

    Checkpoints are never executed: no pickle is loaded, nothing in one is imported or called.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def converter_main() -> None:
    """The `converter` program."""
    run_program(main, "converter")


def convert_main() -> None:
    """The `convert` program: `converter convert` under its own name."""
    run_program(main.commands["convert"], "convert")
