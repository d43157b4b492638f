"""MMDetection's MM-Grounding-DINO and transformers' class of it: names, shapes and numbers, at a small size."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

from converter.checkpoint import DTYPES, Checkpoint, open_checkpoint
from converter.errors import PlanError
from converter.mapping.lint import lint
from converter.mapping.load import hub_table, load_table
from converter.mapping.spec import Variant, load_spec
from converter.mapping.table import Table
from converter.planning.formats import make_route, recognise
from converter.planning.plan import Tensor
from converter.writing.convert import convert
from converter.writing.in_memory import in_memory
from tests import DATA
from tests.support.small_formats import Weights, execute, same

SPEC = load_spec("transformers-mm-grounding-dino")
TABLE = load_table("mmdet-grounding-dino")
MODELS = {"t": "mm-grounding-dino-tiny", "b": "mm-grounding-dino-base", "l": "mm-grounding-dino-large"}
TRAINING = "dn_query_generator.label_embedding.weight"

SIZES: dict[str, Any] = {
    "embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 3, "mlp_ratio": 2,
    "patch_size": 4, "vocab_size": 11, "text_dim": 12, "text_layers": 2, "text_heads": 2, "text_mlp_dim": 10,
    "max_positions": 7, "type_vocab_size": 2, "channels": 32, "encoder_layers": 2, "decoder_layers": 6, "heads": 4,
    "points": 2, "ffn_dim": 24, "queries": 5,
}  # fmt: skip
MAPS: dict[str, dict[str, Any]] = {
    "three maps": {"maps": (2, 3, 4), "levels": 4},
    "four maps": {"maps": (1, 2, 3, 4), "levels": 5},
}


class Small:
    """Both formats at a small size, and weights of it, every number different from all others."""

    def __init__(self, maps: Mapping[str, Any]) -> None:
        self.config = {**SIZES, **maps}
        spec = replace(SPEC, variants=(Variant("small", "small", (), self.config),))
        self.transformers, self.mmdet = hub_table(spec), replace(TABLE, spec=spec)
        random = np.random.default_rng(0)
        shapes = spec.tensors(self.config)
        self.weights = Weights({n: np.asarray(random.standard_normal(s), np.float32) for n, s in shapes.items()})

    def folder(self, path: Path) -> Path:
        """The weights as transformers loads them, on their way through MMDetection's format."""
        theirs = execute(make_route(self.transformers, self.mmdet, self.weights), self.weights)
        state = {name: torch.from_numpy(array.copy()) for name, array in theirs.arrays.items()}
        torch.save({"state_dict": state}, path.with_suffix(".pth"))
        with open_checkpoint(path.with_suffix(".pth")) as checkpoint:
            convert(checkpoint, make_route(self.mmdet, self.transformers, checkpoint), path)
        return path


@pytest.fixture(params=list(MAPS))
def small(request: pytest.FixtureRequest) -> Small:
    return Small(MAPS[request.param])


def loaded(folder: Path) -> MMGroundingDinoForObjectDetection:
    model, report = MMGroundingDinoForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model


def biases(heads: Any) -> list[float]:
    return [head.bias.item() for head in heads]


def read(checkpoint: Checkpoint, table: Table) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that a plan to the spec's naming makes."""
    with in_memory(checkpoint, make_route(table, table, checkpoint)) as made:
        return {name: made.read(name).copy() for name in made.tensors}


class Index:
    """Tensors without values, as a plan looks at them."""

    def __init__(self, path: Path) -> None:
        entries = json.loads(path.read_text())
        self.tensors = {n: Tensor(n, tuple(shape), DTYPES[t.removeprefix("torch.")]) for n, shape, t in entries}
        self.unsupported: dict[str, str] = {}
        self.objects: dict[str, str] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@pytest.fixture(params=list(MODELS))
def peer(request: pytest.FixtureRequest) -> tuple[str, Index]:
    """Variant, and names and shapes of the state dict of a real model of MMDetection."""
    return MODELS[request.param], Index(DATA / "peers" / f"mmdet_gdino_{request.param}.json")


def test_table_and_spec_are_sound() -> None:
    assert lint(TABLE) == []
    assert lint(hub_table(SPEC)) == []


