"""From two lists of tensors to the documents of a draft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.display import quoted
from converter.errors import TableError
from converter.mapping.documents import find_document, names_of
from converter.mapping.doubts import in_doubt_of
from converter.mapping.draft.captures import Names, is_writable
from converter.mapping.draft.copies import match_shared, originals
from converter.mapping.draft.match import Matching
from converter.mapping.draft.names import Named
from converter.mapping.draft.rules import Rule, Writer
from converter.mapping.draft.spec import draft_spec
from converter.mapping.draft.squares import doubt_squares
from converter.mapping.draft.words import Vocabulary
from converter.mapping.expression import Value
from converter.mapping.load import load_table
from converter.mapping.ops import Shape
from converter.mapping.pattern import compile_pattern
from converter.mapping.spec import Config, Spec, load_spec
from converter.mapping.wrappers import load_wrappers


@dataclass(frozen=True, slots=True)
class Target:
    """What is drafted for. `conditions`: pattern of names -> the `when` of the spec's entry.

    `options`: tensors that only some checkpoints have, by the config field that they decide. `spec`: its document,
    where it is none that has a name. `part`: the module of the spec whose tensors these are, "" for the whole. `lists`:
    those of the config.
    """

    name: str
    variant: str
    tensors: tuple[Named, ...]
    fields: tuple[str, ...]
    conditions: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, Named, int], ...]
    spec: Mapping[str, Any] | None
    part: str = ""
    lists: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A table, the spec if it was drafted too, and what is left on either side.

    `copies`: those left of the source that hold the numbers of one that has a rule -> its name.
    """

    table: dict[str, Any]
    spec: Mapping[str, Any] | None
    variant: str
    matching: Matching
    copies: Mapping[str, str]

    @property
    def doubts(self) -> Mapping[str, Mapping[str, Any]]:
        """What is to be settled by a person: JSON pointer -> rule or ignore."""
        return in_doubt_of(self.table)

    @property
    def doubtful(self) -> list[Mapping[str, Any]]:
        """The rules among these."""
        return [rule for pointer, rule in self.doubts.items() if pointer.startswith("/rules/")]


def known_target(name: str, sources: Sequence[Named]) -> Target:
    """The variant whose shapes are nearest to those of `sources`, of a spec by name or path, or of a table's target."""
    spec = load_table(name).spec if name in names_of("table") else load_spec(name)
    document = find_document(spec.name if name in names_of("table") else name, "spec")
    shapes = Counter(tensor.shape for tensor in sources)

    def fit(config: Mapping[str, Value]) -> float:
        needed = Counter(spec.tensors(config).values())
        return (needed & shapes).total() / max(1, (needed | shapes).total())

    best = max(spec.variants, key=lambda variant: fit(variant.config))
    dtypes = spec.dtypes(best.config)
    tensors = tuple(Named(n, shape, dtypes.get(n, "")) for n, shape in spec.tensors(best.config).items())
    options = []
    for option in spec.options:
        more = spec.tensors({**best.config, option.field: 1})
        if len(more.get(option.tensor, ())) <= option.axis:
            raise TableError(
                f"{name}: /options/{option.field}: no tensor {option.tensor!r} has an axis {option.axis} where "
                f"{option.field!r} is 1"
            )
        options.append((option.field, Named(option.tensor, more[option.tensor]), option.axis))
    conditions = [
        (entry["name"] + suffix, str(entry["when"]))
        for entry in spec.entries
        if "when" in entry
        for suffix in (("",) if "shape" in entry else (".weight", ".bias"))
    ]
    fields = tuple(document.content["config"])
    at_path = name.endswith(".json")
    own = document.content if at_path and document.name not in names_of("spec") else None
    lists = _lists(best.config)
    return Target(spec.name, best.name, tensors, fields, tuple(conditions), tuple(options), own, spec.part, lists)


