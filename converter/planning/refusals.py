"""What is said of a table and a checkpoint that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from converter.display import counted, quoted
from converter.errors import PlanError, TableError
from converter.mapping.doubts import unsettled

if TYPE_CHECKING:
    from converter.planning.fit import Fits


def refusal(fits: Fits, keys: int, problems: Sequence[str]) -> PlanError | TableError:
    """The error for a plan with `problems`, made of `keys` tensors: of the table if nothing but its doubts is wrong."""
    table = fits.fit.table
    if len(problems) == len(table.doubts()):
        return TableError(unsettled(table.path, len(problems)), problems)
    return PlanError(headline(fits, keys, len(problems)), problems)


def headline(fits: Fits, keys: int, problems: int) -> str:
    fit, best, table = fits.fit, fits.best, fits.fit.table
    found = f"{fit.found} of the {len(fit.needed)} tensors that {fit.variant.name} needs are there"
    if fit.backwards:
        return f"{table.name}: cannot be made of this {table.spec.label}: {found}, {problems} problems"
    if best.score < 0.1:
        return f"{table.name}: this is not a checkpoint of this family: among its {keys} tensors {found}"
    if fits.stated and best is not fit and best.score > fit.score:
        return (
            f"{table.name}: {fits.stated.name} was stated, but this looks like {best.variant.name} "
            f"({best.found} of {len(best.needed)} tensors fit it): {found}, {problems} problems"
        )
    beside = [tensor.name for tensor in fit.tensors.values() if not tensor.name.startswith(fit.naming.prefix)]
    hint = (
        f". Not behind {quoted(fit.naming.prefix)}: {counted(len(beside), 'name')}, which --root "
        f"{fit.naming.prefix[:-1]} leaves out"
    )
    return f"{table.name}: the checkpoint does not fit {fit.variant.name}: {found}, {problems} problems" + (
        hint if fit.naming.prefix and 0 < len(beside) < len(fit.tensors) / 2 else ""
    )