@pytest.mark.parametrize("variant", SPEC.variants, ids=lambda variant: variant.name)
def test_the_spec_is_the_state_dict_of_transformers_class(variant: Variant) -> None:
    table = hub_table(SPEC)
    config = MMGroundingDinoConfig.from_dict(table.config_document(variant.config, {"float32"}))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta.*")
        model = MMGroundingDinoForObjectDetection(config)
    left_out = [ignore.source for ignore in table.bind(variant.config).ignores]
    shapes = {table.short(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {n: s for n, s in shapes.items() if not any(p.match(n) for p in left_out)} == SPEC.tensors(variant.config)


def test_a_real_model_of_mmdetection_is_recognised_and_read(peer: tuple[str, Index]) -> None:
    variant, index = peer
    table = recognise(index)
    assert table.name == TABLE.name
    plan = make_route(table, hub_table(SPEC), index)
    assert plan.variant.name == variant
    assert {t.name: t.shape for t in plan.targets} == SPEC.tensors(plan.config)
    sources = [t.name for step in plan.steps for t in step.sources] + [out.tensor.name for out in plan.left_out]
    assert sorted(sources) == sorted(index.tensors)


def test_what_is_written_is_the_state_dict_of_the_real_model(peer: tuple[str, Index]) -> None:
    """But for what only training reads."""
    variant, index = peer
    config = SPEC.variant(variant).config
    weights = Weights({name: np.empty(shape, np.float32) for name, shape in SPEC.tensors(config).items()})
    plan = make_route(hub_table(SPEC), TABLE, weights)
    assert {t.name: t.shape for t in plan.targets} == {n: s for n, s in index.shapes().items() if n != TRAINING}
    assert [missing.names for missing in plan.missing] == [TRAINING]


def test_there_and_back_gives_every_bit(small: Small) -> None:
    theirs = execute(make_route(small.transformers, small.mmdet, small.weights), small.weights)
    assert theirs.arrays["bbox_head.cls_branches.6.bias"].shape == (1,)
    back = execute(make_route(small.mmdet, small.transformers, theirs), theirs)
    assert same(back, small.weights)
    assert same(execute(make_route(small.transformers, small.mmdet, back), back), theirs)


def test_transformers_loads_all_of_it_and_makes_nothing_up(small: Small, tmp_path: Path) -> None:
    """What it reports is not trusted: what it has loaded is saved again, and is what was written."""
    model = loaded(small.folder(tmp_path / "folder"))
    model.save_pretrained(tmp_path / "saved")
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        found = read(checkpoint, small.transformers)
    assert same(Weights(found), small.weights)
    maps = model.model.backbone.conv_encoder.model.config.out_features
    assert maps == [f"stage{stage}" for stage in small.config["maps"]]


def test_every_decoder_layer_has_heads_of_its_own(small: Small, tmp_path: Path) -> None:
    model = loaded(small.folder(tmp_path / "folder"))
    assert len(set(biases(model.class_embed))) == 6
    for own, decoders in ((model.bbox_embed, model.model.decoder.bbox_embed),
                          (model.class_embed, model.model.decoder.class_embed)):  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), decoders.parameters(), strict=True))


def test_without_its_settings_transformers_loses_heads_and_says_nothing(tmp_path: Path) -> None:
    """A fault of transformers 5.24: see docs/families/grounding-dino.md."""
    small = Small(MAPS["three maps"])
    model = loaded(small.folder(tmp_path / "folder"))
    path = tmp_path / "folder" / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if not name.endswith("_embed_share")}
    own = biases(model.class_embed)
    other = MMGroundingDinoForObjectDetection(MMGroundingDinoConfig.from_dict(config))
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert biases(other.class_embed) == own[-1:] * 6
    path.write_text(json.dumps(config))
    again = loaded(tmp_path / "folder")
    assert biases(again.class_embed) == own
    assert biases(again.model.decoder.class_embed) == own[:1] * 6


def test_it_runs(small: Small, tmp_path: Path) -> None:
    model = loaded(small.folder(tmp_path / "folder")).eval()
    with torch.inference_mode():
        out = model(pixel_values=torch.randn(1, 3, 64, 96), input_ids=torch.tensor([[1, 2, 3]]))
    assert out.pred_boxes.shape == (1, 5, 4)
    assert torch.isfinite(out.logits[..., :3]).all()


@pytest.mark.parametrize("name", ["model.decoder.bbox_embed.3.layers.2.bias", "model.decoder.class_embed.4.bias"])
def test_copies_of_a_head_that_differ_are_refused(name: str, tmp_path: Path) -> None:
    small = Small(MAPS["three maps"])
    state = loaded(small.folder(tmp_path / "folder")).state_dict()
    torch.save(state, tmp_path / "own.pth")
    with open_checkpoint(tmp_path / "own.pth") as checkpoint:
        assert same(Weights(read(checkpoint, small.transformers)), small.weights)
    torch.save({**state, name: state[name] + 1}, tmp_path / "own.pth")
    with open_checkpoint(tmp_path / "own.pth") as checkpoint, pytest.raises(PlanError) as refused:
        read(checkpoint, small.transformers)
    assert [name in problem and "trained apart" in problem for problem in refused.value.problems] == [True]


def test_a_model_with_shared_heads_is_refused(tmp_path: Path) -> None:
    small = Small(MAPS["three maps"])
    shared = {n: a for n, a in small.weights.arrays.items() if not n.startswith(("bbox_embed.1", "class_embed.1"))}
    save_file({name: torch.from_numpy(array) for name, array in shared.items()}, tmp_path / "shared.safetensors")
    with open_checkpoint(tmp_path / "shared.safetensors") as checkpoint, pytest.raises(PlanError) as refused:
        read(checkpoint, small.transformers)
    assert any("class_embed.1.bias" in problem and "missing" in problem for problem in refused.value.problems)


@pytest.mark.parametrize(("scale", "said"), [(True, "log_scale"), (False, "bbox_head.cls_branches.0.bias")])
def test_the_other_grounding_dino_of_mmdetection_is_refused(scale: bool, said: str) -> None:
    """Its heads have no bias; where it is fine-tuned, they learn a scale."""
    small = Small(MAPS["three maps"])
    theirs = execute(make_route(small.transformers, small.mmdet, small.weights), small.weights)
    scales = {f"bbox_head.cls_branches.{i}.log_scale": np.zeros(1, np.float32) for i in range(7 * scale)}
    other = Weights({n: a for n, a in theirs.arrays.items() if "cls_branches" not in n} | scales)
    with pytest.raises(PlanError) as refused:
        make_route(small.mmdet, small.transformers, other)
    assert any(said in problem for problem in [str(refused.value), *refused.value.problems])
