"""From the inert value of a pickled tensor to a view that is proved to lie inside its storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from converter.checkpoint.dtypes import BY_STORAGE_CLASS, DTYPES, DType
from converter.checkpoint.index import TensorInfo
from converter.checkpoint.opcodes import Dict, Global, Instance, Persistent
from converter.checkpoint.storage import Storage
from converter.display import number, plain, quoted
from converter.errors import UnsupportedCheckpointError, damaged

DIMENSION_LIMIT = 32  # numpy's own before 2.0
EXPANSION_LIMIT = 64 * 1024 * 1024  # bytes of a tensor that has more elements than its storage

# functions, with their fewest and most arguments; source: torch/_utils.py of torch 2.13
_ORDINARY = {
    Global("torch._utils", "_rebuild_tensor"): (4, 4),
    Global("torch._utils", "_rebuild_tensor_v2"): (6, 7),
    Global("torch._utils", "_rebuild_tensor_v3"): (7, 8),
}
_WITH_STATE = Global("torch._utils", "_rebuild_parameter_with_state")
_WRAPPERS = {Global("torch._utils", "_rebuild_parameter"): (3, 3), _WITH_STATE: (4, 4)}
# attributes that every tensor has. To set the first three changes its values, even where other tensors see them; torch
# refuses most values of the others, and writes none of them
_OWN = {"data", "real", "imag", "grad", "_grad", "grad_fn", "_grad_fn", "requires_grad", "names"}
_KINDS = (  # words in the names of torch's other functions
    ("sparse", "sparse"),
    ("qtensor", "quantised"),
    ("nested", "a nested tensor"),
    ("meta", "on the meta device, without values"),
    ("wrapper_subclass", "of a class that holds its values in parts"),
)
_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")
_UNTYPED = {
    Global(module, name)
    for module in ("torch", "torch.storage")
    for name in ("UntypedStorage", "_UntypedStorage")
}  # fmt: skip
_QUANTISED = {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}


@dataclass(frozen=True, slots=True)
class StorageReference:
    """What a pickle says of a storage.

    Args:
        dtype: of its elements; None if it is bytes without a type, or quantised.
        itemsize, numel: bytes of an element, and how many there are.
        view: legacy only: key, first element and length of a part that has a name of its own.
    """

    key: str
    dtype: DType | None
    itemsize: int
    numel: int
    view: tuple[str, int, int] | None

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.numel * self.itemsize

    def check(self, first: StorageReference) -> None:
        """Raises Malformed if the storage is another one by the `first` reference to it, which counts in torch."""
        if (self.dtype, self.itemsize, self.numel) != (first.dtype, first.itemsize, first.numel):
            raise Malformed(
                f"its storage {quoted(self.key)} has {self.numel} elements of {self.dtype or 'no type'} here and "
                f"{first.numel} of {first.dtype or 'no type'} where it is first referred to"
            )


class Unreadable(Exception):
    """A sound tensor of a kind that is not read; the message says which and what to do."""


class Malformed(Exception):
    """A value that no sound file holds; the message says what is wrong."""


def is_tensor(value: object) -> bool:
    """`value` would be a tensor if it were unpickled, of a kind that is read or not."""
    return (
        isinstance(value, Instance)
        and isinstance(value.function, Global)
        and value.function.module in ("torch._utils", "torch._tensor")
        and value.function.name.startswith("_rebuild_")
    )


def build_tensor(name: str, value: object, label: str, find: Callable[[StorageReference], Storage]) -> TensorInfo:
    """The tensor that `value` describes; `find` gives the storage it refers to.

    Raises Unreadable for a tensor of another kind, CorruptCheckpointError for one that contradicts itself or its
    storage; `label` begins that message.
    """
    try:
        function, arguments, gradients = _unwrap(value)
        tensor = _view(name, function, arguments, find)
        for gradient in (*gradients, *arguments[4:5]):
            _check_gradient(gradient, tensor.dtype)
        return tensor
    except Malformed as error:
        raise damaged(label, f"tensor {quoted(name)}: {error}") from None


def refuse_set_values(calls: Iterable[Instance], label: str) -> None:
    """Raise UnsupportedCheckpointError if a call may give a tensor other values than its storage has.

    They may be seen through other tensors, too, wherever in the pickle the call stands.
    """
    for call in calls:
        if call.function in (_SUBCLASS, _WITH_STATE) and isinstance(call.arguments, tuple):
            state = call.arguments[-1] if len(call.arguments) == 4 else None
            for part in state if isinstance(state, tuple) else (state,):
                if any(key in _OWN for key, _ in getattr(part, "pairs", ()) if isinstance(key, str)):
                    raise UnsupportedCheckpointError(
                        f"{label}: it sets values of a tensor where it is built. Load it where you trust it, and save "
                        "ordinary tensors."
                    )


def _check_gradient(gradient: object, dtype: DType) -> None:
    if not isinstance(gradient, bool):
        raise Malformed("its requires_grad is neither true nor false")
    if gradient and dtype.kind not in ("float", "complex"):
        raise Malformed(f"it requires gradients, which {dtype} cannot have")


def _unwrap(value: object) -> tuple[Global, tuple[object, ...], list[object]]:
    """Function and arguments of the innermost tensor of parameters and subclasses, and which require gradients."""
    gradients: list[object] = []
    for _ in range(8):  # a parameter of a subclass of ...; a value that contains itself ends here too
        if not (isinstance(value, Instance) and isinstance(value.function, Global)):
            raise Malformed("its wrapper does not contain a tensor")
        if value.states or value.pairs or value.items:
            raise Unreadable("it is changed by code after it was built; save it as an ordinary tensor")
        function, arguments = value.function, value.arguments
        if not isinstance(arguments, tuple):
            raise Malformed("it is not built of a tuple of arguments")
        if function in _ORDINARY:
            return function, arguments, gradients
        if function in _WRAPPERS:
            _check_count(arguments, *_WRAPPERS[function])
            value, gradient = arguments[:2]
            gradients.append(gradient)
        elif function == _SUBCLASS and len(arguments) == 4:
            value = Instance(arguments[0], arguments[2])
        else:
            break
    is_private = function.module.startswith("torch") and function.name.startswith("_")
    kind = next((kind for word, kind in _KINDS if word in function.name), "of a kind that is not read")
    raise Unreadable(f"it is {kind if is_private else f'built by {function}'}. Save it as an ordinary tensor")


def _view(
    name: str, function: Global, arguments: tuple[object, ...], find: Callable[[StorageReference], Storage]
) -> TensorInfo:
    _check_count(arguments, *_ORDINARY[function])
    offset = _count(arguments[1], "the offset")
    shape = _counts(arguments[2], "the shape")
    strides = _counts(arguments[3], "the strides")
    if len(shape) != len(strides):
        raise Malformed(f"it has {len(shape)} dimensions, but {len(strides)} strides")
    reference = storage_reference(arguments[0])
    typed = function.name != "_rebuild_tensor_v3"
    dtype = reference.dtype if typed else _named_dtype(arguments[6])
    if dtype is None:
        raise Unreadable("its elements are quantised or without a type. Save it as an ordinary tensor")
    storage = find(reference)
    component = dtype.itemsize // dtype.components
    of_storage = reference.itemsize // (reference.dtype.components if reference.dtype else 1)
    if storage.big_endian and component != of_storage:  # torch reverses the bytes of the storage's elements
        raise Unreadable("its big-endian storage has elements of another size. Save it where numbers are little-endian")
    flags = _flags(arguments[6 if typed else 7 :])
    if ("conj" in flags and dtype.kind != "complex") or ("neg" in flags and dtype.kind not in ("float", "complex")):
        raise Malformed(f"{dtype} has no lazy {' or '.join(sorted(flags))}")
    tensor = TensorInfo(
        name, dtype, shape, strides, storage, offset, conjugated="conj" in flags, negated="neg" in flags
    )  # fmt: skip
    _prove_inside(tensor)
    return tensor


def _check_count(arguments: tuple[object, ...], fewest: int, most: int) -> None:
    if not fewest <= len(arguments) <= most:
        raise Malformed(f"it is built of {len(arguments)} arguments, expected {fewest} to {most}")


def _prove_inside(tensor: TensorInfo) -> None:
    """Check that every element lies in the storage, and that an expanded view stays within `EXPANSION_LIMIT`."""
    available = tensor.storage.nbytes // tensor.dtype.itemsize
    _, stop = tensor.extent
    if tensor.numel and stop > available:
        raise Malformed(f"its view ends at element {number(stop)}, but its storage has {number(available)}")
    if tensor.numel > available and tensor.nbytes > EXPANSION_LIMIT:
        raise Unreadable(
            f"it expands {available} elements to {number(tensor.numel)}, beyond {EXPANSION_LIMIT} bytes. "
            "Save it unexpanded"
        )


def first_references(references: Iterable[Persistent]) -> dict[str, Persistent]:
    """By the key of a storage, what refers to it first; other references are left out."""
    first: dict[str, Persistent] = {}
    for persistent in references:
        match persistent.reference:
            case ("storage", _, str(key), *_):
                first.setdefault(key, persistent)
    return first


def storage_reference(value: object) -> StorageReference:
    """What torch's persistent id says. Raises Malformed, or Unreadable for an unknown storage class."""
    reference = value.reference if isinstance(value, Persistent) else None
    if not (isinstance(reference, tuple) and len(reference) in (5, 6) and reference[0] == "storage"):
        raise Malformed("it does not refer to a storage")
    _, kind, key, _, numel = reference[:5]
    if not (isinstance(kind, Global) and isinstance(key, str)):
        raise Malformed("its storage has no class and key")
    if kind in _UNTYPED:
        dtype, itemsize = None, 1
    elif kind.module in ("torch", "torch.cuda") and kind.name in BY_STORAGE_CLASS:
        dtype = BY_STORAGE_CLASS[kind.name]
        itemsize = dtype.itemsize
    elif kind.module == "torch" and kind.name in _QUANTISED:
        dtype, itemsize = None, _QUANTISED[kind.name]
    else:
        raise Unreadable(f"its storage is a {kind}, which is unknown. Save it as an ordinary tensor")
    view = reference[5] if len(reference) == 6 else None
    return StorageReference(key, dtype, itemsize, _count(numel, "the size of its storage"), _part(view))


