"""Which file of a folder is meant; and folders that are a checkpoint in a form that is not read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from converter.checkpoint.foreign import DCP_PART, ZERO_PART, dcp_in, unpacked_in, zero_in
from converter.checkpoint.packed import WEIGHTS
from converter.checkpoint.shards import INDEX_SUFFIX, SHARD
from converter.display import file_name, listed, plain, quoted
from converter.errors import NotACheckpointError, UnsupportedCheckpointError

# as transformers names them and prefers them: safetensors before files of torch.save
_NAMES = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_ENTRIES = 10_000  # of a folder that are looked at
# what trainers keep beside the weights
_NO_WEIGHTS = re.compile(r"(?:training_args|optimizer|scheduler|scaler|random_states|rng_state).*")
_OTHERS = (
    (r"saved_model\.pb|keras_metadata\.pb|.*\.data-\d{5}-of-\d{5}|tf_model\.h5", "TensorFlow"),
    (r".*\.msgpack", "Flax"),
)


def find_in_folder(folder: Path) -> Path:
    """The checkpoint in `folder`, by its name.

    Raises NotACheckpointError if there is none, or two of one kind; UnsupportedCheckpointError if the files of the
    folder are one checkpoint together.
    """
    for names in _NAMES:
        found = [folder / name for name in names if os.path.exists(folder / name)]
        if len(found) > 1:
            raise NotACheckpointError(
                f"{file_name(folder)}: is a folder with both {' and '.join(names)}. Give the checkpoint file itself."
            )
        if found:
            return found[0]
    there = _entries(folder)
    _refuse_parts(folder, there)
    raise NotACheckpointError(f"{file_name(folder)}: is a folder {_describe(folder, there)}.")


def weights_among(names: Iterable[str]) -> list[str]:
    """Those files that may hold weights, by their names."""
    return [name for name in names if WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name.rpartition("/")[2])]


def _entries(folder: Path) -> list[str]:
    """Names of what is in a folder, sorted. Raises NotACheckpointError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _ENTRIES))
    except OSError as error:
        message = f"{file_name(folder)}: cannot be listed ({error.strerror}). Check its permissions."
        raise NotACheckpointError(message) from error


def _refuse_parts(folder: Path, there: list[str]) -> None:
    """Refuse a folder whose files are one checkpoint together, and say what joins them."""
    step = _last_step(folder, there)
    in_step = _entries(folder / step) if step else []
    what = unpacked_in(folder)
    if any(map(DCP_PART.fullmatch, there)):
        what = dcp_in(folder)
    elif any(map(ZERO_PART.fullmatch, there)):
        what = zero_in(Path(os.path.abspath(folder)).parent)
    elif any(map(ZERO_PART.fullmatch, in_step)) or "zero_to_fp32.py" in there:
        what = zero_in(folder)
    elif "adapter_config.json" in there and {"adapter_model.safetensors", "adapter_model.bin"} & {*there}:
        what = (
            "a LoRA adapter alone: differences, no weights. Load it onto its model with peft, call merge_and_unload() "
            "and save the model that this returns"
        )
    if what is not None:
        raise UnsupportedCheckpointError(f"{file_name(folder)}: is {what}.")


def _last_step(folder: Path, there: list[str]) -> str | None:
    """The newest folder that DeepSpeed wrote, if there is one."""
    steps = [name for name in there if re.fullmatch(r"global_step\d+", name) and os.path.isdir(folder / name)]
    return max(steps, key=lambda name: int(name.removeprefix("global_step")), default=None)


def _describe(folder: Path, there: list[str]) -> str:
    """What a folder without a name that is known holds, and what to give."""
    found = [name for name in there if name.endswith(INDEX_SUFFIX)]
    found = found or weights_among(there)
    if found and all(SHARD.fullmatch(name) for name in found):
        shown = listed(map(quoted, found))
        return f"with shards ({shown}), but without their index. Get the {INDEX_SUFFIX} file that lists them"
    if len(found) == 1:
        return f"with one checkpoint in it. Give that file: {plain(str(folder / found[0]), 1024)}"
    if found:
        return f"with {len(found)} files that may be checkpoints: {listed(map(quoted, found))}. Give one of them"
    for pattern, framework in _OTHERS:
        if any(re.fullmatch(pattern, name, re.DOTALL) for name in there):
            return f"with a model of {framework}. Give the PyTorch checkpoint"
    if step := _last_step(folder, there):
        return f"of DeepSpeed. Give mp_rank_00_model_states.pt in its {step}"
    known = ", ".join(name for names in _NAMES for name in names)
    return f"without any of {known}. Give the checkpoint file itself"
