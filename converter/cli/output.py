"""What every command shares: how errors, JSON, sizes and progress reach the user."""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, ParamSpec

import click

from converter.errors import CaptureError, ConverterError, HubError

P = ParamSpec("P")
_SHOWN_PROBLEMS = 40
# module -> the package to install for it, and what a command needs it for
_OPTIONAL = {
    "torch": ("torch", "runs the model"),
    "safetensors": ("safetensors", "runs the model"),
    "scipy": ("scipy", "matches names"),
    "PIL": ("pillow", "reads pictures"),
    "tokenizers": ("tokenizers", "makes tokens"),
    "huggingface_hub": ("huggingface_hub", "uses the Hub or writes a model card"),
}


def reports(command: Callable[P, None]) -> Callable[P, None]:
    """Add `--json`; turn an error into one message and its exit code. With `--json` the message is JSON on stdout."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        terminated = False

        def terminate(number: int, frame: FrameType | None) -> NoReturn:
            """SIGTERM unwinds like Ctrl-C does, so that nothing half-written stays."""
            nonlocal terminated
            terminated = True
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            command(*args, **kwargs)
        except ConverterError as error:
            _fail(error, as_json=bool(kwargs.get("as_json")))
        except ModuleNotFoundError as error:
            module = (error.name or "").split(".")[0]
            if module not in _OPTIONAL:
                raise
            package, why = _OPTIONAL[module]
            kind = HubError if module == "huggingface_hub" else CaptureError
            missing = kind(f"this command {why} and needs {package}: pip install {package}")
            _fail(missing, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt as interruption:
            known = str(interruption) or "nothing is half-written"
            click.echo(f"{'terminated' if terminated else 'interrupted'}; {known}", err=True)
            sys.exit(143 if terminated else 130)
        except Exception:
            if not terminated:  # else the signal came where Python turns it into an error of its own
                raise
        finally:
            signal.signal(signal.SIGTERM, before)
        if terminated:
            sys.exit(143)

    return wrapped


def _fail(error: ConverterError, *, as_json: bool) -> NoReturn:
    problems = list(error.problems)
    headline = str(error).split("\n", 1)[0] if problems else str(error)
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": headline, "problems": problems}})
    else:
        click.echo(f"error: {headline}", err=True)
        for problem in problems[:_SHOWN_PROBLEMS]:
            click.echo(f"  - {problem}", err=True)
        if len(problems) > _SHOWN_PROBLEMS:
            click.echo(f"  ... and {len(problems) - _SHOWN_PROBLEMS} more; --json lists all", err=True)
    sys.exit(error.exit_code)


def _hashes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Option callback: each a whole SHA-256."""
    for value in values:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise click.BadParameter(
                f"{value!r} is not the SHA-256 of a table: 64 characters of 0-9 and a-f, all of them, as the refusal "
                "prints it"
            )
    return values


accept_table = click.option(
    "--accept-table",
    "accepted_tables",
    metavar="HASH",
    multiple=True,
    callback=_hashes,
    help="SHA-256 of a table that was never released and may have made the weights; may be given several times.",
)


def print_json(content: Any) -> None:
    """Machine-readable output on stdout; keys stay in their order."""
    click.echo(json.dumps(content, indent=2, allow_nan=False))


_FACTORS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Option callback: bytes written as `500MB`, `2GB`, `1GiB` or `1048576`."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,12})\s*([a-z]*)", value.strip().lower())
    if match is None or match[2] not in _FACTORS or not int(match[1]):
        raise click.BadParameter(f"{value!r} is not a size; write 500MB, 2GB or 1GiB")
    return int(match[1]) * _FACTORS[match[2]]


@contextmanager
def progress(total: int, description: str, unit: str = "B") -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts bytes, or whatever `unit` says; silent where stderr is not a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=description, unit=unit, unit_scale=unit == "B", disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        yield lambda count: bar.update(count) and None
