"""`--protocol mmdet` is what MMDetection does before its model sees anything: settings, sizes, pixels and captions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from converter.errors import ModelError
from converter.glip.detect.preprocessing import glip_preprocessing
from converter.grounding.images import batch, normalised
from converter.parity.family import Class
from tests.peers.comparison import needs
from tests.peers.mmdet_evaluation import Peer, classes_for, classes_of, packed, task_of
from tests.peers.packages import package, unheard

pytestmark = needs("mmdet", "mmengine", "mmcv", "transformers", "skimage")

NAMES = ["person", "traffic light", "fire_hydrant", "bow_(weapon)", "bow_(decorative_ribbons)", "crêpe", "T-shirt"]


def test_its_settings_are_those_of_its_configurations(peer: Peer) -> None:
    protocol = task_of(peer.data, classes_for(peer.data)).protocol
    test = peer.net.test_cfg
    assert peer.net.bbox_head.test_cfg == test
    stated = (protocol.candidates_per_level, protocol.score_threshold, protocol.nms_threshold, protocol.most)
    assert stated == (test.nms_pre, test.score_thr, test.nms.iou_threshold, test.max_per_img)
    assert protocol.per_caption == test.get("chunked_size")
    load, resize = peer.config.val_dataloader.dataset.pipeline[:2]
    assert (load.type, load.imdecode_backend) == ("LoadImageFromFile", "pillow")
    assert (resize.type, resize.backend, resize.keep_ratio) == ("FixScaleResize", "pillow", True)
    assert (protocol.shorter_side, protocol.longer_side) == resize.scale
    metric = {"coco": "CocoMetric", "lvis": "LVISFixedAPMetric"}[peer.data]
    assert (peer.config.val_evaluator.type, protocol.metric.startswith(peer.data)) == (metric, True)


def sizes() -> Iterator[tuple[int, int]]:
    yield from ((width, height) for width in range(1, 60) for height in range(1, 60))
    draw = random.Random(0)
    for most in (700, 2000, 20000):
        yield from ((draw.randint(1, most), draw.randint(1, most)) for _ in range(20000))


def test_pictures_are_resized_to_its_sizes() -> None:
    rescale_size = package("mmdet.datasets.transforms.transforms").rescale_size
    task, official = (task_of("coco", classes_of(NAMES), name) for name in ("mmdet", "official"))
    otherwise = 0
    for width, height in sizes():
        expected = rescale_size((width, height), (800, 1333))
        if 0 in expected:
            with pytest.raises(ModelError, match="a side would vanish"):
                task._size(width, height)
        else:
            assert task._size(width, height) == expected
            otherwise += min(width, height) > 2 and official._size(width, height) != expected
    assert otherwise > 1000


def pictures(folder: Path) -> dict[str, Path]:
    """One picture in several files: with each orientation of EXIF, and of other modes."""
    image = Image.fromarray(skimage.data.rocket()).resize((320, 213))
    made = {}
    for orientation in range(9):
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        made[f"orientation {orientation}"] = folder / f"{orientation}.jpg"
        image.save(folder / f"{orientation}.jpg", exif=exif)
    for mode, suffix in (("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("LA", "png")):
        changed = image.convert(mode)
        if "A" in mode:
            changed.putalpha(Image.linear_gradient("L").resize(image.size))
        made[mode] = folder / f"{mode}.{suffix}"
        changed.save(made[mode])
    made["I;16"] = folder / "16.png"
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(made["I;16"])
    return made


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
def test_the_model_sees_its_pixels(peer: Peer, tmp_path: Path) -> None:
    classes = classes_of(NAMES)
    settings = glip_preprocessing()
    differing: dict[str, list[str]] = {"mmdet": [], "official": []}
    for what, path in pictures(tmp_path).items():
        expected = packed(peer, path, NAMES)
        (sample,) = expected["data_samples"]
        for protocol, others in differing.items():
            prepared = task_of("coco", classes, protocol).read(path)
            seen = batch([normalised(torch.from_numpy(prepared.pixels), settings)], settings.size_multiple)
            if not torch.equal(seen, expected["inputs"]):
                others.append(what)
            if protocol == "mmdet":
                assert (prepared.height, prepared.width) == sample.ori_shape
                assert prepared.pixels.shape[:2] == sample.img_shape
                assert prepared.size == sample.batch_input_shape
    # of LA it draws the background in a colour of its own, and of 16 bits all but the lowest 256 values are white
    assert differing["mmdet"] == ["LA", "I;16"]
    assert differing["official"] == [*(f"orientation {n}" for n in range(2, 9)), "LA", "I;16"]


def captions_of(peer: Peer, names: Sequence[str], prompts: Any = None) -> list[tuple[str, dict[int, list[int]]]]:
    """Each caption, and the tokens of each class by its place from 1 on."""
    tokens, texts, *_ = peer.net.get_tokens_positive_and_prompts(tuple(names), True, prompts)
    made, place = [], 0
    for text, positive_map in zip(
        *(each if isinstance(texts, list) else [each] for each in (texts, tokens)), strict=True
    ):
        made.append((text, {place + label: at for label, at in positive_map.items()}))
        place += len(positive_map)
    return made


def own_captions(data: str, classes: Sequence[Class]) -> list[tuple[str, dict[int, list[int]]]]:
    place = {each.id: number for number, each in enumerate(classes, start=1)}
    asked = task_of(data, classes).asked
    return [(caption.text, {place[n]: at for n, at in caption.positive_map.items()}) for caption in asked]


def test_names_become_its_captions(peer: Peer) -> None:
    datasets = package("mmdet.datasets")
    kinds = ["CocoDataset", "VOCDataset", "LVISV1Dataset", "CityscapesDataset"]
    for kind in kinds if peer.data == "lvis" else [kinds[0], kinds[1], kinds[3]]:
        names = getattr(datasets, kind).METAINFO["classes"]
        assert own_captions(peer.data, classes_of(names)) == captions_of(peer, names), kind
    assert own_captions(peer.data, classes_of(NAMES)) == captions_of(peer, NAMES)


def test_prompts_become_its_captions(peer: Peer) -> None:
    prompts = {
        "penguin": {"suffix": ", which is black and white"},
        "pothole": {"prefix": "there are some ", "name": "holes", "suffix": " on the road"},
    }
    names = ["penguin", "puffin", "pothole"]
    classes = [
        Class(n, name, (p := prompts.get(name, {})).get("prefix", ""), p.get("name"), p.get("suffix", ""))
        for n, name in enumerate(names, start=1)
    ]
    assert own_captions(peer.data, classes) == captions_of(peer, names, prompts)


@pytest.mark.parametrize("peer", ["coco"], indirect=True, scope="module")
def test_classes_beyond_256_tokens_have_none_there(peer: Peer) -> None:
    """They are never found; ours are asked for in a second caption."""
    names = package("mmdet.datasets").Objects365V1Dataset.METAINFO["classes"]
    with unheard():
        ((text, found),) = captions_of(peer, names)
    missing = {label for label, tokens in found.items() if not tokens}
    asked = own_captions("coco", classes_of(names))
    assert missing
    assert text.startswith(asked[0][0])
    assert missing >= set(asked[-1][1])
    assert all(tokens for _, labels in asked for tokens in labels.values())
