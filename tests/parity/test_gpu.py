"""The same model on a GPU, in every number format, beside a capture made on the CPU in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest
import torch

from converter.glip.family import FAMILY
from converter.parity.capture import Capture, Mode, load_capture, write_capture
from converter.parity.device import DTYPES, set_precision
from converter.parity.record import record
from converter.parity.run import parity
from tests.support.small_glip import small_glip, subject

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capture]:
    model = small_glip()
    tensors, facts = record(
        subject(model), FAMILY.sample_inputs(asdict(model.config)), "small", ("float32", "bfloat16", "float16")
    )
    path = tmp_path_factory.mktemp("capture") / "small.safetensors"
    write_capture(path, tensors, facts, compact=False)
    with load_capture(path) as capture:
        yield capture


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_gpu_computes_the_same(dtype: str, capture: Capture) -> None:
    set_precision(False)
    # in 16 bits errors that add up are too large to judge by
    modes: Sequence[Mode] = ["propagated", "injected"] if dtype in ("float64", "float32") else ["injected"]
    report = parity(subject(small_glip(DTYPES[dtype]).cuda()), capture, modes=modes)
    assert (report.passed, report.problems, report.device) == (True, [], "cuda")


def test_a_mistake_is_seen_on_a_gpu(capture: Capture) -> None:
    model = small_glip().cuda()
    model.head.blocks[0].dynamic_conv.same.norm.eps = 1e-3
    assert parity(subject(model), capture).culprits == ("head.blocks.0.dynamic_conv",)
