"""Where and in which numbers a model runs: its device, its dtype, and all that decides the last bits of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from converter import __version__
from converter.errors import CaptureError

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


def find_device(device: str | torch.device) -> torch.device:
    """The device, by name. CaptureError if there is no such device; nothing is set."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise CaptureError(f"{device!r} is not a device; choose cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise CaptureError(f"{str(place)!r} cannot be used; choose cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise CaptureError(
            f"there is no {place} here ({torch.cuda.device_count()} CUDA devices); choose the device cpu"
        )
    return place


def prepare(device: str, tf32: bool = False, threads: int | None = None) -> torch.device:
    """The device by name, made ready for runs that can be repeated. CaptureError if there is no such device."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, or sums are not repeatable
    place = find_device(device)
    if threads:
        torch.set_num_threads(threads)
    set_precision(tf32)
    return place


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels where there are any; where there is none, torch's warning is shown."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def set_precision(tf32: bool) -> None:
    """Whether CUDA may round float32 products to TF32, in matrix products and convolutions alike."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9; export and compile want both settings to agree
        torch.backends.fp32_precision = "tf32" if tf32 else "ieee"


def settings(like: Tensor) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON."""
    cuda = like.device.type == "cuda"
    return {
        "converter": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        **machine(like.device),
        "threads": torch.get_num_threads(),
        "tf32": cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def machine(device: str | torch.device) -> dict[str, str]:
    """The processor that a device is, and what its instructions are."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _processor()
    return {"machine": name, "instructions": torch.backends.cpu.get_cpu_capability()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
