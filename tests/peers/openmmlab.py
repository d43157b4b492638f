"""MMPretrain's and MMDetection's own models, built on a current PyTorch and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn

from tests.peers.packages import package, unheard

DETECTORS = {
    "glip-t-a": "glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py",
    "glip-t": "glip_atss_swin-t_fpn_dyhead_pretrain_obj365-goldg-cc3m-sub.py",
    "glip-l": "glip_atss_swin-l_fpn_dyhead_pretrain_mixeddata.py",
}
BACKBONES = {"glip-t": "swin-t_glip-pre_3rdparty", "glip-l": "swin-l_glip-pre_3rdparty_384px"}


def backbone(model: str, **settings: Any) -> nn.Module:
    """MMPretrain's classifier-shaped shell around the Swin of a GLIP, not loaded. `settings` go to its backbone."""
    get_model = package("mmpretrain").get_model
    with unheard():
        net: nn.Module = get_model(BACKBONES[model], pretrained=False, backbone=settings)
    return net.eval()


def configuration(name: str, folder: str = "glip") -> Any:
    """One of the configurations that come with MMDetection, by its path in configs/`folder`; modules are registered."""
    mmdet = package("mmdet")
    with unheard():
        package("mmdet.utils").register_all_modules()
        return package("mmengine").Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / folder / name)


def detector(model: str) -> nn.Module:
    """MMDetection's GLIP by the configuration that comes with it, not loaded."""
    return configured(configuration(DETECTORS[model]))


def configured(config: Any, vocabulary: Path | None = None) -> nn.Module:
    """The model of a configuration, not loaded. Without a vocabulary it reads no text."""
    registry = package("mmdet.registry")
    with unheard(), _bert_without_download(vocabulary):
        net: nn.Module = registry.MODELS.build(config.model)
    return net.eval()


@contextmanager
def _bert_without_download(vocabulary: Path | None) -> Iterator[None]:
    """`from_pretrained` gives BERT base uncased without its values, which are loaded later, and its tokenizer."""
    transformers = package("transformers")
    tokenizer = None if vocabulary is None else transformers.BertTokenizerFast(str(vocabulary))
    config = transformers.BertConfig()  # its defaults are those of BERT base uncased

    def untrained(name: str, **settings: Any) -> nn.Module:
        return transformers.BertModel(settings["config"], add_pooling_layer=settings["add_pooling_layer"])

    with (
        mock.patch.object(transformers.AutoTokenizer, "from_pretrained", return_value=tokenizer),
        mock.patch.object(transformers.BertConfig, "from_pretrained", return_value=config),
        mock.patch.object(transformers.BertModel, "from_pretrained", untrained),
    ):
        yield
