"""MMDetection's GLIP loads what we write for it and predicts what the in-house model and the official code predict.

Compared before NMS: its NMS and its ranking of cells are not the official ones, so that detections differ by design.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from converter.parity.capture import error_of_probes, load_capture
from tests import DATA
from tests.peers.comparison import LIMIT, Results, images, load, needs, poison, signature
from tests.peers.conversion import Official, convert
from tests.peers.openmmlab import DETECTORS, detector
from tests.peers.packages import package, unheard

pytestmark = [
    *needs("mmdet", "mmengine", "mmcv", "transformers"),
    pytest.mark.filterwarnings("ignore:.*upsample_bilinear.* is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:The `device` argument is deprecated:FutureWarning"),
]

CAPTURES = {"glip-t-a": "glip-t-a", "glip-t": "glip-t", "glip-t-odd": "glip-t", "glip-l": "glip-l"}
PARTS = {"dot_product_logits": "token logits", "bbox_pred": "box deltas", "centerness": "centerness"}

Predictions = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def net(official: Official) -> nn.Module:
    return load(detector(official.name), official.converted("mmdet-glip"))


def predict(net: nn.Module, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Predictions:
    """Per level what MMDetection's head gives, its tokenizer left out."""
    text = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": None, "token_type_ids": None}
    language = net.language_model.language_backbone(text)
    return dict(zip(PARTS, net.bbox_head(net.extract_feat(x), language), strict=True))


@pytest.mark.parametrize("model", DETECTORS)
def test_its_names_and_shapes_are_the_recorded_ones(model: str) -> None:
    recorded = DATA / "peers" / f"mmdet_{model.rpartition('-')[2]}.json"
    assert signature(detector(model)) == json.loads(recorded.read_text())


def test_its_predictions_are_ours(official: Official, net: nn.Module, results: Results) -> None:
    """Two images, 256 tokens; in-house, columns that no caption attends to are not computed."""
    x = images(2, 3, 128, 192)
    x[1, :, 96:] = 0
    x[1, :, :, 160:] = 0
    lengths = (13, 11)
    input_ids, attended = torch.zeros(2, 256, dtype=torch.int64), torch.zeros(2, 256, dtype=torch.int64)
    for row, length in enumerate(lengths):
        words = torch.arange(2000, 2000 + length - 2) + 100 * row
        input_ids[row, :length] = torch.tensor([101, *words, 102])
        attended[row, :length] = 1
    found = predict(net, x, input_ids, attended)
    found["dot_product_logits"] = [level[..., : max(lengths)] for level in found["dot_product_logits"]]
    out = official.glip(x, input_ids, attended)
    logits = [level[..., : max(lengths)] for level in out.token_logits]
    for part, expected in zip(PARTS, (logits, out.box_deltas, out.centerness), strict=True):
        results.equal("mmdet", "", official.name, f"{PARTS[part]}, 2 images 128x192, 256 tokens", found[part], expected)


@pytest.mark.parametrize(
    ("official", "capture"), [(m, c) for c, m in CAPTURES.items()], indirect=["official"], scope="session"
)
def test_its_predictions_are_the_official_codes(
    official: Official, capture: str, net: nn.Module, results: Results
) -> None:
    with load_capture(DATA / "captures" / f"{capture}.safetensors") as recorded:
        inputs = recorded.inputs
        found = predict(net, inputs["images"].double(), inputs["input_ids"], inputs["attention_mask"])
        for part, title in PARTS.items():
            errors = []
            for level, tensor in enumerate(found[part]):
                activation = recorded.activations[f"rpn.head.{part}.{level}"]
                assert tensor.shape == activation.shape
                errors.append(error_of_probes(activation, recorded.read(activation.name), tensor))
            results.note("mmdet", "", official.name, f"{title}, official capture {capture}", max(errors))
            assert all(error <= LIMIT for error in errors), errors


def test_mmengine_loads_the_pth_itself(official: Official, net: nn.Module) -> None:
    other = detector(official.name)
    poison(other)
    path = official.converted_pth("mmdet-glip")
    package("mmengine.runner").load_checkpoint(other, str(path), map_location="cpu", strict=True)
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor.double(), net.state_dict()[key].double()), key


SCALE = re.compile(r"bbox_head\.head\.scales\.[0-4]\.scale")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes, and pytest would keep it for three runs


def converted(content: Any, path: Path, *options: str) -> dict[str, Tensor]:
    """The tensors that are made of a checkpoint, which is saved as `path`."""
    torch.save(content, path)
    return load_file(convert(path, path.with_suffix(".safetensors"), *options))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["glip-t-a", "glip-t"])
def test_what_it_saves_itself_converts_and_comes_back(model: str, folder: Path) -> None:
    """Its scales have no axis in a model that it makes, and one in its published weights: one GLIP is made of both."""
    state = detector(model).state_dict()
    scales = {name: tensor for name, tensor in state.items() if SCALE.fullmatch(name)}
    assert [tensor.shape for tensor in scales.values()] == [()] * 5
    made = converted({"state_dict": state}, folder / "saved.pth")
    published = {**state, **{name: tensor.reshape(1) for name, tensor in scales.items()}}
    assert same(converted({"state_dict": published}, folder / "published.pth"), made)
    for name in ("saved", "published"):
        again = convert(folder / f"{name}.safetensors", folder / "again.pth", "--force", "--to", "mmdet-glip")
        other = detector(model)
        poison(other)
        other.load_state_dict(torch.load(again, weights_only=True)["state_dict"], strict=True)
        assert same(other.state_dict(), state)


def test_a_checkpoint_of_its_runner_converts(folder: Path) -> None:
    """It has a message_hub, an optimizer and, beside the averaged weights, those that are trained, with a counter."""
    with torch.inference_mode(False), unheard():
        path, averaged, trained = trained_by_mmengine(folder)
    saved = torch.load(path, weights_only=False)
    assert {"meta", "state_dict", "message_hub", "optimizer", "ema_state_dict"} <= saved.keys()
    assert saved["optimizer"]["state"]
    assert saved["message_hub"]["log_scalars"]
    assert saved["ema_state_dict"]["steps"] == 2
    assert not same(averaged, trained)
    for root, state in (("state_dict", averaged), ("ema_state_dict", trained)):
        options = [] if root == "state_dict" else ["--root", root]
        found = load_file(convert(path, folder / f"{root}.safetensors", *options))
        assert same(found, converted({"state_dict": state}, folder / "plain.pth", "--force")), root


def trained_by_mmengine(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """What mmengine's Runner saves after two steps with an EMAHook; the averaged weights in it, and the trained."""
    engine = package("mmengine.runner")
    net = detector("glip-t-a")
    optimizer = torch.optim.AdamW(net.bbox_head.parameters(), lr=0.1)
    runner = engine.Runner(
        model=net,
        work_dir=str(folder / "work"),
        train_dataloader=torch.utils.data.DataLoader([0]),
        train_cfg={"by_epoch": False, "max_iters": 1},
        optim_wrapper=package("mmengine.optim").OptimWrapper(optimizer),
        custom_hooks=[{"type": "EMAHook"}],
        experiment_name="peers",
    )
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    hook.before_run(runner)
    for parameter in net.bbox_head.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):  # the first average is the model itself
        optimizer.step()
        hook.ema_model.update_parameters(net)
        runner.message_hub.update_scalar("train/loss", 0.5)
    trained = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in hook.ema_model.module.state_dict().items()}
    runner.save_checkpoint(str(folder), "iter_1.pth", by_epoch=False)
    return folder / "iter_1.pth", averaged, trained
