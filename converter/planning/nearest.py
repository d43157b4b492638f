"""Names that no rule knows, and names that read like one: what a message about an unknown one suggests."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING

from converter.mapping.names import form_of
from converter.mapping.ops import Shape
from converter.mapping.table import Table
from converter.planning.plan import Tensor

if TYPE_CHECKING:
    from converter.planning.fit import Fits

_HINTS = 50  # unknown names for which near ones are looked up


def of_other_sizes(fits: Fits) -> str:
    """A sentence, if all names are the spec's own and the sizes those of no variant; else "".

    What was saved of such a model says nothing of its sizes, of which not all show in shapes.
    """
    table, best = fits.table, fits.best
    if not table.is_hub or best.score >= 0.5 or not all(table.names.knows(form_of(name)) for name in best.tensors):
        return ""
    return (
        f"{table.name}: the names are this model's own, the sizes those of no known variant, and no record states them "
        f"({best.found} of the {len(best.needed)} tensors that {best.variant.name} needs are there). Save the model "
        "with its save_pretrained, and give the folder that it writes, not a file in it"
    )


def problems_of_unknown(
    table: Table, tensors: Mapping[str, Tensor], needed: Mapping[str, Shape], there: Collection[str]
) -> list[str]:
    """A line for each of the `tensors`, which no rule matches: first those of another model, all as one line, then
    those that read like one that is `needed` and not `there`."""
    foreign: dict[str, list[Tensor]] = {}
    lines: list[tuple[bool, str]] = []
    for name, tensor in tensors.items():
        if reason := table.foreign(name):
            foreign.setdefault(reason, []).append(tensor)
            continue
        # a search for each of a hundred thousand names would take minutes, and nobody reads so many
        near = nearest(name, needed, tensor.shape) if len(lines) < _HINTS else []
        near.sort(key=lambda key: key in there)
        hint = f"Nearest: {', '.join(f'{key!r} {needed[key]}' for key in near)}. " if near else ""
        is_like = bool(near) and near[0] not in there
        said = f"no rule matches {tensor.name!r} {tensor.shape}. {hint}Add a rule, or an ignore with a reason."
        lines.append((not is_like, said))
    lines.sort(key=lambda line: line[0])
    told = []
    for reason, found in foreign.items():
        more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
        told.append(f"{reason}: {found[0].name!r} {found[0].shape}{more}")
    return [*told, *(said for _, said in lines)]


def nearest(name: str, candidates: Mapping[str, Shape], shape: Shape | None = None) -> list[str]:
    """Up to three candidates that read like `name` (numbers aside), those of the same shape first."""
    examples: dict[str, str] = {}
    for candidate in candidates:
        examples.setdefault(_without_numbers(candidate), candidate)
    close = _close_names(_without_numbers(name), tuple(examples))
    return sorted((examples[c] for c in close), key=lambda key: candidates[key] != shape)


@cache
def _close_names(name: str, names: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(name[:400], names, n=3, cutoff=0.6)


def _without_numbers(name: str) -> str:
    return re.sub(r"[0-9]+", "*", name)
