"""What tests of the Hub share: whose token, which repository, other shapes of the model, and how a refusal reads."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

CANARY = "hf_CanaryThatMustNeverBeShown0123456789"
REPO = "somebody/glip-small"


def shard(folder: Path) -> Path:
    """The same weights in two files; the certificate is of tensors, so it stays what it is."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refused(request: Callable[[], object]) -> str:
    """The message of the HubError that it raises, with the token in no part of the traceback."""
    from converter.errors import HubError

    with pytest.raises(HubError) as caught:
        request()
    error = caught.value
    assert CANARY not in "".join(traceback.format_exception(error))
    assert error.__context__ is None or CANARY not in repr(error.__context__)
    return str(error)