def _part(view: object) -> tuple[str, int, int] | None:
    if view is None:
        return None
    if not (isinstance(view, tuple) and len(view) == 3 and isinstance(view[0], str)):
        raise Malformed("the part of the storage that it looks into is not described by key, offset and size")
    return view[0], _count(view[1], "the offset in its storage"), _count(view[2], "the size in its storage")


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{what} is not an integer")
    if not 0 <= value < 1 << 63:
        raise Malformed(f"{what} is {number(value)}")
    return value


def _counts(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise Malformed(f"{what} is not a tuple")
    if len(value) > DIMENSION_LIMIT:
        raise Unreadable(f"it has {len(value)} dimensions, and {DIMENSION_LIMIT} is the limit. Reshape it")
    return tuple(_count(item, f"an entry of {what}") for item in value)


def _named_dtype(value: object) -> DType | None:
    if not (isinstance(value, Global) and value.module == "torch"):
        raise Malformed("its dtype is not a dtype of torch")
    if value.name not in DTYPES:
        raise Unreadable(f"its dtype is {plain(value.name)}, which is unknown. Save it in another")
    return DTYPES[value.name]


def _flags(metadata: tuple[object, ...]) -> set[str]:
    """The lazy bits that are set: among conj and neg."""
    if not metadata or metadata[0] is None:
        return set()
    if not isinstance(metadata[0], Dict):
        raise Malformed("its metadata is not a dict")
    flags: set[str] = set()
    for key, value in metadata[0].pairs:
        # torch sets a bit that is stated, even if it is stated as false; it writes none that is false
        if not (isinstance(key, str) and key in ("conj", "neg") and key not in flags and value is True):
            raise Unreadable("it carries metadata other than conj and neg. Save it as an ordinary tensor")
        flags.add(key)
    return flags
