"""Every built-in format of GLIP at a size at which all pairs of them can be tried, with weights of that size."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from converter.checkpoint import DTYPES
from converter.mapping import documents, folders
from converter.mapping.ops import Array, apply_ops
from converter.mapping.spec import Spec, Variant
from converter.mapping.table import Table
from converter.planning.formats import format_names, load_format
from converter.planning.plan import Plan, Tensor

SIZES: dict[str, Any] = {
    "embed_dim": 4, "depths": (2, 1, 3, 2), "num_heads": (1, 2, 2, 4), "window_size": 3, "mlp_ratio": 2,
    "patch_size": 2, "channels": 16, "vocab_size": 11, "text_dim": 6, "text_layers": 2, "text_heads": 2,
    "text_mlp_dim": 10, "max_positions": 7, "type_vocab_size": 2, "head_blocks": 2,
    "fusion": True, "fusion_dim": 12, "fusion_heads": 2,
    "prompt_length": 0, "anchor_strides": (8, 16, 32, 64, 128), "anchor_sizes": (64, 128, 256, 512, 1024),
}  # fmt: skip


def small_spec(spec: Spec) -> Spec:
    """The spec, or part of one, with a single variant of a few numbers."""
    fields = spec.variants[0].config
    variant = Variant("small", "small", (), {name: SIZES[name] for name in fields})
    return replace(spec, variants=(variant,), parts={name: small_spec(part) for name, part in spec.parts.items()})


def small(table: Table) -> Table:
    """The table of a format, of the small spec."""
    return replace(table, spec=small_spec(table.spec))


@contextmanager
def small_tables(folder: Path, variant: str = "small", sizes: Mapping[str, Any] = SIZES) -> Iterator[None]:
    """While active, the built-in tables are of a spec whose only variant is small; they lie in `folder`."""
    shutil.copytree(folders.mappings_folder(), folder)
    spec = json.loads((folder / "glip.json").read_text())
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in sizes.items() if name != "prompt_length"}
    spec["variants"] = {variant: {"title": "small", "config": config}}
    for part in spec["parts"].values():
        part["variants"] = {"small": {"title": "small", "config": {n: config[n] for n in part["config"]}}}
    (folder / "glip.json").write_text(json.dumps(spec))
    hashes = json.loads((folder / folders.RELEASED).read_text())
    hashes["glip"].append(hashlib.sha256((folder / "glip.json").read_bytes()).hexdigest())
    (folder / folders.RELEASED).write_text(json.dumps(hashes))
    with patch.object(folders, "mappings_folder", lambda: folder):
        documents._listing.cache_clear()
        yield
    documents._listing.cache_clear()


FORMATS = {name: small(table) for name in format_names() for table in [load_format(name)] if table.spec.name == "glip"}


@dataclass
class Weights:
    """Arrays by name, and as the index of a checkpoint."""

    arrays: Mapping[str, Array]
    unsupported: dict[str, str] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: Tensor(name, a.shape, DTYPES[a.dtype.name]) for name, a in self.arrays.items()}


def hub_weights(seed: int = 0) -> Weights:
    """A whole GLIP of the small size, every number different from all others."""
    shapes = FORMATS["glip"].spec.tensors(FORMATS["glip"].spec.variants[0].config)
    random = np.random.default_rng(seed)
    return Weights({name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def execute(plan: Plan, source: Weights, residue: Weights | None = None) -> Weights:
    """What a plan makes of arrays."""
    made = {}
    for steps, arrays in ((plan.steps, source.arrays), (plan.carried, residue.arrays if residue else {})):
        for step in steps:
            results = apply_ops(step.ops, [arrays[tensor.name] for tensor in step.sources])
            for target, array in zip(step.targets, results, strict=True):
                assert array.shape == target.shape
                made[target.name] = array
    for rebuilt in plan.rebuilt:
        assert rebuilt.make is not None
        made[rebuilt.tensor.name] = rebuilt.make().astype(rebuilt.tensor.dtype.carrier)
    assert made.keys() == {tensor.name for tensor in plan.targets}
    return Weights(made)


def same(a: Weights, b: Weights) -> bool:
    """The same names, shapes, dtypes and bits."""
    return a.arrays.keys() == b.arrays.keys() and all(
        a.arrays[n].dtype == b.arrays[n].dtype
        and a.arrays[n].shape == b.arrays[n].shape
        and a.arrays[n].tobytes() == b.arrays[n].tobytes()
        for n in a.arrays
    )
