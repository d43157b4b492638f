"""Formats by name: recognising which one a checkpoint is in, and the plan from any one to any other.

A format is a table: one of `mappings/`, one at a path, or the naming of a spec itself, whole or a part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.errors import PlanError, TableError
from converter.mapping.documents import kind_of, known_paths, names_of, unknown
from converter.mapping.load import hub_table, load_table, load_target
from converter.mapping.names import form_of
from converter.mapping.spec import Spec, load_spec
from converter.mapping.table import Table
from converter.planning.adapters import with_adapters_merged
from converter.planning.compose import compose
from converter.planning.export import make_export
from converter.planning.fit import fits, hidden, make_plan
from converter.planning.plan import Contents, Plan, Residue

_NEAR = 0.5  # of the names that the best table knows; tables that know fewer are not fitted
_MOST_NAMES = 5_000  # of a state dict that are compared; the largest known model has some 1,000, of 150 forms
_SURE = 0.8  # of all names; a table that knows more, with no other near it, is taken without fitting


def load_format(name_or_path: str) -> Table:
    """The table of a format by name or path; a spec stands for its own naming. Raises TableError."""
    if name_or_path in names_of("spec") or kind_of(name_or_path) == "spec":
        return hub_table(load_spec(name_or_path))
    if not name_or_path.endswith(".json") and name_or_path not in (known := format_names()):
        raise unknown("format", name_or_path, known)
    return load_table(name_or_path)


def format_names() -> list[str]:
    """Names that `load_format` knows."""
    return sorted([*names_of("spec"), *names_of("table")])


def choose_formats(contents: Contents, source: str | None, target: str | None) -> tuple[Table, Table]:
    """Both ends of a conversion, each by name or path; without one, the source is recognised, the target its spec's own
    naming. Raises TableError, or PlanError as `recognise`."""
    to = load_format(target) if target else None
    found = load_format(source) if source else recognise(contents, to.spec if to else None)
    return found, to or hub_table(found.spec)


def hub_holding(source: Table, target: Table, kept: Iterable[str]) -> Table:
    """The table of the spec's own naming that covers `source` and the tensors `kept`: of its part, or of the whole."""
    if all(map(source.spec.holds, kept)):
        return hub_table(source.spec)
    return hub_table(load_target(source.spec.name, source.path)) if target.spec.part else target


def recognise(contents: Contents, spec: Spec | None = None) -> Table:
    """The format that a checkpoint is in, by its names and shapes: of all known ones, or of `spec`'s alone.

    Raises PlanError if none fits, or if several fit equally well: then it lists them.
    """
    if contents.unsupported and not contents.tensors:
        raise PlanError(
            f"none of its {len(contents.unsupported)} tensors can be read", list(contents.unsupported.values())
        )
    forms = _forms(contents.tensors)
    known = [(table, _known(table, forms)) for table in _candidates(spec)]
    most = max(share for _, share in known)
    near = [table for table, share in known if share and share >= _NEAR * most]
    if len(near) == 1 and most > _SURE:
        return near[0]
    if most < _NEAR and (said := next(filter(None, (hidden(table, contents) for table, _ in known)), "")):
        raise PlanError(said)
    found = [(table, fits(table, contents)) for table in near]
    if not found or (best := max(fit.best.score for _, fit in found)) < 0.1:
        closest = [f"{table.label}: {share:.0%} of the names" for table, share in _closest(known)]
        raise PlanError(
            f"no known format: {len(contents.tensors)} tensors were compared with {len(known)} formats. State the "
            "format with `convert --from`, or describe it: 'converter draft' proposes a table",
            closest,
        )
    chosen = [table for table, fit in found if fit.best.is_sound] or [t for t, f in found if f.best.score == best]
    if len(chosen) > 1:
        raise PlanError(
            "the checkpoint could be in several formats; state the right one with `convert --from`",
            [f"{table.label}: {table.title}" for table in chosen],
        )
    return chosen[0]


