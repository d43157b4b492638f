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
from typing import Any, TypeAlias

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
    reach: bool = True,
) -> None:
    """Run `model` on the CPU, in float64 and without dropout, and write what it got and made to `destination`.

    Args:
        weights: state dict that the model must fit name by name, .safetensors or of torch.save; None if it has its own.
        inputs: what it is called with, by the name of the argument; floating-point tensors become float64.
        outputs: from what it returns, tensors by name. By default all of them, called after keys, fields and places.
        reach: find parameters that have no part in the outputs; False saves the memory of a training step.
    """
    about = {"model": type(model).__qualname__, "torch": str(torch.__version__)}
    if weights is not None:
        model.load_state_dict(_state_dict(Path(weights)), strict=True)
        about["weights"] = f"{Path(weights).name}, sha256 {_sha256(Path(weights))}"
    alike = _alike(model.state_dict())
    model.double().eval()
    given = {name: _double(value) for name, value in inputs.items()}
    outputs = outputs or (lambda made: dict(_tensors("", made)))
    with torch.no_grad():
        found = dict(outputs(model(**given)))
    if not found:
        raise SystemExit(f"{type(model).__qualname__} returned no tensor; say with `outputs` what to record")
    unreached = _unreached(model, given, outputs) if reach else ([], 0)
    about |= {"alike": _facts(alike), "unreached": _facts(unreached)}
    kept = {f"input.{name}": value for name, value in given.items() if isinstance(value, Tensor)} | found
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in kept.items()}, destination, about)
    print(f"written: {destination}, " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items()))
    if alike[0]:
        print(
            f"warning: {_said(alike)} hold the numbers of another one, as zeros and ones do: which of them is where, "
            "no output shows. Take trained weights, or random numbers in every tensor"
        )
    if unreached[0]:
        print(
            f"warning: {_said(unreached)} have no part in these outputs, which say nothing of them. Record more outputs"
        )


_Some: TypeAlias = tuple[list[str], int]  # names of tensors, and how many tensors there are


def _facts(some: _Some) -> str:
    return json.dumps({"count": len(some[0]), "of": some[1], "first": some[0][:3]})


def _said(some: _Some) -> str:
    return f"{len(some[0])} of the {some[1]} tensors of the weights ({', '.join(some[0][:3])})"


def _unreached(model: nn.Module, given: Mapping[str, Any], outputs: Callable[[Any], Mapping[str, Tensor]]) -> _Some:
    """Parameters whose gradient is zero; none where gradients cannot be computed."""
    parameters = dict(model.named_parameters())
    try:
        model.requires_grad_(True)  # not of integers
        with torch.enable_grad():
            made = [value for value in outputs(model(**given)).values() if value.requires_grad]
        back = [torch.randn_like(value) for value in made]
        gradients = torch.autograd.grad(made, list(parameters.values()), back, allow_unused=True) if made else ()
    except RuntimeError:
        gradients = ()
    names = [name for name, gradient in zip(parameters, gradients) if gradient is None or not gradient.any()]  # noqa: B905
    return names, len(gradients)


def _alike(weights: Mapping[str, Tensor]) -> _Some:
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
