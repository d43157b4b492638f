"""A checkpoint of any known format as `convert` would write it, without a file: what runs a model reads this.

The plan and its proof are those of `convert`, and so are the records. A tensor that is only renamed is read where it
lies; any other is made whenever it is read, so that memory holds one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint, TensorInfo
from converter.checkpoint.arrays import np
from converter.checkpoint.hashes import tensor_hashes
from converter.display import file_name
from converter.errors import ModelError, TableError
from converter.mapping.documents import names_of
from converter.mapping.load import hub_table
from converter.mapping.ops import Array
from converter.mapping.spec import Config, as_config, load_spec
from converter.mapping.table import Table
from converter.planning.fit import make_plan
from converter.planning.formats import choose_formats, make_route, open_known
from converter.planning.plan import Plan, Step
from converter.writing.buffers import verify_left_out
from converter.writing.ledger import TABLES, config_document, draft_ledger, fill_ledger, tables_of, to_json
from converter.writing.records import check_library, find_record
from converter.writing.transfer import made_by


def open_converted(path: Path, root: str | None = None, joined: str | None = "float32") -> Checkpoint:
    """The checkpoint at `path` in its spec's own naming: what `convert` wrote as it is, any other `in_memory`.

    `root` names the state dict to take where there are several. `joined`: the dtype of what is joined of tensors of
    several dtypes, for who runs a model has none to state; with None that is refused, as by `convert` without --dtype.
    Raises CheckpointError, PlanError as `convert` does, and ModelError where a conversion has a damaged record of what
    it is.
    """
    checkpoint = open_known(path, root)
    try:
        record = find_record(path, checkpoint, "config")
        if record is not None:
            known = _of_its_sizes(path, record)
            if known is None or checkpoint.tensors.keys() <= known.spec.tensors(_sizes(record)).keys():
                return checkpoint
            plan = make_plan(known, checkpoint, dtype=joined, only_joins=True, refuse=False)
            if not plan.problems:
                check_library(path, known, plan)
                return in_memory(checkpoint, plan)
        source, target = choose_formats(checkpoint, None, None)
        plan = make_route(source, target, checkpoint, dtype=joined, only_joins=True)
        check_library(path, source, plan)
        return in_memory(checkpoint, plan)
    except BaseException:
        checkpoint.close()
        raise


def _sizes(record: Mapping[str, Any]) -> Config:
    return as_config(record["config"])


def _of_its_sizes(path: Path, record: Mapping[str, Any]) -> Table | None:
    """The naming of a spec that a library has a class of, for the sizes of a record alone: if that library saves the
    weights again, its files hold more than the spec's tensors. None for any other spec; ModelError for wrong sizes."""
    if record["model"] not in names_of("spec") or not (spec := load_spec(record["model"])).files:
        return None
    variant = replace(spec.variant_of(_sizes(record)), config=_sizes(record))
    try:
        spec.tensors(variant.config)
    except TableError as error:
        raise ModelError(f"{file_name(path)}: its record 'config' is invalid: {error}. Convert again.") from None
    return hub_table(replace(spec, variants=(variant,)))


def in_memory(checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
    """What `convert` makes of `checkpoint` by a plan to a spec's own naming; to close it closes `checkpoint`.

    Its metadata is that of the file: `config`, what the ledger says of tables, and the ledger, `conversion`, for which
    every tensor is hashed once it is asked for. Raises PlanError where a buffer that is left out does not hold what the
    config implies.
    """
    verify_left_out(checkpoint, plan)

    @cache
    def ledger() -> str:
        hashes = tensor_hashes(made)
        remade = {source.name for step in plan.steps if not _renames(step) for source in step.sources}
        sources = tensor_hashes(replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in remade}))
        for step in filter(_renames, plan.steps):
            sources |= {s.name: hashes[t.name] for s, t in zip(step.sources, step.targets, strict=True)}
        filled = fill_ledger(draft_ledger(checkpoint, plan, None), plan, hashes, sources)
        return to_json(filled, indent=None).decode()

    def tables() -> str:
        return to_json(tables_of(draft_ledger(checkpoint, plan, None)), indent=None).decode()

    config = to_json(config_document(plan), indent=None).decode()
    tensors = [item for step in plan.steps for item in _tensors(checkpoint, step)]
    made = replace(
        checkpoint,
        layout="in-memory",
        tensors={tensor.name: tensor for tensor, _ in tensors},
        computed={tensor.name: values for tensor, values in tensors if values is not None},
        metadata=_Metadata({"format": lambda: "pt", "config": lambda: config, TABLES: tables, "conversion": ledger}),
        unsupported={},  # the plan accounts for them
        objects={},
        made_of=checkpoint,
    )
    return made


def _renames(step: Step) -> bool:
    return not step.ops and not step.casts


def _tensors(checkpoint: Checkpoint, step: Step) -> Iterator[tuple[TensorInfo, Callable[[], Array] | None]]:
    """The targets of a step, each with what makes its values; None where they are read where they lie."""
    if _renames(step):
        for source, target in zip(step.sources, step.targets, strict=True):
            yield replace(checkpoint.tensors[source.name], name=target.name), checkpoint.computed.get(source.name)
        return
    storage = checkpoint.tensors[step.sources[0].name].storage  # where a computed tensor lies does not matter
    for place, target in enumerate(step.targets):
        strides = tuple(prod(target.shape[axis + 1 :]) for axis in range(len(target.shape)))
        made = TensorInfo(target.name, target.dtype, target.shape, strides, storage)
        yield made, partial(_values, checkpoint, step, place)


def _values(checkpoint: Checkpoint, step: Step, place: int) -> Array:
    arrays = [checkpoint.read(source.name) for source in step.sources]
    return np.asarray(made_by(step, arrays)[place], order="C")


@dataclass(frozen=True, slots=True, eq=False)
class _Metadata(Mapping[str, str]):
    """Entries that are made when they are asked for."""

    entries: Mapping[str, Callable[[], str]]

    def __getitem__(self, key: str) -> str:
        return self.entries[key]()

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
