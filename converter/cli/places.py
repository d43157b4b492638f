"""Where a command reads and writes, and in which format: `--src` and `--dst` everywhere, and the same by position."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from converter.cli.output import PATH

Command = Callable[..., None]


class _Source(click.types.StringParamType):
    """A path, or what names something on the Hub: text, of which a shell completes paths."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class _Format(click.types.StringParamType):
    """A format: a name, which a shell completes, or the path of a table."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from converter.mapping.documents import list_documents

        names = [document.name for kind in ("spec", "table") for document in list_documents(kind)]
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


SOURCE, FORMAT = _Source(), _Format()


@dataclass(frozen=True, slots=True)
class Place:
    """One of the places of a command.

    name     of the command's parameter
    metavar  how help calls it
    options  that give it beside its position
    is_many  takes all words that are left, at least one
    """

    name: str
    metavar: str
    options: tuple[str, ...] = ()
    help: str = ""
    type: click.ParamType[Any] = SOURCE
    is_many: bool = False


def source(help: str, metavar: str = "SRC", name: str = "source", type: click.ParamType[Any] = SOURCE) -> Place:
    """What a command reads."""
    return Place(name, metavar, ("--src",), help, type)


def destination(help: str, metavar: str = "DST", name: str = "destination", type: click.ParamType[Any] = PATH) -> Place:
    """What a command writes."""
    return Place(name, metavar, ("--dst", "-o", "--out"), help, type)


def places(*wanted: Place) -> Callable[[Command], Command]:
    """Let a command take `wanted` by position in this order, or by their options in any.

    A word by position goes to the first place that has no option given: `detect --src MODEL IMAGE` has both.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def placed(*args: Any, words: tuple[str, ...], **kwargs: Any) -> None:
            command(*args, **(kwargs | _placed(wanted, words, kwargs)))

        takes_words: Command = click.argument(
            "words", nargs=-1, type=SOURCE, metavar=" ".join(place.metavar for place in wanted)
        )(placed)
        for place in reversed(wanted):
            if place.options:
                takes_words = click.option(*place.options, place.name, type=place.type, help=place.help)(takes_words)
        return takes_words

    return decorate


def _placed(wanted: Iterable[Place], words: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each place. click.UsageError if one has none, or a word has no place."""
    context, left, found = click.get_current_context(), list(words), {}
    for place in wanted:
        if (value := given.get(place.name)) is not None:
            found[place.name] = value
            continue
        if not left:
            either = f" (or {place.options[0]})" if place.options else ""
            raise click.UsageError(f"Missing argument {place.metavar!r}{either}.", context)
        taken = [place.type.convert(word, None, context) for word in (left if place.is_many else left[:1])]
        del left[: len(taken)]
        found[place.name] = tuple(taken) if place.is_many else taken[0]
    if left:
        raise click.UsageError(f"Got unexpected extra argument ({left[0]}).", context)
    return found
