"""Full-size MM-Grounding-DINO: what MMDetection 3.3 computed, transformers' class computes, too.

Two pictures with a caption each, the second picture and caption padded, float64, recorded by tests/peers. In three
places the codes differ; each is undone by a switch of the comparison, and each matters in such a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForZeroShotObjectDetection, MMGroundingDinoForObjectDetection

from converter.checkpoint import open_checkpoint
from converter.grounding_dino.switches import exact, official_inverse_sigmoid, official_text_masks
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.planning.formats import load_format, make_route
from converter.writing.convert import convert
from tests import DATA
from tests.support.mm_grounding_dino import in_format, inputs, weights
from tests.support.small_files import run
from tests.support.small_formats import Weights, execute, same

pytestmark = pytest.mark.fullsize

LIMIT = 1e-10  # relative Frobenius, float64: see docs/parity.md
RECORDED = DATA / "peers" / "mmdet_gdino_t.safetensors"
SPEC = load_spec("transformers-mm-grounding-dino")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MMGroundingDinoForObjectDetection:
    """Transformers' model from the folder that is made of MMDetection's format."""
    here = tmp_path_factory.mktemp("mm")
    theirs = {name: torch.from_numpy(array) for name, array in in_format("mmdet-grounding-dino").arrays.items()}
    torch.save({"state_dict": theirs}, here / "mmdet.pth")
    told = run("convert", "--src", here / "mmdet.pth", "--dst", here / "hf")
    assert "variant: mm-grounding-dino-tiny" in told.output
    assert "bit for bit" in told.output
    loaded, report = AutoModelForZeroShotObjectDetection.from_pretrained(here / "hf", output_loading_info=True)
    assert isinstance(loaded, MMGroundingDinoForObjectDetection)
    assert not any(report.values()), report
    for path in (here / "mmdet.pth", here / "hf" / "model.safetensors"):
        path.unlink()  # gigabytes, and pytest would keep them for three runs
    return loaded.double().eval()


@contextmanager
def mmdet_inverse_sigmoid(model: nn.Module) -> Iterator[None]:
    """The decoder refines references that are cut at 1e-3, not 1e-5; the head, as in transformers, at 1e-5.

    MMDetection 3.3: models/layers/transformer/dino_layers.py, DinoTransformerDecoder.forward.
    """
    decoder = model.model.decoder
    active = ExitStack()
    hooks = (
        decoder.register_forward_pre_hook(lambda *_: active.enter_context(official_inverse_sigmoid())),
        decoder.register_forward_hook(lambda *_: active.close()),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def attended_padding(model: nn.Module) -> Iterator[None]:
    """Pictures attend to the padding of captions: one is added to all logits of the fusion, and none is masked.

    MMDetection 3.3: models/utils/vlfuse_helper.py, BiMultiHeadAttention.forward, which fills a mask of booleans with
    -9e15 (open-mmlab/mmdetection issue 11803).
    """

    def unmasked(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return arguments, {**named, "attention_mask_text": None}

    layers = [layer.fusion_layer for layer in model.model.encoder.layers]
    hooks = [layer.register_forward_pre_hook(unmasked, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


SWITCHES = {
    "inverse sigmoid": mmdet_inverse_sigmoid,
    "text masks": official_text_masks,  # MMDetection repeats them as the official code does
    "padding of captions": attended_padding,
}


def outputs(model: Any, switches: Iterable[str], rows: slice = slice(2)) -> dict[str, Tensor]:
    """What is recorded, as transformers computes it with these switches."""
    logits: list[Tensor] = []
    given = {name: tensor[rows] for name, tensor in inputs().items()}
    tokens, queries = given["input_ids"].shape[1], load_file(RECORDED)["boxes"].shape[1]
    with ExitStack() as active:
        for name in switches:
            active.enter_context(SWITCHES[name](model))
        for head in model.class_embed:
            hook = head.register_forward_hook(lambda module, arguments, found: logits.append(found))
            active.callback(hook.remove)
        active.enter_context(torch.inference_mode())
        active.enter_context(exact())
        out = model(**given)
    later = out.intermediate_reference_points.transpose(0, 1)
    found = {
        "logits": torch.stack(logits)[..., :tokens],
        "references": torch.cat([out.init_reference_points[None], later]),
        "boxes": out.pred_boxes,
    }
    return {name: tensor[..., :queries, :] for name, tensor in found.items()}


def errors(found: dict[str, Tensor], prefix: str = "") -> dict[str, float]:
    """Relative errors; the logits of padding are without end in both."""
    result, recorded = {}, load_file(RECORDED)
    for name, tensor in found.items():
        expected = recorded[prefix + name]
        assert tensor.shape == expected.shape
        assert torch.equal(tensor.isfinite(), expected.isfinite())
        difference = (tensor - expected).nan_to_num(0, 0, 0)  # inf - inf is not a number
        result[name] = float(difference.norm() / expected[expected.isfinite()].norm())
    return result


def test_a_picture_and_a_caption_without_padding_need_no_switch(model: Any) -> None:
    assert max(errors(outputs(model, [], slice(1)), "alone.").values()) <= LIMIT


def test_a_padded_batch_is_computed_alike_with_the_switches(model: Any) -> None:
    assert max(errors(outputs(model, SWITCHES)).values()) <= LIMIT


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_difference_matters_in_a_padded_batch(model: Any, switch: str) -> None:
    found = errors(outputs(model, SWITCHES.keys() - {switch}))
    assert max(found.values()) > 1e-5, found


def test_there_and_back_gives_every_bit() -> None:
    theirs, table = in_format("mmdet-grounding-dino"), load_format("mmdet-grounding-dino")
    assert same(execute(make_route(table, hub_table(SPEC), theirs), theirs), weights())


@pytest.mark.parametrize("variant", SPEC.variants[1:], ids=lambda variant: variant.name)
def test_larger_sizes_come_back_bit_for_bit(variant: Any, tmp_path: Path) -> None:
    """Through files, with what only training reads kept beside."""
    random = np.random.default_rng(0)
    shapes = SPEC.tensors(variant.config)
    numbers = {name: np.asarray(random.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    ours, table = Weights(numbers), load_format("mmdet-grounding-dino")
    theirs = execute(make_route(hub_table(SPEC), table, ours), ours)
    training = {"dn_query_generator.label_embedding.weight": np.ones((256, 256), np.float32)}
    save_file(
        {n: torch.from_numpy(a.copy()) for n, a in (theirs.arrays | training).items()}, tmp_path / "a.safetensors"
    )
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        plan = make_route(table, hub_table(SPEC), checkpoint)
        convert(checkpoint, plan, tmp_path / "b.safetensors")
    assert plan.variant.name == variant.name
    made = load_file(tmp_path / "b.safetensors")
    assert made.keys() == numbers.keys()
    assert all(torch.equal(made[name], torch.from_numpy(array)) for name, array in numbers.items())
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").unlink()
