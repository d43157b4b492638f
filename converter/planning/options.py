"""The options of a spec: fields of a config that a checkpoint decides, whatever the variant."""

from __future__ import annotations

from collections.abc import Mapping

from converter.errors import TableError
from converter.mapping.spec import Config, Variant
from converter.mapping.table import Table
from converter.planning.plan import Tensor


def with_options(
    table: Table, variant: Variant, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None
) -> Config:
    """The variant's config, with the fields that the checkpoint decides; with `kept`, `tensors` are the spec's own."""
    config = dict(variant.config)
    for option in table.spec.options:
        if kept is not None and option.tensor in tensors:
            if len(tensors[option.tensor].shape) > option.axis:
                config[option.field] = tensors[option.tensor].shape[option.axis]
            continue
        bound = table.bind({**config, option.field: 1}, making=option.tensor)
        rule = next((r for r in bound.rules if any(t.match(option.tensor) == {} for t in r.targets)), None)
        if rule is None:  # the format has no such tensor
            continue
        if rule.ops({}):
            raise TableError(
                f"{table.name}: option {option.field!r} needs a rule that only renames to {option.tensor!r}"
            )
        tensor = (tensors if kept is None else kept).get(rule.sources[0].format({}))
        if tensor is not None and len(tensor.shape) > option.axis:
            config[option.field] = tensor.shape[option.axis]
    return config
