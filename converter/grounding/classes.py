"""The classes of a data set as captions, whose labels are the ids of classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from converter.display import quoted
from converter.errors import ModelError
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.prompt import Caption, groups, make_caption
from converter.grounding.tokenizer import Tokenizer
from converter.parity.family import Class


class Rules(Protocol):
    """How classes are asked for.

    order          by 'id', by 'name', or by id from the last to the first ('reversed')
    names_cleaned  whether brackets and underscores are taken out of names
    per_caption    the most classes of a caption; None for as many as fit
    """

    @property
    def order(self) -> str: ...
    @property
    def names_cleaned(self) -> bool: ...
    @property
    def per_caption(self) -> int | None: ...


def class_captions(
    classes: Sequence[Class], rules: Rules, tokenizer: Tokenizer, settings: Preprocessing
) -> list[Caption]:
    """Captions by these rules; `settings` has the separator. ModelError for a class without words.

    A caption that would be too long for the model is divided, where the reference would cut its end off.
    """
    ordered = _ordered(classes, rules.order)
    worded = [_parts(each, rules, settings) for each in ordered]
    made, begin = [], 0
    with _about_classes():
        divided = groups(["".join(parts) for parts in worded], rules.per_caption, tokenizer, settings)
    for group in divided:
        labels, text = {}, ""
        for at, piece in enumerate(group, start=begin):
            prefix, name, _ = worded[at]
            text += settings.phrase_separator if text else ""
            start = len(text) + len(prefix)
            labels[ordered[at].id] = (start, start + len(name))
            text += piece
        with _about_classes():
            made.append(make_caption(text + settings.caption_end, labels, tokenizer, settings))
        begin += len(group)
    return made


def _parts(each: Class, rules: Rules, settings: Preprocessing) -> tuple[str, str, str]:
    """What stands before its name, the name, and what stands after it."""
    parts = each.prefix, _name(each, rules), each.suffix
    return (parts[0].lower(), parts[1].lower(), parts[2].lower()) if settings.lowercase else parts


@contextmanager
def _about_classes() -> Iterator[None]:
    """What is said of a prompt is said of classes, whose names nobody typed."""
    try:
        yield
    except ModelError as error:
        said = str(error).removeprefix("prompt: ").partition(" Are these several names?")[0]
        raise ModelError(f"classes of the data set: {said} Give their captions (--captions).") from None


def clean(name: str) -> str:
    """A name without what is in brackets, and with spaces for underscores (`clean_name` of the reference)."""
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def _name(each: Class, rules: Rules) -> str:
    # the reference takes what a prompt says as it is
    name = each.text if each.text is not None else clean(each.name) if rules.names_cleaned else each.name
    if not name.strip():
        raise ModelError(
            f"class {each.id}, {quoted(each.name, 60)}: its caption would be empty. Say it in other words."
        )
    return name


def _ordered(classes: Sequence[Class], order: str) -> list[Class]:
    if order == "name":
        return sorted(classes, key=lambda each: (each.name, each.id))
    return sorted(classes, key=lambda each: each.id, reverse=order == "reversed")
