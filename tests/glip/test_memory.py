"""Where a model is loaded to, and in which dtype: straight into its place, by name or as torch has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from converter.errors import ModelError
from converter.glip import GLIP
from tests.support.saved_glip import save
from tests.support.small_glip import small_glip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_glip(torch.float32), tmp_path_factory.mktemp("memory") / "small.safetensors")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(weights: Path, dtype: Any) -> None:
    expected = small_glip(torch.float32).to(getattr(torch, str(dtype).removeprefix("torch.")))
    model = GLIP.from_pretrained(weights, dtype=dtype)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_is_a_name_or_torch_s_own(weights: Path, device: Any) -> None:
    assert GLIP.from_pretrained(weights, device=device).head.bias.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"device": "cuda:99"}, r"device: there is no cuda:99 here \(\d CUDA devices\); choose the device cpu\."),
        ({"device": torch.device("cuda", 99)}, "device: there is no cuda:99 here"),
        ({"device": "gpu"}, "device: 'gpu' is not a device; choose cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device: 'meta' cannot be used"),
        ({"device": None}, "device: None is not a device"),
        ({"dtype": "int8"}, "dtype: found 'int8', expected one of float16, bfloat16, float32, float64"),
        ({"dtype": torch.int64}, "dtype: found 'int64'"),
        ({"dtype": None}, "dtype: found 'None'"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_read(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        GLIP.from_pretrained("absent.safetensors", **how)


def test_values_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    model = small_glip(torch.float32)
    with torch.no_grad():
        model.head.bias.fill_(-1e5)
    path = save(model, tmp_path / "large.safetensors")
    with pytest.raises(ModelError, match=r"head\.bias holds 100000, beyond float16\. Choose another dtype"):
        GLIP.from_pretrained(path, dtype="float16")
    assert GLIP.from_pretrained(path, dtype="bfloat16").head.bias.isfinite().all()


def test_nothing_of_the_process_is_set(weights: Path) -> None:
    """Unlike `parity`, which switches TF32 off."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        GLIP.from_pretrained(weights)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
