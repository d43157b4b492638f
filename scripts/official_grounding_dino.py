"""Build the official Grounding DINO (IDEA-Research/GroundingDINO) as its package does, without any download.

    python -m venv official && official/bin/pip install groundingdino-py==0.4.0 'transformers<5' safetensors
    official/bin/python scripts/official_grounding_dino.py groundingdino-swint groundingdino-swint.json

The package needs transformers before version 5, so it runs in an environment of its own; nothing of converter is needed
there. What the package would fetch is given instead: BERT is built from its configuration, and tokens are given as ids.
The command above writes the names, shapes and dtypes of the official state dict, as a distributed run saves it: the
manifests of tests/data/manifests. (The released files hold two tensors more, which the package does not load:
label_enc.weight and bert.embeddings.position_ids; IDEA-Research/GroundingDINO issue 271.)
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# the configuration files that the package brings, by the names of the released files without their endings
CONFIGS = {
    "groundingdino-swint": "GroundingDINO_SwinT_OGC.py",
    "groundingdino-swinb": "GroundingDINO_SwinB_cfg.py",
}
# [CLS], [SEP], '.' and '?' of bert-base-uncased; of the tokenizer the model itself asks for no more than these
SPECIAL_TOKENS = [101, 102, 1012, 1029]


class GivenTokens:
    """Stands in for the tokenizer: what it `gives` for any captions was set before."""

    def __init__(self) -> None:
        self.gives: Mapping[str, torch.Tensor] = {}

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        if tokens != ["[CLS]", "[SEP]", ".", "?"]:
            raise ValueError(tokens)
        return SPECIAL_TOKENS

    def __call__(self, captions: list[str], **options: Any) -> Any:
        from transformers import BatchEncoding

        return BatchEncoding({name: value.clone() for name, value in self.gives.items()})


def make_torchvision_importable() -> None:
    """Built for another torch it has no compiled operators, and fails where it names two of them; then they are
    defined without content: no box of this model goes through them."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # the definitions go with it


_KEPT: list[Any] = []


def build(model: str, **changes: Any) -> torch.nn.Module:
    """The official model in eval mode on the CPU, with the package's initial weights; `changes`: of its configuration.

    Checkpointing of activations, which is for training, is off: it hides from hooks what it runs.
    """
    make_torchvision_importable()
    import groundingdino.config
    from groundingdino.models import build_model
    from groundingdino.util import get_tokenlizer
    from groundingdino.util.slconfig import SLConfig
    from transformers import BertConfig, BertModel

    get_tokenlizer.get_tokenlizer = lambda name: GivenTokens()
    get_tokenlizer.get_pretrained_language_model = lambda name: BertModel(BertConfig())
    folder = Path(groundingdino.config.__file__).parent
    config = SLConfig.fromfile(str(folder / CONFIGS[model]))
    settings = {"device": "cpu", "use_checkpoint": False, "use_transformer_ckpt": False, **changes}
    for name, value in settings.items():
        setattr(config, name, value)
    built: torch.nn.Module = build_model(config)
    return built.eval()


def run(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the model returns for these: pixel_values, pixel_mask (1 where there is a picture), and the tokens."""
    from groundingdino.util.misc import NestedTensor

    tokens = ("input_ids", "attention_mask", "token_type_ids")
    model.tokenizer.gives = {name: inputs[name] for name in tokens}
    samples = NestedTensor(inputs["pixel_values"], inputs["pixel_mask"] == 0)
    out: dict[str, torch.Tensor] = model(samples, captions=[""] * len(inputs["input_ids"]))
    return out


def manifest(model: str) -> str:
    """JSON of the state dict of `model`, a line for each tensor."""
    built = build(model)
    state = built.state_dict()
    names = {name for name, _ in built.named_parameters(remove_duplicate=False)}
    facts = {
        "model": model,
        "config": f"groundingdino/config/{CONFIGS[model]}",
        "groundingdino-py": importlib.metadata.version("groundingdino-py"),
        "transformers": importlib.metadata.version("transformers"),
        "num_tensors": len(state),
        "num_parameters": sum(parameter.numel() for parameter in built.parameters()),
        "num_elements_state_dict": sum(value.numel() for value in state.values()),
        "bytes_state_dict": sum(value.numel() * value.element_size() for value in state.values()),
        "buffers_in_state_dict": [f"module.{name}" for name in state if name not in names],
    }
    tensors = [
        json.dumps([f"module.{name}", list(value.shape), str(value.dtype).removeprefix("torch.")])
        for name, value in state.items()
    ]
    return json.dumps(facts)[:-1] + ', "tensors": [\n' + ",\n".join(tensors) + "]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("path", type=Path, help="manifest to write, .json")
    arguments = parser.parse_args()
    arguments.path.write_text(manifest(arguments.model))


if __name__ == "__main__":
    main()
