"""What a value of a pickle is, in a few words; its contents are not looked at."""

from __future__ import annotations

from converter.checkpoint.modules import ORDERED_DICT, pairs_of
from converter.checkpoint.opcodes import Dict, Global, Instance, Persistent
from converter.checkpoint.tensors import is_tensor
from converter.display import counted, plain

_LISTED = 100  # entries of a list that are looked at


def describe(value: object) -> str:
    """`a tensor`, `a dict of 3 entries`, `an object made by a.b`, ..."""
    if is_tensor(value):
        return "a tensor"
    if is_array(value):
        return "a numpy array"
    if isinstance(value, Dict) or (isinstance(value, Instance) and value.function == ORDERED_DICT):
        return f"a dict of {counted(len(value.pairs), 'entry', 'entries')}"
    if isinstance(value, Instance):
        function = value.function if isinstance(value.function, Global) else "a computed function"
        return "an object of torch" if _is_private(function) else f"an object made by {function}"
    if isinstance(value, Global):
        return f"the name {value}"
    if isinstance(value, Persistent):
        return "a storage without a tensor"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {counted(len(value), 'entry', 'entries')}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def describe_key(key: object) -> str:
    """A key of a dict: a name as it is, anything else in words."""
    return plain(key) if isinstance(key, str) else f"a key that is {describe(key)}"


def is_array(value: object) -> bool:
    """Whether `value` would be a numpy array if it were unpickled."""
    function = value.function if isinstance(value, Instance) else None
    return (
        isinstance(function, Global)
        and function.module.startswith("numpy.")
        and function.name in ("_reconstruct", "_frombuffer")
    )


def is_optimizer(value: object) -> bool:
    """Whether it has the keys of the state of a torch.optim.Optimizer."""
    return {"state", "param_groups"} <= {key for key, _ in pairs_of(value) or () if isinstance(key, str)}


def without_weights(value: object) -> str:
    """What a file is in which no tensor has a name, and what to do."""
    save = "Save model.state_dict() with torch.save"
    if is_tensor(value):
        return f"holds a tensor alone, without a name. {save}"
    if isinstance(value, list | tuple):
        dicts = (any(is_tensor(below) for _, below in pairs_of(item) or ()) for item in value[:_LISTED])
        within = next((place for place, has_tensors in enumerate(dicts) if has_tensors), None)
        hint = "" if within is None else f"; entry {within} holds tensors by name: save that alone"
        return f"there is no state dict in it, but {describe(value)}{hint}. {save}"
    if is_optimizer(value) or any(is_optimizer(item) for _, item in pairs_of(value) or ()):
        return f"holds the state of an optimizer and no weights. Give the checkpoint of the model. {save}"
    return f"there is no state dict in it, but {describe(value)}. {save}"


def _is_private(function: object) -> bool:
    """Whether it is one of torch's own that has no name for users."""
    parts = [*function.module.split("."), function.name] if isinstance(function, Global) else []
    return parts[:1] == ["torch"] and any(part.startswith("_") for part in parts)
