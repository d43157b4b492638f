"""torch.compile on the whole forward, and what a CUDA graph needs: nothing in it depends on values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from converter.glip import GLIP, EncodedImages, EncodedText, Output
from converter.glip.model.bert import TextFeatures
from tests.support.small_glip import random_inputs, small_config, small_glip


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """No test sees what another has compiled."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


class Counted:
    """Runs a graph as it is, and counts the graphs: one for each piece between breaks and for each recompilation."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def any_length(*tensors: Tensor) -> None:
    """Says that their number of tokens may change."""
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 1)


def assert_near(found: Output, expected: Output, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Height, width and tokens; of the small model, some sides are whole windows in some stages, and some odd in all.
SIZES = [(150, 400, 40), (133, 300, 13), (301, 131, 200), (192, 288, 33), (224, 224, 64)]


@torch.inference_mode()
def test_the_whole_forward_is_one_graph_for_any_picture_and_any_number_of_tokens() -> None:
    model, backend = small_glip(head_blocks=1, depths=[2, 1, 1, 1]), Counted()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    for height, width, tokens in SIZES:
        images, ids, mask = random_inputs(2, height, width, tokens)
        torch._dynamo.mark_dynamic(images, (2, 3))
        any_length(ids, mask)
        assert_near(compiled(images, ids, mask), model(images, ids, mask), 1e-12)
    assert backend.graphs == 1


@torch.inference_mode()
def test_without_fusion_the_whole_forward_is_one_graph_for_any_number_of_tokens() -> None:
    model, backend = small_glip(head_blocks=1, depths=[2, 1, 1, 1], fusion=False), Counted()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    for tokens in (40, 13, 200):
        images, ids, mask = random_inputs(2, 75, 101, tokens)
        any_length(ids, mask)
        assert_near(compiled(images, ids, mask), model(images, ids, mask), 1e-12)
    assert backend.graphs == 1


@torch.inference_mode()
def test_parts_compile_each_once_for_any_picture_and_any_number_of_tokens() -> None:
    """By AOTAutograd, whose guards on sizes come on top of Dynamo's."""
    model, compiled = (small_glip(head_blocks=1, depths=[2, 1, 1, 1]) for _ in range(2))
    parts = (*compiled.backbone.stages, *compiled.head.blocks)
    for part in parts:
        part.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width, tokens in SIZES:
        inputs = random_inputs(1, height, width, tokens, padding=0)
        assert_near(compiled(*inputs), model(*inputs), 1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(parts)


@torch.inference_mode()
def test_images_and_prediction_compile_each_by_itself_beside_text_that_is_encoded_without() -> None:
    model, backend = small_glip(head_blocks=1, depths=[2, 1, 1, 1]), Counted()
    encode_images, predict = (
        torch.compile(part, fullgraph=True, dynamic=False, backend=backend)
        for part in (model.encode_images, model.predict)
    )
    for tokens in (40, 13, 200):
        images, ids, mask = random_inputs(2, 75, 101, tokens, padding=0)
        text = model.encode_text(ids, mask)
        any_length(*text.features, text.attended)
        assert_near(predict(encode_images(images), text), model(images, ids, mask), 1e-12)
    assert backend.graphs == 2


def test_a_compiled_model_has_the_gradients_of_the_model() -> None:
    """By AOTAutograd, which traces the way back, too."""
    model = small_glip(head_blocks=1, depths=[2, 1, 1, 1])
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = run(*random_inputs(1, 40, 60))
        torch.stack([x.square().mean() for part in out for x in part]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 50
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class NoValues(TorchDispatchMode):
    """Refuses what waits for a device or copies to it: neither can be in a CUDA graph."""

    refused = ("_local_scalar_dense", "nonzero", "lift_fresh", "equal", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        assert name not in self.refused, func
        assert name != "index" or all(i is None or i.dtype != torch.bool for i in args[1]), func
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("changes", [{}, {"fusion": False}, {"prompt_length": 200}])
@torch.inference_mode()
def test_with_encoded_text_no_operator_depends_on_values(changes: dict[str, Any]) -> None:
    model = small_glip(torch.float32, **changes).to(torch.bfloat16)
    images, ids, mask = random_inputs(2, 75, 101)
    text = model.encode_text(ids, mask)
    encoded = model.encode_images(images)
    with NoValues():
        model.predict(encoded, text)
        model.fpn(model.backbone(images.bfloat16())[1:])


@pytest.mark.parametrize(
    "read", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x + torch.tensor([1.0]), lambda x: bool(x.any())]
)
@torch.inference_mode()
def test_what_depends_on_values_is_noticed(read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError), NoValues():
        read(x)


@torch.inference_mode()
def test_images_and_prediction_run_on_a_device_without_values() -> None:
    with torch.device("meta"):
        model = GLIP(small_config()).eval()
        images = model.encode_images(torch.empty(2, 3, 75, 101))
        hidden = torch.empty(1, 13, 24)
        text = EncodedText(TextFeatures(hidden, hidden), torch.ones(1, 20, dtype=torch.bool), model)
    assert isinstance(images, EncodedImages)
    out = model.predict(images, text)
    assert [tuple(x.shape) for x in out.token_logits] == [(2, n, 20) for n in (130, 35, 12, 4, 1)]
    with pytest.raises(NotImplementedError, match="meta"):  # text is checked, for which its values are read
        model.encode_text(torch.ones(1, 20, dtype=torch.int64, device="meta"), text.attended)
