"""MMDetection's GLIP loads what we write for it and predicts what the in-house model and the official code predict.

Compared before NMS: its NMS and its ranking of cells are not the official ones, so that detections differ by design.
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from converter.parity.capture import error_of_probes, load_capture
from tests import DATA
from tests.peers.comparison import LIMIT, Results, images, load, needs, poison, signature
from tests.peers.conversion import Official
from tests.peers.openmmlab import DETECTORS, detector
from tests.peers.packages import package

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
