"""What the name of a destination says: one file, a folder, or by mistake neither."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from converter.display import file_name, plain
from converter.errors import DestinationError

ARCHIVES = (".pth", ".pt", ".bin")  # names of files in torch.save's layout
WRITTEN = (".safetensors", *ARCHIVES)
# of files of other kinds
_OTHERS = {
    ".7z", ".ckpt", ".csv", ".gguf", ".gz", ".h5", ".hdf5", ".html", ".jpeg", ".jpg", ".json", ".keras", ".md",
    ".model", ".msgpack", ".npy", ".npz", ".onnx", ".params", ".pb", ".pdparams", ".pickle", ".pkl", ".png", ".rar",
    ".sft", ".st", ".tar", ".tflite", ".tgz", ".th", ".torch", ".ts", ".txt", ".weights", ".xml", ".xz", ".yaml",
    ".yml", ".zip", ".zst",
}  # fmt: skip


def is_file_name(destination: Path) -> bool:
    """Whether one file is to be written under that name, rather than a folder."""
    return destination.suffix in WRITTEN


def meant_file(destination: Path) -> str | None:
    """The name of a file that was meant, where `destination` is no folder and reads like a file that is not written.

    `a.safetensor` and `A.PTH` are slips, `a.ckpt` and `a.pth.tar` are files of other kinds; `a.v2` is a folder.
    """
    if is_file_name(destination) or os.path.isdir(destination):
        return None
    suffix = destination.suffix.lower()
    if slip := _nearest(suffix):
        return destination.stem + slip
    if suffix not in _OTHERS:
        return None
    while destination.suffix.lower() in _OTHERS:
        destination = destination.with_suffix("")
    return destination.name if is_file_name(destination) else f"{destination.name}.safetensors"


def _nearest(suffix: str) -> str | None:
    """The suffix of `WRITTEN` that `suffix` is a slip of: all but the first letter may be wrong, few are."""
    alike = [written for written in WRITTEN if written[:2] == suffix[:2]]
    same = [written for written in alike if sorted(written) == sorted(suffix)]
    return next(iter(same or difflib.get_close_matches(suffix, alike, n=1, cutoff=0.85)), None)


def check_folder_name(destination: Path, what: str) -> None:
    """Refuse the name of a file for a folder that is not there yet. `what`: how the sentence begins, "a package is"."""
    if not os.path.isdir(destination) and (is_file_name(destination) or meant_file(destination)):
        raise DestinationError(
            f"{file_name(destination)}: {what} a folder; choose a name without {plain(destination.suffix)}"
        )
