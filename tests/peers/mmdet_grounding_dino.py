"""MMDetection's MM-Grounding-DINO, built by its own configuration, and what it computes.

`python -m tests.peers.mmdet_grounding_dino` in the peers' environment writes what is recorded in tests/data/peers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from converter.grounding.tokenizer import SHIPPED
from converter.grounding_dino.switches import exact
from tests import DATA
from tests.peers.comparison import load, signature
from tests.peers.openmmlab import configuration, configured
from tests.peers.packages import package
from tests.support.mm_grounding_dino import SIZES, in_format, inputs

CONFIGURATIONS = {
    "t": "grounding_dino_swin-t_pretrain_obj365.py",
    "b": "grounding_dino_swin-t_pretrain_obj365.py",
    "l": "grounding_dino_swin-l_pretrain_all.py",
}
# release 3.3 comes without a configuration with Swin-B; of the one with Swin-T, this is what changes in that of the
# repository, grounding_dino_swin-b_pretrain_obj365_goldg_v3det.py
SWIN_B = {"embed_dims": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
TRAINING = "dn_query_generator.label_embedding.weight"
OUTPUTS = DATA / "peers" / "mmdet_gdino_t.safetensors"
QUERIES = 100  # of 900, recorded


def names(model: str) -> Path:
    """Where names and shapes of the model are recorded."""
    return DATA / "peers" / f"mmdet_gdino_{model}.json"


def detector(model: str) -> nn.Module:
    """The detector with Swin-T, Swin-B or Swin-L, not loaded; checkpointing of activations needs another package."""
    config = configuration(CONFIGURATIONS[model], "mm_grounding_dino")
    if model == "b":
        config.model.backbone.update(SWIN_B)
        config.model.neck.in_channels = [256, 512, 1024]
    config.model.encoder.num_cp = 0
    return configured(config, SHIPPED)


def loaded() -> nn.Module:
    """The one with Swin-T in float64, with the synthetic weights; what only training reads is zero."""
    net = detector("t")
    state = {name: torch.from_numpy(array.copy()) for name, array in in_format("mmdet-grounding-dino").arrays.items()}
    return load(net, state | {TRAINING: torch.zeros_like(net.state_dict()[TRAINING])})


def run(net: nn.Module) -> dict[str, Tensor]:
    """What it computes of the two pictures in one batch, and of the first alone, which is not padded: `alone.NAME`."""
    return predicted(net, slice(2)) | {f"alone.{name}": tensor for name, tensor in predicted(net, slice(1)).items()}


def predicted(net: nn.Module, rows: slice) -> dict[str, Tensor]:
    """For the first queries, logits of each token, references after each decoder layer, and boxes.

    As MMDetection's predict does it, but that tokens are given as ids.
    """
    given = {name: tensor[rows] for name, tensor in inputs().items()}
    bert = package("mmdet.models.language_models.bert")
    with torch.inference_mode(), exact():
        masks, positions = bert.generate_masks_with_special_tokens_and_transfer_map(
            {"input_ids": given["input_ids"]}, net.language_model.special_tokens
        )
        text = net.language_model.language_backbone(
            {
                "input_ids": given["input_ids"], "attention_mask": masks, "position_ids": positions,
                "token_type_ids": given["token_type_ids"],
            }
        )  # fmt: skip
        text |= {"position_ids": positions, "text_token_mask": given["attention_mask"].bool()}
        text["embedded"] = net.text_feat_map(text["embedded"])
        samples = [package("mmdet.structures").DetDataSample() for _ in SIZES[rows]]
        for sample, size in zip(samples, SIZES[rows], strict=True):
            sample.set_metainfo({"img_shape": size, "batch_input_shape": SIZES[0]})
        head = net.forward_transformer(net.extract_feat(given["pixel_values"]), text, samples)
        logits, boxes = net.bbox_head(**head)
    tokens = given["input_ids"].shape[1]
    found = {"logits": logits[..., :tokens], "references": torch.stack(list(head["references"])), "boxes": boxes[-1]}
    return {name: tensor[..., :QUERIES, :].contiguous() for name, tensor in found.items()}


def main() -> None:
    for model in CONFIGURATIONS:
        lines = ",\n".join(json.dumps(entry) for entry in signature(detector(model)))
        names(model).write_text(f"[\n{lines}\n]\n")
    save_file(run(loaded()), OUTPUTS)


if __name__ == "__main__":
    main()
