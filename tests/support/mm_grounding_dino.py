"""A full-size MM-Grounding-DINO with synthetic weights, and what it is shown: the same numbers wherever it runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converter.mapping.load import hub_table, load_table
from converter.planning.formats import make_route
from scripts.synthetic_checkpoint import state_dict
from tests.support.small_formats import Weights, execute

SIZES = [(192, 256), (128, 192)]  # of two pictures, in pixels; the second is padded to the first
# "cat. remote control. red car." and "dog. black chair."
INPUT_IDS = [[101, 4937, 1012, 6556, 2491, 1012, 2417, 2482, 1012, 102], [101, 3899, 1012, 2304, 3242, 1012, 102]]


def weights() -> Weights:
    """Those of the synthetic Grounding DINO with Swin-T, by the names of transformers' class of MM-Grounding-DINO.

    What only this has is added: a bias for each class head, and box heads of which no two are the same.
    """
    official = Weights({name: tensor.numpy() for name, tensor in state_dict("groundingdino-swint").items()})
    table = load_table("groundingdino-official")
    arrays: dict[str, np.ndarray[Any, Any]] = dict(
        execute(make_route(table, hub_table(table.spec), official), official).arrays
    )
    for name, array in [pair for pair in arrays.items() if pair[0].startswith("bbox_embed.0.")]:
        for layer in range(1, 6):
            arrays[name.replace("embed.0", f"embed.{layer}")] = np.roll(array, layer, axis=-1)
    for layer in range(6):
        arrays[f"class_embed.{layer}.bias"] = np.array(-0.4 - 0.1 * layer, np.float32)
    arrays["model.encoder_output_class_embed.bias"] = np.array(-0.7, np.float32)
    return Weights(arrays)


def in_format(name: str) -> Weights:
    """The same in another format."""
    table, made = load_table(name), weights()
    return execute(make_route(hub_table(table.spec), table, made), made)


def inputs() -> dict[str, Tensor]:
    """Two pictures with a caption each, float64: the second picture is smaller, and so is its caption."""
    (height, width), _ = SIZES
    raw = np.random.PCG64(0).random_raw(2 * 3 * height * width) >> np.uint64(40)
    unit = (raw * 2.0**-23 - 1.0) * math.sqrt(3.0)  # zero mean, unit variance
    mask = torch.zeros(2, height, width, dtype=torch.int64)
    for row, (rows, columns) in enumerate(SIZES):
        mask[row, :rows, :columns] = 1
    longest = max(map(len, INPUT_IDS))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in INPUT_IDS])
    return {
        "pixel_values": torch.from_numpy(unit).view(2, 3, height, width) * mask[:, None],
        "pixel_mask": mask,
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": (ids != 0).long(),
    }
