"""What the page of a CI job shows of a run: a summary in Markdown; JUnit XML and a page of one without a result."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import click

from converter.cli.output import PREPARE, message_of, on_failure
from converter.display import NAME_LIMIT, plain
from converter.errors import ConverterError, DestinationError

ROWS = 10  # of a table
_LONGEST = 2000  # characters of a message
# not a _ inside a word, as most names have them, and not a colon before a space
_SPECIAL = re.compile(
    r"""[\\`*{}\[\]<>|~&$#@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=[\w/+-])|(?<=www)\.""", re.IGNORECASE
)

_SUMMARY = f"{__name__}.summary"  # the entry of click's context with the path


def _keep(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    context.meta[_SUMMARY] = path


summary_option = click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    expose_value=False,
    callback=_keep,
    help="Also append a summary in Markdown to this file, such as $GITHUB_STEP_SUMMARY.",
)


def summarize(text: Callable[[], str]) -> None:
    """Append what `text` gives where --summary says, if it does. Raises DestinationError."""
    path = click.get_current_context().meta[_SUMMARY]
    if path is not None:
        append(path, text())


def tells_failures(
    *subjects: str, also: str | Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command, right below `reports`: what ends it early is told in --summary, --junit and --html, too.

    `subjects` are its parameters that name what it is about, `also` are one or more with other inputs. None of these
    is written to: that is a DestinationError.
    """
    others = [also] if isinstance(also, str) else also

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def prepare(given: Mapping[str, Any]) -> None:
            named = [str(given[name]) for name in subjects]
            more = [path for name in others for path in given[name]]
            _tell_failures(" ".join(named), [*map(Path, named), *more], given)

        setattr(command, PREPARE, prepare)
        return command

    return decorate


def _tell_failures(subject: str, inputs: Sequence[Path], given: Mapping[str, Any]) -> None:
    context = click.get_current_context()
    forms = [(given.get("junit"), failed_junit), (given.get("html"), failed_html)]
    outputs = [context.meta[_SUMMARY], *(path for path, _ in forms)]
    check_outputs(outputs, [path for each in inputs for path in _files(each)])
    command = context.command.name or ""
    on_failure(lambda error: summarize(lambda: _failed(command, subject, error)))
    for path, form in forms:
        if path is not None:
            on_failure(partial(_replace, path, partial(form, command, subject)))


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path]) -> None:
    """DestinationError for an output, or --summary, that would replace an input, or has no folder to be in."""
    for output in (*outputs, click.get_current_context().meta.get(_SUMMARY)):
        if output is not None and not output.parent.is_dir():
            raise DestinationError(f"{output} cannot be written: there is no folder {output.parent}")
        if output is not None and output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
            raise DestinationError(f"{output} is one of the inputs; choose another place")


def _files(path: Path) -> list[Path]:
    try:
        # beside an exported graph may be its weights
        return list(path.iterdir()) if path.is_dir() else [path, path.parent / f"{path.name}.data"]
    except OSError:  # what cannot be read is told by who reads it
        return [path]


def append(path: Path, text: str) -> None:
    """Add `text` to a file, or make it. DestinationError if that fails, which leaves what was there."""
    from converter.writing.destination import writing

    with writing(path), open(path, "ab", buffering=0, opener=_at_once) as file:
        before = os.fstat(file.fileno()).st_size
        content = memoryview(("\n" if before else "").encode() + text.encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def _at_once(path: str, flags: int) -> int:
    """Open a file; OSError for a FIFO that nobody reads, which would be waited for."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def page(title: str, verdict: str, lines: Iterable[tuple[str, str]], *more: str) -> str:
    """Markdown: a heading, `bullets`, and what else there is."""
    parts = [f"### {prose(title)}: {prose(verdict)}", bullets(lines), *more]
    return "\n\n".join(part for part in parts if part) + "\n"


def bullets(lines: Iterable[tuple[str, str]]) -> str:
    """Markdown: a line for each label and text; what comes `next` is a command."""
    return "\n".join(
        f"- **{prose(label.strip() or repr(label))}**: {code(text, _LONGEST) if label == 'next' else prose(text)}"
        for label, text in lines
    )


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]], more: str = "rows") -> str:
    """Markdown: the first rows of a table; cells are Markdown already. `more` names what is left out."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows[:ROWS]]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text + (f"\n\nand {len(rows) - ROWS} more {more}" if len(rows) > ROWS else "")


def code(text: str, limit: int = NAME_LIMIT) -> str:
    """A name as code. One with characters that end a code span, or a cell of a table, is written in HTML."""
    text = plain(text, limit)
    if text.strip() == text != "" and not set(text) & set("`|\\"):
        return f"`{text}`"
    return f"<code>{''.join(c if c.isalnum() else f'&#{ord(c)};' for c in text)}</code>"


def prose(text: str) -> str:
    """A sentence that may hold a stranger's names, so that nothing in it is Markdown, HTML, a link or a mention."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", plain(text, _LONGEST))


def _failed(command: str, subject: str, error: Exception) -> str:
    lines = [("error", message_of(error))]
    problems = [[prose(problem)] for problem in error.problems] if isinstance(error, ConverterError) else []
    return page(f"converter {command} {subject}", "no result", lines, as_table(["problem"], problems, "problems"))


def _replace(path: Path, form: Callable[[Exception], bytes], error: Exception) -> None:
    """So that what an earlier run left there is not taken for the result of this one."""
    from converter.writing.staging import write_whole

    if not isinstance(error, DestinationError):  # it may be about this file
        write_whole(path, form(error))


def _reasons(error: Exception) -> list[str]:
    problems = error.problems if isinstance(error, ConverterError) else ()
    return [plain(line, _LONGEST) for line in (message_of(error), *problems)]


def failed_html(command: str, subject: str, error: Exception) -> bytes:
    """A page that says why there is nothing to look at; like `failed_junit`, it needs no torch."""
    lines = "".join(f"<p>{escape(line)}</p>\n" for line in _reasons(error))
    title = escape(f"converter {command} {plain(subject)}")
    return f"""\
<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}: no result</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem; overflow-wrap: anywhere; }}</style>
<p>{title}</p>
<h1>no result</h1>
{lines}</html>
""".encode()


def failed_junit(command: str, subject: str, error: Exception) -> bytes:
    """JUnit XML with one case, an error: nothing was compared. It needs no torch, which may be what is missing."""
    from xml.etree import ElementTree

    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": f"{command}: no result", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": command, **counts})
    case = ElementTree.SubElement(suite, "testcase", classname=command, name=plain(subject))
    reasons = _reasons(error)
    element = ElementTree.SubElement(case, "error", type=type(error).__name__, message=reasons[0])
    element.text = "\n".join(reasons)
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"
