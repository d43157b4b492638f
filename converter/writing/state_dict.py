"""The state dict that weights come from, known by one hash, whichever file they are in: see `state_dict_entry`."""

from __future__ import annotations

from dataclasses import replace

from converter.checkpoint import DTYPES, Checkpoint
from converter.errors import PlanError
from converter.mapping.spec import Config, Variant
from converter.mapping.table import Table
from converter.planning.export import make_export
from converter.planning.plan import Plan, Tensor
from converter.writing.ledger import digest_of_tensors, state_dict_entry
from converter.writing.transfer import made_by, sha256_of


def state_dict_of(checkpoint: Checkpoint, table: Table) -> dict[str, str] | None:
    """The `state_dict_entry` of weights in the naming of their spec: of what `table`, read backwards, makes of them.

    None where it cannot, as where they are of no known variant. CheckpointError if the weights cannot be read.
    """
    try:
        plan = make_export(table, [Tensor(name, t.shape, t.dtype) for name, t in checkpoint.tensors.items()])
    except PlanError:
        return None
    short = _short_names(plan)
    lines = []
    for step in plan.steps:
        made = made_by(step, [checkpoint.read(source.name) for source in step.sources])
        for target, values in zip(step.targets, made, strict=True):
            lines.append((short[target.name], target.dtype.name, target.shape, sha256_of(values)))
    return state_dict_entry((t for step in plan.steps for t in step.targets), digest_of_tensors(lines))


def names_read(table: Table, config: Config) -> list[str]:
    """What `table` reads of a model of these sizes, by its own names."""
    alone = replace(table.spec, variants=(Variant("given", "as given", (), config),))
    tensors = [Tensor(name, shape, DTYPES["float32"]) for name, shape in alone.tensors(config).items()]
    return list(_short_names(make_export(replace(table, spec=alone), tensors)).values())


def _short_names(plan: Plan) -> dict[str, str]:
    return plan.naming.short_names(target.name for step in plan.steps for target in step.targets)
