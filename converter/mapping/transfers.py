"""Every application of every rule that makes the target: what a checkpoint must hold, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection

from converter.errors import TableError
from converter.mapping.entries import Bound, Rule, Transfer
from converter.mapping.ops import Reshape, Shape, chain_shapes, invert_ops
from converter.mapping.pattern import Captures, Pattern
from converter.mapping.spec import Budget, Config
from converter.mapping.table import Table

# what a table may ask for under all variants together; the largest of `mappings/` needs a tenth of each
_MOST_COMPARISONS = 20_000_000
_MOST_WORK = 1_000_000
_ENOUGH = 1000  # problems of one variant


def transfers(table: Table, bound: Bound, config: Config) -> tuple[list[Transfer], list[str]]:
    """The rules of `bound` read backwards, from each tensor of the target to its sources, and what is wrong with them.

    Problems are static: a target that no rule makes, or two; a rule that makes no tensor of this target, or
    some that it does not have; a source key used twice; ops that do not fit the target's shapes.
    Raises TableError where comparing patterns with names would take minutes.
    """
    expansion = _Expansion(table, config)
    claiming = [pattern for rule in bound.rules for pattern in rule.targets[:1]]
    claiming += [entry.source for entry in bound.absent]
    check_cost(table, claiming, expansion.wanted)
    problems = expansion.problems
    for rule in bound.rules:
        seen = False
        for name, captures in rule.targets[0].among(expansion.wanted.keys()):
            if len(problems) > _ENOUGH:
                return expansion.transfers, [*problems, f"{rule.pointer}: and more of the kind"]
            seen = True
            try:
                expansion.apply(rule, name, captures)
            except TableError as error:
                problems.append(f"{rule.pointer}: {error}")
        if not seen and not table.is_hub:  # a hub table has the rules of all variants, so some make nothing here
            problems.append(f"{rule.pointer}: makes nothing; {rule.targets[0].text!r} fits no tensor of the target")
    expansion.account(bound)
    return expansion.transfers, problems


class _Expansion:
    """What the rules make of one target, rule by rule."""

    def __init__(self, table: Table, config: Config) -> None:
        self._table = table
        self.wanted = table.spec.tensors(config)
        self._dtypes = table.spec.dtypes(config)
        self._budget = Budget(table.spec.share(_MOST_WORK), "tensors and sizes of ops")
        self._made: dict[str, str] = {}  # target -> pointer of the rule
        self._used: dict[str, str] = {}  # source -> pointer of the rule
        self.transfers: list[Transfer] = []
        self.problems: list[str] = []

    def apply(self, rule: Rule, name: str, captures: Captures) -> None:
        """Add the transfer by which `rule` makes `name`. Raises TableError where it cannot."""
        making = f"making {name!r} {self.wanted[name]}"
        try:
            self._budget.take(rule.cost)
            targets = [pattern.format(captures) for pattern in rule.targets]
            sources = [pattern.format(captures) for pattern in rule.sources]
            ops = rule.ops(captures)
        except TableError as error:
            raise TableError(f"{making}: {error}") from None
        if missing := [target for target in targets if target not in self.wanted]:
            raise TableError(f"makes {missing[0]!r}, which {self._table.spec.name} does not have")
        self._claim(rule, targets, sources)
        try:
            shapes = chain_shapes(invert_ops(ops), [self.wanted[target] for target in targets])
            also = _other_shape(rule, captures, shapes)
        except TableError as error:
            raise TableError(f"{making}: {error}") from None
        if len(shapes) != len(sources):
            raise TableError(f"the ops take {len(shapes)} tensors, {len(sources)} are named")
        exact = {self._dtypes.get(target) for target in targets}
        if len(exact) > 1 or (rule.cast and exact != {None}):
            raise TableError(f"{making}: a rule must not cast a fixed dtype, or make targets of different dtypes")
        made = tuple((target, self.wanted[target]) for target in targets)
        self.transfers.append(Transfer(rule, tuple(zip(sources, shapes, strict=True)), made, ops, exact.pop(), also))

    def _claim(self, rule: Rule, targets: list[str], sources: list[str]) -> None:
        """Note which rule makes which target of which sources. A second rule for one is a problem that is reported."""
        for target in targets:
            if target in self._made:
                self.problems.append(f"{target!r} is made twice, by {self._made[target]} and {rule.pointer}")
            self._made[target] = rule.pointer
        for source in sources:
            if source in self._used:
                self.problems.append(f"source {source!r} is used twice, by {self._used[source]} and {rule.pointer}")
            self._used[source] = rule.pointer

    def account(self, bound: Bound) -> None:
        """Every tensor of the target is made, or absent from the format; nothing is both."""
        unused = {entry.pointer: entry.source.text for entry in bound.absent}
        absent: dict[str, str] = {}
        for entry in bound.absent:
            for name, _ in entry.source.among(self.wanted.keys()):
                unused.pop(entry.pointer, None)
                absent.setdefault(name, entry.pointer)
        for name, shape in self.wanted.items():
            if name in self._made and name in absent:
                self.problems.append(f"{name!r} is made by {self._made[name]}, yet absent by {absent[name]}")
            elif name not in self._made and name not in absent:
                self.problems.append(f"{name!r} {shape} is made by no rule, and not named in 'absent'")
        self.problems += [f"{pointer}: {text!r} fits no tensor of the target" for pointer, text in unused.items()]


def _other_shape(rule: Rule, captures: Captures, shapes: Collection[Shape]) -> Shape | None:
    """The other shape that each source may have. Raises TableError where it has not as many elements."""
    if rule.also_shape is None:
        return None
    also = rule.also_shape(captures)
    for shape in shapes:
        try:
            Reshape(shape, also).shapes([shape])
        except TableError:
            raise TableError(f"'also_shape' {also} does not hold the elements of {shape}") from None
    if also in shapes:
        raise TableError(f"'also_shape' {also} is the shape that a source has anyway")
    return also


def check_cost(table: Table, patterns: Collection[Pattern], names: Collection[str]) -> None:
    """Raises TableError where comparing all the `patterns` with all the `names` would take minutes."""
    comparisons = sum(1 for pattern in patterns if pattern.captures) * len(names)
    if comparisons > table.spec.share(_MOST_COMPARISONS):
        raise TableError(
            f"{table.path}: /rules: {len(patterns)} patterns and {len(names)} tensors are too many; write fewer "
            "rules, each for more tensors"
        )
