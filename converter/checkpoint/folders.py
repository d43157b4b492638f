"""Which file of a folder is meant."""

from __future__ import annotations

from pathlib import Path

from converter.display import file_name
from converter.errors import NotACheckpointError

# as transformers names them and prefers them: safetensors before files of torch.save
_NAMES = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)


def find_in_folder(folder: Path) -> Path:
    """The checkpoint in `folder`, by its name. Raises NotACheckpointError if there is none, or two of one kind."""
    for names in _NAMES:
        found = [folder / name for name in names if (folder / name).exists()]
        if len(found) > 1:
            raise NotACheckpointError(
                f"{file_name(folder)}: is a folder with both {' and '.join(names)}. Give the checkpoint file itself."
            )
        if found:
            return found[0]
    known = ", ".join(name for pair in _NAMES for name in pair)
    raise NotACheckpointError(
        f"{file_name(folder)}: is a folder without any of {known}. Give the checkpoint file itself."
    )
