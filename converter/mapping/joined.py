"""Two tables of one target in a row, rule by rule: from the keys of the first to those of the second.

So a model whose parts have several names in public gets a table without writing any of them down again: what a table
says of Swin's names in one library, and what another says of them in a second, makes the way from the one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.errors import TableError
from converter.mapping.documents import Document

_Rule = Mapping[str, Any]


def joined(first: Mapping[str, Any], second: Document, at: str) -> dict[str, Any]:
    """`first`, whose rules lead to keys of `second`, with `at` before these, in place of the target that both share.

    Rules of whose targets `second` knows nothing are left out: that nothing is lost by that is for the coverage of the
    table to prove. TableError for ops that cannot be read backwards here.
    """
    beyond = {_key(rule["target"]): rule for rule in second.content.get("rules", ())}
    rules: list[_Rule] = []
    for rule in first.get("rules", ()):
        if (other := beyond.get(_key(rule["target"]))) is not None:
            try:
                rules += _through(rule, other, at)
            except TableError as error:
                raise TableError(f"{second.path}: {other['source']!r}: {error}") from None
    return {**{name: value for name, value in first.items() if name != "absent"}, "rules": rules}


def _through(rule: _Rule, other: _Rule, at: str) -> Iterator[_Rule]:
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


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _key(names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(_listed(names))
