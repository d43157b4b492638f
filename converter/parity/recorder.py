"""Record what a model computes, for `converter compare`. This file needs torch and safetensors, and nothing else.

`converter compare --template > record.py` writes it. Beside it, a script of one's own for each of the two models:

    import sys
    import torch
    from record import record
    from their_package import TheirModel

    weights, destination = sys.argv[1:]
    generator = torch.Generator().manual_seed(0)  # the same inputs in both scripts
    images = torch.randn(2, 3, 224, 224, generator=generator)
    record(TheirModel(), weights, destination, inputs={"images": images})

and then

    python record_one.py one.safetensors one-outputs.safetensors
    python record_other.py other.safetensors other-outputs.safetensors
    converter compare one-outputs.safetensors other-outputs.safetensors

Outputs are compared by name. Where the two models call theirs otherwise, `outputs` says what is what, in the same words
in both scripts: record(..., outputs=lambda made: {"tokens": made.last_hidden_state}).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def record(
    model: nn.Module,
    weights: str | Path | None,
    destination: str | Path,
    *,
    inputs: Mapping[str, Any],
    outputs: Callable[[Any], Mapping[str, Tensor]] | None = None,
) -> None:
    """Run `model` on the CPU, in float64 and without dropout, and write what it got and made to `destination`.

    Args:
        weights: state dict that the model must fit name by name, .safetensors or of torch.save; None if it has its own.
        inputs: what it is called with, by the name of the argument; floating-point tensors become float64.
        outputs: from what it returns, tensors by name. By default all of them, called after keys, fields and places.
    """
    about = {"model": type(model).__qualname__, "torch": str(torch.__version__)}
    if weights is not None:
        model.load_state_dict(_state_dict(Path(weights)), strict=True)
        about["weights"] = f"{Path(weights).name}, sha256 {_sha256(Path(weights))}"
    alike, of = _alike(model.state_dict())
    about["alike"] = json.dumps({"alike": len(alike), "of": of, "first": alike[:3]})
    model.double().eval()
    given = {name: _double(value) for name, value in inputs.items()}
    with torch.inference_mode():
        made = model(**given)
    found = dict(_tensors("", made)) if outputs is None else dict(outputs(made))
    if not found:
        raise SystemExit(f"{type(model).__qualname__} returned no tensor; say with `outputs` what to record")
    kept = {f"input.{name}": value for name, value in given.items() if isinstance(value, Tensor)} | found
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in kept.items()}, destination, about)
    print(f"written: {destination}, " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items()))
    if alike:
        print(
            f"warning: {len(alike)} of the {of} tensors of the weights hold the numbers of another one, as zeros and "
            f"ones do ({', '.join(alike[:3])}): which of them is where, no output shows. Take trained weights, or "
            "random numbers in every tensor"
        )


def _alike(weights: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """Floating-point tensors with the numbers of another one of their size, and how many there are in all.

    A parameter that has two names is one.
    """
    found: dict[tuple[int, float, float], dict[int, list[str]]] = {}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().cpu().double().flatten()
            sums = float(flat.sum()), float(flat @ torch.arange(1.0, len(flat) + 1, dtype=flat.dtype))
            found.setdefault((len(flat), *sums), {}).setdefault(tensor.data_ptr(), []).append(name)
    several = [same for same in found.values() if len(same) > 1]
    alike = [name for same in several for names in same.values() for name in names]
    return alike, sum(len(names) for same in found.values() for names in same.values())


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(name: str, made: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of what a model returns, by keys, fields and places with dots between."""
    if isinstance(made, Tensor):
        yield name or "output", made
        return
    if hasattr(made, "_asdict"):  # a namedtuple
        made = made._asdict()
    items = made.items() if isinstance(made, Mapping) else enumerate(made) if isinstance(made, (list, tuple)) else ()
    for key, value in items:
        yield from _tensors(f"{name}.{key}" if name else str(key), value)
