"""A pickled module, `torch.save(model)`, as the state dict that its `state_dict()` would give.

A module is a tree: each has its `_parameters`, its `_buffers` and the modules below it, `_modules`. That is all that is
needed, so its class is neither imported nor run. Source: torch/nn/modules/module.py (`state_dict`) of torch 2.13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from converter.checkpoint.adapters import AdapterSettings, adapter_settings
from converter.checkpoint.opcodes import Dict, Global, Instance, Persistent
from converter.display import counted, listed, plain
from converter.errors import UnsupportedCheckpointError

Pairs = list[tuple[object, object]]
ORDERED_DICT = Global("collections", "OrderedDict")
_PARAMETERS, _BUFFERS, _MODULES = "_parameters", "_buffers", "_modules"
_TRANSIENT = "_non_persistent_buffers_set"  # names of buffers that state_dict() leaves out
_DEEPEST = 100
_MOST = 200_000  # names of tensors and modules of one file; the largest known model has some 3,000
_LONGEST = 1 << 26  # characters of all names
_ATTRIBUTES = 2_000_000  # of all modules, each as often as it is met
_SHOWN = 12  # attributes named in a sentence


@dataclass(frozen=True, slots=True)
class ModuleState:
    """What `state_dict()` would give, in its order, sentences on what else the modules hold, and their adapters."""

    pairs: Pairs
    aside: tuple[str, ...]
    adapters: tuple[AdapterSettings, ...]


@dataclass(slots=True)
class Budget:
    """What is left of the names that the modules of one file may have together."""

    names: int = _MOST
    characters: int = _LONGEST
    attributes: int = _ATTRIBUTES

    def take(self, names: Iterable[str], label: str, attributes: int = 0) -> None:
        """Raises UnsupportedCheckpointError once there is nothing left."""
        for name in names:
            self.names -= 1
            self.characters -= len(name)
        self.attributes -= attributes
        if min(self.names, self.characters, self.attributes) < 0:
            raise UnsupportedCheckpointError(
                f"{label}: its pickled modules have more than {_MOST} names, or share modules in a way that makes more "
                "of them. Load it where you trust it, and save model.state_dict()."
            )


def pairs_of(value: object) -> Pairs | None:
    """The items of a dict, or of an object filled like one, as the list that holds them; None for anything else."""
    if isinstance(value, Dict):
        return value.pairs
    if not isinstance(value, Instance):
        return None
    return value.pairs if value.function == ORDERED_DICT else value.pairs or None


def attributes_of(value: object) -> Pairs:
    """The attributes of any object, as far as they were set by one dict."""
    states = value.states if isinstance(value, Instance) else []
    return states[0].pairs if len(states) == 1 and isinstance(states[0], Dict) else []


def is_module(value: object) -> bool:
    """Whether unpickling would make a module of torch, as far as its attributes tell."""
    return _parts(value) is not None


def module_state_dict(module: Instance, label: str, budget: Budget) -> ModuleState:
    """The state dict of a pickled module. `label` begins messages; `budget` is that of the file.

    Raises UnsupportedCheckpointError for modules that contain themselves, or are beyond what a model can be.
    """
    reader = _Reader(label, budget)
    reader.read(module, "", 0)
    return ModuleState(reader.pairs, tuple(reader.sentences(module)), tuple(reader.adapters))


@dataclass(slots=True)
class _Reader:
    label: str
    budget: Budget
    pairs: Pairs = field(default_factory=list)
    modules: int = 0
    hooks: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    transient: list[str] = field(default_factory=list)
    adapters: dict[AdapterSettings, None] = field(default_factory=dict)

    def read(self, module: object, prefix: str, depth: int) -> None:
        attributes = _parts(module)
        if attributes is None:  # whatever stands in the place of a module
            self.pairs.append((prefix.removesuffix("."), module))
            return
        if depth > _DEEPEST:
            raise UnsupportedCheckpointError(
                f"{self.label}: a pickled module contains itself, or has more than {_DEEPEST} levels. Load it where "
                "you trust it, and save model.state_dict()."
            )
        self.modules += 1
        self.budget.take((), self.label, len(attributes))
        configs = [attributes_of(config) for _, config in _entries(attributes.get("peft_config"))]
        for pairs, path in ((attributes.items(), prefix), *((config, "peft_config") for config in configs)):
            if found := adapter_settings(pairs, ["a module", path]):
                self.adapters[found] = None
        left_out = _names(attributes.get(_TRANSIENT))
        for kind in (_PARAMETERS, _BUFFERS):
            for name, item in _entries(attributes[kind]):
                if kind == _BUFFERS and name in left_out:
                    self.transient.append(prefix + name)
                elif item is not None:  # a bias that there is not
                    self.pairs.append((prefix + name, item))
                self.budget.take([prefix + name], self.label)
        for name, item in attributes.items():
            if name.endswith("_hooks"):
                self.hooks[name] += bool(pairs_of(item))
            elif not name.startswith("_") and name != "training":  # torch's own
                self.others[name] += 1
        for name, below in _entries(attributes[_MODULES]):
            self.budget.take([prefix + name], self.label)
            if below is not None:
                self.read(below, f"{prefix}{name}.", depth + 1)

    def sentences(self, module: Instance) -> list[str]:
        said = [f"the module {_class_of(module)}, of {counted(self.modules, 'module')}: read, not imported"]
        said += [f"{plain(name)} of {counted(count, 'module')}: not run" for name, count in self.hooks.items() if count]
        if self.others:
            rare_first = sorted(self.others, key=lambda name: self.others[name])
            said.append(f"other attributes of its modules: {listed(map(plain, rare_first), _SHOWN)}")
        if self.transient:
            buffers = counted(len(self.transient), "buffer")
            said.append(f"{buffers} that state_dict() leaves out, too: {listed(map(plain, self.transient), 3)}")
        return said


def _parts(value: object) -> dict[str, object] | None:
    """The attributes of a module; None for anything else, and for an object that is changed after it was built."""
    if not isinstance(value, Instance) or value.pairs or value.items:
        return None
    attributes = attributes_of(value)
    found = {name: item for name, item in attributes if isinstance(name, str)}
    parts = [found.get(name) for name in (_PARAMETERS, _BUFFERS, _MODULES)]
    if len(found) != len(attributes) or not all(
        isinstance(part, Dict) or (isinstance(part, Instance) and part.function == ORDERED_DICT) for part in parts
    ):
        return None
    return found


def _entries(value: object) -> list[tuple[str, object]]:
    """The entries of a dict whose keys are names."""
    return [(key, item) for key, item in pairs_of(value) or () if isinstance(key, str)]


def _names(value: object) -> set[str]:
    """The strings of a set, as any protocol of pickle writes one."""
    if isinstance(value, Instance) and isinstance(value.arguments, tuple) and value.arguments:
        value = value.arguments[0]
    return {item for item in value if isinstance(item, str)} if isinstance(value, list | tuple) else set()


def _class_of(module: Instance) -> str:
    """The name of the class; the old layout keeps it, with its source text, outside the pickle."""
    named = module.function
    if isinstance(named, Global) and named.name == "_reconstructor" and isinstance(module.arguments, tuple):
        named = next(iter(module.arguments), None)
    if isinstance(named, Persistent) and isinstance(named.reference, tuple):
        named = next((part for part in named.reference if isinstance(part, Global)), None)
    return str(named) if isinstance(named, Global) else "of an unknown class"
