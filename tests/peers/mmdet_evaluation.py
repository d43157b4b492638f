"""MMDetection's GLIP with the pipeline and the captions by which it evaluates on a data set, and our task for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn

from converter.glip.detect.preprocessing import glip_preprocessing
from converter.glip.task.task import GLIPTask
from converter.grounding.tokenizer import SHIPPED, Tokenizer
from converter.parity.family import Asked, Class
from tests.peers.openmmlab import configuration, configured
from tests.peers.packages import package, unheard

CONFIGURATIONS = {
    "coco": "glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py",
    "lvis": "lvis/glip_atss_swin-t_a_fpn_dyhead_pretrain_zeroshot_mini-lvis.py",
}


class Peer(NamedTuple):
    """MMDetection's GLIP as it evaluates on a data set, and the pipeline that reads its pictures."""

    data: str
    config: Any
    net: nn.Module
    pipeline: Any


def peer_for(data: str) -> Peer:
    config = configuration(CONFIGURATIONS[data])
    with unheard():
        pipeline = package("mmengine.dataset").Compose(config.val_dataloader.dataset.pipeline)
    return Peer(data, config, configured(config, SHIPPED), pipeline)


def packed(peer: Peer, path: Path, names: Sequence[str]) -> Any:
    """One picture of a data set as MMDetection's model gets it: normalised, padded, with what is known of it."""
    info = {"img_path": str(path), "img_id": 1, "instances": [], "text": tuple(names), "custom_entities": True}
    with Image.open(path) as image:
        info |= {"width": image.width, "height": image.height}
    read = peer.pipeline(info)
    return peer.net.data_preprocessor({"inputs": [read["inputs"]], "data_samples": [read["data_samples"]]}, False)


def classes_of(names: Sequence[str]) -> list[Class]:
    """With ids that are not their places."""
    return [Class(3 + 7 * place, name) for place, name in enumerate(names)]


def task_of(data: str, classes: Sequence[Class], protocol: str = "mmdet", **changed: str) -> GLIPTask:
    asked = Asked(protocol, changed)
    return GLIPTask.of(data, classes, asked, Tokenizer.bert_base_uncased(), glip_preprocessing())


def classes_for(data: str) -> list[Class]:
    """COCO's own, and the first hundred of LVIS, which are three captions."""
    datasets = package("mmdet.datasets")
    names = {"coco": datasets.CocoDataset, "lvis": datasets.LVISV1Dataset}[data].METAINFO["classes"]
    return classes_of(names[:100])