def _lists(config: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    return {name: value for name, value in config.items() if isinstance(value, (list, tuple))}


def specs_of(tensors: Iterable[Named], folder: Path) -> list[str]:
    """Known specs, by name, and specs in `folder`, by path, of which a variant has just these tensors."""
    wanted = {tensor.name: (tensor.shape, tensor.kind) for tensor in tensors}
    paths = sorted(str(path) for path in folder.glob("*.json") if path.is_file())
    found = []
    for name in (*names_of("spec"), *paths):
        try:
            spec = load_spec(name)
            if any(_described(spec, variant.config) == wanted for variant in spec.variants):
                found.append(name)
        except TableError:  # a table, or anything else that lies there
            continue
    return found


def _described(spec: Spec, config: Config) -> dict[str, tuple[Shape, str]]:
    dtypes = spec.dtypes(config)
    return {name: (shape, dtypes.get(name, "")) for name, shape in spec.tensors(config).items()}


def new_target(name: str, tensors: Sequence[Named]) -> Target:
    """A target that is known by its tensors only."""
    check_names(tensors, "target")
    spec = draft_spec(name, f"Drafted from the names and shapes of a checkpoint of {len(tensors)} tensors", tensors)
    lists = _lists(spec["variants"][name]["config"])
    return Target(name, name, tuple(tensors), tuple(spec["config"]), (), (), spec, lists=lists)


def check_names(tensors: Iterable[Named], side: str) -> None:
    """Raises TableError for names that no pattern can say."""
    wrong = [tensor.name for tensor in tensors if not is_writable(tensor.name)]
    if wrong:
        raise TableError(
            f"{len(wrong)} names of the {side} cannot be written in a table: a pattern is 1 to 360 of A-Z a-z 0-9 and "
            "_ . * + / space -. Rename or remove these tensors first",
            [quoted(name) for name in wrong],
        )


def propose(
    name: str,
    sources: Sequence[Named],
    target: Target,
    on_round: Callable[[int], None] = lambda _: None,
    root: str = "",
) -> Draft:
    """A table called `name` from `sources` to `target`; `root` is the key of the state dict in its file.

    Raises TableError for names that a table cannot say.
    """
    if not sources or not target.tensors:
        raise TableError(f"the {'target' if sources else 'source'} has no tensors; there is nothing to draft")
    sources, prefix = _without_wrappers(sources)
    check_names(sources, "source")
    matching = doubt_squares(match_shared(sources, target.tensors, on_round))
    if not matching.matches:
        raise TableError("no tensor of the source has a counterpart in the target; there is nothing to draft")
    writer = Writer(
        Names(tensor.name for tensor in sources),
        Names(tensor.name for tensor in target.tensors),
        target.fields,
        target.lists,
    )
    rules = list(_rules(writer, matching, target))
    left = list(matching.left_sources)
    for option, tensor, axis in target.options:
        rules.append(_optional(option, tensor, axis, left))
    copies = originals(sources, left)
    sections = {
        "saved_as": {key: text for key, text in (("root", root), ("prefix", prefix)) if text},
        "words": writer.words,
        "rules": rules,
        "ignore": list(writer.ignores(left, copies)),
        "absent": [entry | _when(target, tensors) for entry, tensors in writer.absents(matching.left_targets)],
    }
    table: dict[str, Any] = {
        "kind": "table",
        "name": name,
        "title": f"Drafted: {name} to {target.name}",
        "facts": ["Drafted from names and shapes alone; every 'doubt' is to be settled by a person, then removed."],
        "target": target.name,
    }
    table |= {"part": target.part} if target.part else {}
    table |= {section: content for section, content in sections.items() if content}
    return Draft(table, target.spec, target.variant, matching, copies)


def _rules(writer: Writer, matching: Matching, target: Target) -> Iterator[Rule]:
    """The rules of all matches, in the order of the target's tensors."""
    order = {tensor.name: i for i, tensor in enumerate(target.tensors)}
    written = [piece for found in matching.matches for piece in writer.rules(found)]
    written.sort(key=lambda piece: min(order[n] for unit in piece[1].targets for n in unit.names))
    for rule, part in written:
        rule |= _when(target, (t for u in part.targets for ps in u.members.values() for t in ps.values()))
        ordered: tuple[str, ...] = ("source", "target", "ops", "when", "doubt")
        yield {key: rule[key] for key in ordered if key in rule}


def _without_wrappers(sources: Sequence[Named]) -> tuple[list[Named], str]:
    """The tensors without the wrappers that every name has, and these; every table takes them off."""
    current, prefix = list(sources), ""
    wrappers = load_wrappers().segments
    while all("." in tensor.name and tensor.name.partition(".")[0] in wrappers for tensor in current) and (
        len({tensor.name.partition(".")[0] for tensor in current}) == 1
    ):
        prefix += current[0].name.partition(".")[0] + "."
        current = [replace(t, name=t.name.partition(".")[2]) for t in current]
    return current, prefix


def _when(target: Target, tensors: Iterable[Named]) -> dict[str, str]:
    """The `when` that the spec's entries of all these have, if they have the same one."""
    (condition, *others) = {_condition(target, tensor.name) for tensor in tensors}
    return {"when": condition} if condition and not others else {}


def _condition(target: Target, name: str) -> str | None:
    for pattern, when in target.conditions:
        if compile_pattern(pattern, {}, {}).match(name) is not None:
            return when
    return None


def _optional(option: str, tensor: Named, axis: int, left: list[Named]) -> Rule:
    """The rule for a tensor that decides `option`; the table needs it even for a checkpoint without the tensor."""

    def others(shape: Sequence[int]) -> list[int]:
        return [size for i, size in enumerate(shape) if i != axis]

    fits = [t for t in left if len(t.shape) == len(tensor.shape) and others(t.shape) == others(tensor.shape)]
    doubt = f"this checkpoint has no tensor for it: the name of the source is made up. What decides {option!r}?"
    source = f"drafted.no.counterpart.{tensor.name}"
    if fits:
        scores = Vocabulary([tensor.name, *(t.name for t in fits)]).similarity([t.name for t in fits], [tensor.name])
        best = fits[int(scores[:, 0].argmax())]
        left.remove(best)
        source, doubt = best.name, f"the shape fits, but nothing else says that it decides {option!r}"
    return {"source": source, "target": tensor.name, "when": option, "doubt": doubt}
