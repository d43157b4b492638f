"""Two tables of one target in a row, rule by rule: from the keys of the first to those of the second.

So a model whose parts have several names in public gets a table without writing any of them down again: what a table
says of Swin's names in one library, and what another says of them in a second, makes the way from the one to the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from converter.errors import TableError
from converter.mapping.documents import Document
from converter.mapping.pattern import compile_pattern

_Rule: TypeAlias = Mapping[str, Any]
_Names: TypeAlias = str | Sequence[str]
_Words: TypeAlias = Mapping[str, Sequence[str]]

_CAPTURE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_CALCULATED = re.compile(r"\{(?![a-z][a-z0-9_]*\})[^{}]*\}")
_CARRIED = {"source", "target", "ops", "note"}  # what of a rule of the second is read backwards, and what says nothing


def joined(first: Mapping[str, Any], second: Document, at: str) -> dict[str, Any]:
    """`first`, whose rules lead to keys of `second`, with `at` before these, in place of the target that both share.

    A rule of `first` for several words or numbers (`norm{number}`) makes one for each that `second` has a rule for.
    Rules of whose targets `second` knows nothing are left out: that nothing is lost by that is for the coverage of the
    table to prove. TableError for patterns that are not sound, and for what of a rule cannot be read backwards here.
    """
    words = _with_captures(first.get("words", {}))
    for content in (first, second.content):
        _check_targets(content, _with_captures(content.get("words", {})))
    rules: list[_Rule] = []
    for rule in first.get("rules", ()):
        for other in second.content.get("rules", ()):
            if (fixed := _fixed(rule["target"], other["target"], words)) is None:
                continue
            try:
                rules += _through({**rule, "source": _filled(rule["source"], fixed)}, other, at)
            except TableError as error:
                raise TableError(f"{second.path}: {other['source']!r}: {error}") from None
    used = json.dumps([rules, first.get("ignore", ())])
    return {
        **{name: value for name, value in first.items() if name != "absent"},
        "words": {name: value for name, value in first.get("words", {}).items() if f"{{{name}}}" in used},
        "rules": rules,
    }


def _with_captures(words: _Words) -> _Words:
    """`words`, each list with the capture itself, which may stand in the other target: neither is read in two ways."""
    return {name: list(dict.fromkeys((*values, f"{{{name}}}"))) for name, values in words.items()}


def _check_targets(content: Mapping[str, Any], words: _Words) -> None:
    """TableError for targets that could be read in several ways, and so take long to compare."""
    for rule in content.get("rules", ()):
        for target in _listed(rule["target"]):
            try:
                # what is calculated may need the config, and is compared as it stands
                compile_pattern(_CALCULATED.sub("*", target), words, {})
            except TableError as error:
                raise TableError(f"{content.get('name')}: {target[:80]!r}: {error}") from None


def _fixed(target: _Names, other: _Names, words: _Words) -> dict[str, str] | None:
    """The captures of `target` for which `other` has one word or number; None if they are not the same otherwise."""
    if _listed(target) == _listed(other):
        return {}
    if not (isinstance(target, str) and isinstance(other, str)):
        return None
    expression, known = "", set()
    for place, text in enumerate(_CAPTURE.split(target)):
        if place % 2 == 0:
            expression += re.escape(text)
        elif text in known:
            expression += f"(?P={text})"
        else:
            known.add(text)
            values = "|".join(map(re.escape, words[text])) if text in words else rf"\{{{text}\}}|[0-9]+"
            expression += rf"(?P<{text}>{values})"
    found = re.fullmatch(expression, other)
    return found and {name: value for name, value in found.groupdict().items() if value != f"{{{name}}}"}


def _filled(names: _Names, fixed: Mapping[str, str]) -> _Names:
    filled = [_CAPTURE.sub(lambda found: fixed.get(found[1], found[0]), name) for name in _listed(names)]
    return filled[0] if isinstance(names, str) else filled


def _through(rule: _Rule, other: _Rule, at: str) -> Iterator[_Rule]:
    if beyond := sorted(other.keys() - _CARRIED):
        raise TableError(
            f"a rule with {beyond[0]!r} cannot be gone through, for it would be dropped; write the rule out"
        )
    sources, targets = _listed(rule["source"]), [at + name for name in _listed(other["source"])]
    about = {name: value for name, value in rule.items() if name not in ("source", "target", "ops")}
    ops, back = list(rule.get("ops", ())), list(other.get("ops", ()))
    if ops == back and len(sources) == len(targets):  # one undoes the other
        for source, target in zip(sources, targets, strict=True):
            yield {**about, "source": source, "target": target}
        return
    ops += [_inverse(op) for op in reversed(back)]
    yield {**about, "source": sources, "target": targets, **({"ops": ops} if ops else {})}


def _inverse(op: Mapping[str, Any]) -> dict[str, Any]:
    if op["op"] in ("concat", "split"):
        return {**op, "op": "split" if op["op"] == "concat" else "concat"}
    raise TableError(f"a rule with the op {op['op']!r} cannot be gone through; write the rule out")


def _listed(names: _Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