def open_known(
    path: str | Path,
    root: str | None = None,
    source: str | None = None,
    *,
    or_target: bool = False,
    merge: bool = True,
) -> Checkpoint:
    """Open a checkpoint; of several state dicts in it, the one that is in a known format, or in the format `source`.

    `or_target`: or, beside `source`, in the naming of its target. Adapters are merged into their weights, unless
    `merge` is False. Raises CheckpointError as `open_checkpoint`, TableError as `load_format`.
    """
    formats = [load_format(source)] if source else []
    if or_target:
        formats += [hub_table(table.spec) for table in formats]

    def known(names: Collection[str]) -> int:
        forms = Counter(islice(map(form_of, names), _MOST_NAMES))
        tables = formats or _candidates(None)
        return max(sum(count for form, count in forms.items() if table.names.knows(form)) for table in tables)

    checkpoint = open_checkpoint(path, root, known)
    try:
        return with_adapters_merged(checkpoint) if merge else checkpoint
    except BaseException:
        checkpoint.close()
        raise


def fitting(contents: Contents) -> Iterator[tuple[Table, Plan]]:
    """The known formats that a checkpoint is in without any problem, each with the plan from it."""
    forms = _forms(contents.tensors)
    for table in _candidates(None):
        if _known(table, forms):
            plan = make_plan(table, contents, refuse=False)
            if not plan.problems:
                yield table, plan


def _candidates(spec: Spec | None) -> list[Table]:
    known = _known_formats(known_paths())
    if spec is None:
        return list(known)
    own = [] if any(table.is_hub and table.spec.name == spec.name for table in known) else [spec, *spec.parts.values()]
    return [*map(hub_table, own), *(table for table in known if table.spec.name == spec.name)]


@cache
def _known_formats(paths: tuple[Path, ...]) -> tuple[Table, ...]:
    """Every format that has a name: each spec's own naming, whole and in parts, and every table; `paths` are theirs."""
    specs = [
        part for name in names_of("spec") for whole in [load_spec(name)] for part in (whole, *whole.parts.values())
    ]
    return (*map(hub_table, specs), *map(load_table, names_of("table")))


def _known(table: Table, forms: Collection[str]) -> float:
    """The share of the names, numbers aside, that the table has a pattern for."""
    return sum(map(table.names.knows, forms)) / max(1, len(forms))


def _forms(names: Iterable[str]) -> list[str]:
    """What names look like, numbers aside; of very many, some."""
    return sorted(set(map(form_of, names)))[:_MOST_NAMES]


def _closest(known: list[tuple[Table, float]]) -> list[tuple[Table, float]]:
    return sorted((item for item in known if item[1]), key=lambda item: -item[1])[:3]


def make_route(
    source: Table,
    target: Table,
    contents: Contents,
    *,
    variant: str | None = None,
    dtype: str | None = None,
    only_joins: bool = False,
    residue: Residue | None = None,
) -> Plan:
    """The plan from one format to another, through the spec that both are tables of.

    `dtype`, `only_joins`: as for `make_plan`. `residue` is what an earlier conversion from the target format kept.
    Raises PlanError with every problem at once, TableError if the formats have nothing in common.
    """
    if source.spec.name != target.spec.name:
        raise TableError(f"{source.label} is a format of {source.spec.name}, {target.label} one of {target.spec.name}")
    own = target.is_hub and target.spec.part in ("", source.spec.part)
    is_last = own and residue is None
    first = make_plan(source, contents, variant=variant, dtype=dtype, only_joins=only_joins or not is_last)
    if is_last:
        return first
    if not any(target.spec.holds(tensor.name) for tensor in first.targets):
        raise PlanError(
            f"{source.label} holds {source.spec.title}, {target.label} {target.spec.title}: no tensor is in both"
        )
    if source.spec.part and not target.spec.part and residue is None:
        raise PlanError(
            f"{source.label} holds {source.spec.title} alone, {target.label} needs all of {source.spec.name}. "
            f"Convert a whole checkpoint, or choose as --to a format of {source.spec.title}"
        )
    return compose(first, make_export(target, list(first.targets), dtype=dtype, residue=residue))
