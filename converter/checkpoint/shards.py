"""Checkpoints in several files, the shards, with an index that says which tensor is in which.

As transformers and huggingface_hub save them: `model.safetensors.index.json`, or `pytorch_model.bin.index.json` whose
shards are files of torch.save. A shard holds its tensors by their names, without a state dict around them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from converter.checkpoint.index import Checkpoint
from converter.checkpoint.source import SourceFile
from converter.checkpoint.strict_json import read_json_object
from converter.display import file_name, listed, quoted
from converter.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NotACheckpointError,
    UnsupportedCheckpointError,
    damaged,
)

INDEX_SUFFIX = ".index.json"
SHARD_LIMIT = 1000  # each is a file held open; the largest model published so has some 200
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


def open_sharded(index: SourceFile, open_file: Callable[[SourceFile], Checkpoint]) -> Checkpoint:
    """The shards that an index file lists as one checkpoint; `open_file` opens each. Raises CheckpointError."""
    label = file_name(index.path)
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    _refuse_names(index, names)
    held: dict[str, str] = {}  # name of a tensor: of its shard
    with ExitStack() as opened:
        shards = []
        for name in names:
            source = opened.enter_context(SourceFile(index.path.parent / name))
            shard = open_file(source)
            if shard.root:
                raise UnsupportedCheckpointError(
                    f"{file_name(source.path)}: holds its tensors in {quoted(shard.root)}, a shard holds them by their "
                    "names alone. Load the shards where you trust them, and save one state dict."
                )
            for key in (*shard.tensors, *shard.unsupported, *shard.objects):
                if key in held:
                    raise damaged(label, f"tensor {quoted(key)} is in both {quoted(held[key])} and {quoted(name)}")
                if key not in weight_map and key not in shard.objects:
                    raise damaged(
                        label, f"tensor {quoted(key)} is in shard {quoted(name)}, and the index does not list it"
                    )
                held[key] = name
            shards.append(_with_keys_of_its_own(shard))
        for key, name in weight_map.items():
            if key not in held:
                raise damaged(label, f"lists tensor {quoted(key)} in shard {quoted(name)}, which does not hold it")
            if held[key] != name:
                raise damaged(
                    label, f"lists tensor {quoted(key)} in shard {quoted(name)}, but it is in {quoted(held[key])}"
                )
        opened.pop_all()
    index.close()
    return _joined(index.path, shards)


def alone(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint`, of one file. If its name is that of a shard and no index lists it, it says that others are missing.

    Raises NotACheckpointError for a shard that the index beside it lists together with others.
    """
    path = checkpoint.path
    match = SHARD.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return checkpoint
    index = path.with_name(f"{match[1]}{match[4]}{INDEX_SUFFIX}")
    shards: set[str] = set()
    if os.path.isfile(index):
        # without a sound index, the shard is a file like any other
        with suppress(CheckpointError), SourceFile(index) as source:
            shards = set(_weight_map(source).values())
    if path.name not in shards:
        others = f"the other shards: this is one of {int(match[3])} by its name, and no index beside it lists them"
        return replace(checkpoint, skipped=(*checkpoint.skipped, others))
    if len(shards) == 1:
        return checkpoint
    raise NotACheckpointError(
        f"{file_name(path)}: is one of the {len(shards)} shards of {quoted(index.name)}. Give that index, or its "
        "folder, to read all of them."
    )


def _weight_map(index: SourceFile) -> dict[str, str]:
    document = read_json_object(index, 0, index.size, "index")
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise damaged(file_name(index.path), "the index has no `weight_map` from tensor names to file names")
    return weight_map


def _refuse_names(index: SourceFile, names: list[str]) -> None:
    """Refuse shards that are not files beside the index."""
    label = file_name(index.path)
    if len(names) > SHARD_LIMIT:
        raise UnsupportedCheckpointError(
            f"{label}: lists {len(names)} shards, and {SHARD_LIMIT} is the limit. Save the weights in fewer files."
        )
    for name in names:
        if name in ("", "..") or Path(name).name != name or not name.isprintable():
            raise damaged(label, f"the shard {quoted(name)} is not a plain file name")
        if name.endswith(INDEX_SUFFIX):
            itself = "itself" if name == index.path.name else f"the index {quoted(name)}"
            raise damaged(label, f"lists {itself} as a shard")
    if missing := [name for name in names if not os.path.exists(index.path.parent / name)]:
        is_there = "which is not there" if len(missing) == 1 else f"{len(missing)} shards which are not there"
        raise CorruptCheckpointError(
            f"{label}: lists {listed(map(quoted, missing))}, {is_there}. Get all of its shards and put them beside it."
        )


def _with_keys_of_its_own(shard: Checkpoint) -> Checkpoint:
    """`shard`, with storages that cannot be taken for those of another: each file counts its own from 0."""
    for storage in {id(tensor.storage): tensor.storage for tensor in shard.tensors.values()}.values():
        storage.key = f"{shard.path.name}:{storage.key}"
    return shard


def _joined(path: Path, shards: list[Checkpoint]) -> Checkpoint:
    tensors = {key: tensor for shard in shards for key, tensor in shard.tensors.items()}
    is_torch = any(shard.layout != "safetensors" for shard in shards)
    return Checkpoint(
        path=path,
        layout="torch-sharded" if is_torch else "safetensors-sharded",
        sources=tuple(source for shard in shards for source in shard.sources),
        roots={"": len(tensors)},
        tensors=tensors,
        globals=tuple(sorted({name for shard in shards for name in shard.globals})),
        skipped=tuple(sentence for shard in shards for sentence in shard.skipped),
        metadata={key: value for shard in shards for key, value in shard.metadata.items()},
        unsupported={key: reason for shard in shards for key, reason in shard.unsupported.items()},
        objects={key: reason for shard in shards for key, reason in shard.objects.items()},
        adapters=tuple(dict.fromkeys(settings for shard in shards for settings in shard.adapters)),
    )
