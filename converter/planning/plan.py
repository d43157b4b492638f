"""The plan: everything that a conversion will do, decided and proved before a byte of tensor data is read.

Dry run, `explain`, the conversion itself and its reverse all read this one value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from converter.checkpoint import DType
from converter.mapping.cast import is_lossless
from converter.mapping.ops import Array, Op, Shape, describe, invert_ops
from converter.mapping.spec import Config, Variant


class Described(Protocol):
    """What a plan looks at of a tensor in a checkpoint."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> DType: ...


class Contents(Protocol):
    """What a plan is made of: the tensors of a checkpoint, and what else is among them. `Checkpoint` is one."""

    @property
    def tensors(self) -> Mapping[str, Described]: ...
    @property
    def unsupported(self) -> Mapping[str, str]: ...
    @property
    def objects(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor on either side: its name there, shape and dtype."""

    name: str
    shape: Shape
    dtype: DType

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype.name}"


@dataclass(frozen=True, slots=True)
class Step:
    """`sources`, through `ops`, then cast to the targets' dtype, become `targets`. `pointer` names the rule.

    Sources of several dtypes are cast first.
    """

    pointer: str
    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    ops: tuple[Op, ...]

    @property
    def casts(self) -> bool:
        """Whether the dtype changes."""
        return any(source.dtype != target.dtype for source in self.sources for target in self.targets)

    @property
    def joined_as(self) -> DType:
        """The dtype in which the ops run: that of the sources, or the targets' where the sources have several."""
        return self.sources[0].dtype if len({s.dtype for s in self.sources}) == 1 else self.targets[0].dtype

    @property
    def is_lossless(self) -> bool:
        """Whether the reverse step gives back every bit."""
        return all(is_lossless(source.dtype, target.dtype) for source in self.sources for target in self.targets)

    def reverse(self) -> Step:
        """The step from the targets back to the sources."""
        return Step(self.pointer, self.targets, self.sources, invert_ops(self.ops))

    def describe(self) -> list[str]:
        """The ops in words, and the cast; ['rename'] if there is neither."""
        words = [describe(op) for op in self.ops]
        if self.casts:
            found = ", ".join(dict.fromkeys(source.dtype.name for source in self.sources))
            words.append(f"cast({found} -> {self.targets[0].dtype.name})")
        return words or ["rename"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A source tensor that the table leaves out, and why.

    `rebuild` makes the value that it must have, if any; `accepts` says whether it is one of several that it may have.
    `copy_of` is another source tensor, with the same numbers.
    """

    tensor: Tensor
    pointer: str
    reason: str
    rebuild: Callable[[], Array] | None
    accepts: Callable[[Array], bool] | None = None
    copy_of: Tensor | None = None

    @property
    def is_rebuildable(self) -> bool:
        """Whether nothing of it has to be kept for the way back."""
        return self.rebuild is not None or self.copy_of is not None


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A tensor of the written format that comes from no source, but follows from the config: `make` gives its value.

    Or it holds what another target does, whose name is `copy_of`.
    """

    tensor: Tensor
    pointer: str
    make: Callable[[], Array] | None
    copy_of: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """Tensors that the written file will lack. `names`: one name, or a pattern for several.

    `reason`: why the file may lack them, or what the format's own tools do without them.
    """

    names: str
    pointer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Naming:
    """Full names, in a checkpoint, of a table's short names: `prefix` plus the short name, except for the `others`.

    `shapes`: those of the tensors, by short name, that have the other shape that their rule allows.
    """

    prefix: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def full(self, short: str) -> str:
        """The name in the checkpoint."""
        return self.others.get(short, self.prefix + short)

    def short_names(self, names: Iterable[str]) -> dict[str, str]:
        """By name in the checkpoint, the table's short names."""
        others = {full: short for short, full in self.others.items()}
        return {name: others.get(name, name.removeprefix(self.prefix)) for name in names}


@dataclass(frozen=True, slots=True)
class Residue:
    """What an earlier conversion kept of a checkpoint of the format that is now written, by short names.

    `tensors` carry their names in the residue; `buffers` are those that the checkpoint had and that can be rebuilt,
    with their dtypes; `naming` is the checkpoint's.
    """

    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, DType]
    naming: Naming


@dataclass(frozen=True, slots=True)
class Format:
    """The format that a plan writes where it is not the target's own: the table, and how its tools save a file.

    `root` is the key of a .pth under which the state dict lies; `config` the config.json that its tools read.
    """

    name: str
    sha256: str
    root: str
    config: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every source tensor and where every target tensor comes from.

    `wrappers`: segments that were taken off names, each with the number of names.
    `target` is the spec, `part` the part of it that the plan fills. `written` is the format to write, None for the
    spec's own naming. `carried` are steps that read from the residue of an earlier conversion. `naming` is that of the
    source checkpoint. `config_of_library`: the config.json that the library reads whose own naming the spec's is.
    A plan with `problems` cannot be executed; `make_plan` raises then, unless told not to.
    """

    table: str
    table_sha256: str
    target: str
    variant: Variant
    config: Config
    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...]
    problems: tuple[str, ...]
    part: str = ""
    missing: tuple[Missing, ...] = ()
    rebuilt: tuple[Rebuilt, ...] = ()
    carried: tuple[Step, ...] = ()
    naming: Naming = Naming()
    written: Format | None = None
    wrappers: Mapping[str, int] = field(default_factory=dict)
    config_of_library: Mapping[str, Any] | None = None

    @property
    def targets(self) -> Iterator[Tensor]:
        """Target tensors: those of the steps in their order, then what is rebuilt."""
        yield from (target for step in (*self.steps, *self.carried) for target in step.targets)
        yield from (rebuilt.tensor for rebuilt in self.rebuilt)

    @property
    def format(self) -> str:
        """The name of what is written."""
        return self.written.name if self.written else self.target

    def reverse(self) -> Plan:
        """The plan from the target back to the source. What was left out stays out; a lossy cast stays lost."""
        return replace(self, steps=tuple(step.reverse() for step in self.steps), left_out=())

    def indistinguishable(self) -> list[tuple[Shape, list[str]]]:
        """Groups of targets of one shape: had the table exchanged two of them, no shape would tell."""
        groups: dict[Shape, list[str]] = {}
        for target in self.targets:
            groups.setdefault(target.shape, []).append(target.name)
        return [(shape, names) for shape, names in groups.items() if len(names) > 1]

    def transposable(self) -> list[str]:
        """Square matrices: were one transposed, no shape would tell."""
        return [t.name for t in self.targets if len(t.shape) > 1 and t.shape[0] == t.shape[1] > 1]
