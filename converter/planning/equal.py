"""Tensors of one checkpoint that hold the same numbers: a module that its model uses under several names.

Where two names look at the same bytes of the file, nothing is read. Otherwise a few bytes of each tensor are compared
with those of others of its shape, and all bytes only where these agree. What is read is bounded by the size of the
file, in which views of one memory may be many, and each larger than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from hashlib import blake2b

from converter.checkpoint import Checkpoint
from converter.checkpoint.arrays import np
from converter.checkpoint.index import TensorInfo
from converter.mapping.cast import is_float

_SAMPLE = 64  # bytes, at each of _PLACES
_PLACES = 5
_MOST_VIEWS = 4  # times the bytes of one storage; a flat tensor of all weights, and these as parts of it, take 2


def same_numbers(checkpoint: Checkpoint) -> list[list[str]]:
    """Names of floating-point tensors in groups of equal shape, type and numbers; alone stands none.

    Tensors of one number throughout (fresh norms, zero biases) are equal by chance, and in a group only where they are
    the same bytes of the file. Views are left out that are larger than their storage, or many that overlap. Raises
    CorruptCheckpointError if bytes that were read are damaged.
    """
    infos = checkpoint.tensors
    groups = []
    for alike in _several(_candidates(checkpoint), lambda name: (infos[name].shape, infos[name].dtype.name)):
        # of names for the same bytes of the file, the first stands for all
        views = {names[0]: names for names in _apart(alike, lambda name: _view(checkpoint, infos[name]))}
        for sampled in _several(views, lambda name: _sample(checkpoint, infos[name])):
            for first, *others in _several(sampled, lambda name: _content(checkpoint, name)):
                views[first] = views[first] + [name for other in others for name in views.pop(other)]
        groups += [names for names in views.values() if len(names) > 1]
    return groups


def _candidates(checkpoint: Checkpoint) -> list[str]:
    floats = [info for info in checkpoint.tensors.values() if is_float(info.dtype) and info.numel > 1]
    computed = set(checkpoint.computed)
    stored = [info for info in floats if info.name not in computed and info.nbytes <= info.storage.nbytes]
    sizes: Counter[str] = Counter()  # of the different views of each storage, together
    for info in {_view(checkpoint, info): info for info in stored}.values():
        sizes[info.storage.key] += info.nbytes
    kept = computed | {info.name for info in stored if sizes[info.storage.key] <= _MOST_VIEWS * info.storage.nbytes}
    return [info.name for info in floats if info.name in kept]


def _apart(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return list(found.values())


def _several(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Names of equal keys, where there are several."""
    return [group for group in _apart(names, key) if len(group) > 1]


def _view(checkpoint: Checkpoint, info: TensorInfo) -> Hashable:
    """Equal for names of the same elements."""
    if info.name in checkpoint.computed:
        return info.name
    return info.storage.key, info.offset, info.strides, info.conjugated, info.negated


def _sample(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    """A few bytes of a tensor, equal for equal tensors."""
    size, span = min(_SAMPLE, info.nbytes), max(0, info.nbytes - _SAMPLE)
    places = [span * place // (_PLACES - 1) for place in range(_PLACES)]
    if info.name in checkpoint.computed or not info.contiguous or info.conjugated or info.negated:
        data = checkpoint.read(info.name).tobytes()
        return b"".join(data[at : at + size] for at in places)
    start = info.storage.offset + info.offset * info.dtype.itemsize
    return b"".join(info.storage.source.read(start + at, size, info.storage.label) for at in places)


def _content(checkpoint: Checkpoint, name: str) -> Hashable:
    """Equal for equal numbers; the name itself for one number throughout."""
    digest, first, constant = blake2b(), b"", True
    size = checkpoint.tensors[name].dtype.itemsize
    for chunk in checkpoint.chunks(name):
        digest.update(chunk)
        first = first or bytes(chunk[:size])
        elements = np.frombuffer(chunk, np.uint8).reshape(-1, size)
        constant = constant and bool((elements == np.frombuffer(first, np.uint8)).all())
    return name if constant else digest.digest()
