"""Formats: recognised from keys and shapes, and any one of them turned into any other that shares a part with it."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

from converter.checkpoint import DTYPES, open_checkpoint
from converter.errors import PlanError, TableError
from converter.mapping.load import hub_table
from converter.mapping.spec import load_spec
from converter.mapping.table import Table
from converter.planning.formats import load_format, make_route, recognise
from converter.planning.plan import Plan, Residue, Tensor
from converter.writing.residue import read_residue, residue_metadata, steps_to_keep
from tests import DATA
from tests.support.official_keys import official_index
from tests.support.small_formats import FORMATS, Weights, execute, hub_weights, same

PEERS = DATA / "peers"
OFFICIAL_OF = {"mmdet_a": "glip-t-a", "mmdet_t": "glip-t", "mmdet_l": "glip-l", "mmpretrain_t": "glip-t",
               "mmpretrain_l": "glip-l"}  # fmt: skip
PARTS = {name: table.spec.part for name, table in FORMATS.items()}
BACKBONES = [name for name, part in PARTS.items() if part == "backbone"]


class Index:
    """Tensors without values, as a plan looks at them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.unsupported: dict[str, str] = {}
        self.objects: dict[str, str] = {}


def peer(model: str) -> Index:
    """The state dict of a real MMDetection or MMPretrain model."""
    entries = json.loads((PEERS / f"{model}.json").read_text())
    return Index([Tensor(key, tuple(shape), DTYPES[dtype.removeprefix("torch.")]) for key, shape, dtype in entries])


def official(model: str) -> Index:
    return Index([Tensor(e.name, e.shape, e.dtype) for e in official_index(model).values()])


def described(tensors: object) -> dict[str, tuple[tuple[int, ...], str]]:
    return {t.name: (t.shape, t.dtype.name) for t in tensors}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "name"), list(OFFICIAL_OF.items()))
def test_what_is_written_is_the_state_dict_of_the_real_peer(model: str, name: str) -> None:
    """But for an axis of one element, which torch loads into a scale without axes."""
    table = load_format("mmdet-glip" if model.startswith("mmdet") else "mmpretrain-glip")
    plan = make_route(load_format("glip-official"), table, official(name))
    wanted = described(peer(model).tensors.values())
    scales = {name: ((1,), dtype) for name, (_, dtype) in wanted.items() if ".scales." in name}
    assert described(plan.targets) == wanted | scales
    assert len(scales) == (5 if model.startswith("mmdet") else 0)


@pytest.mark.parametrize("model", list(OFFICIAL_OF))
def test_a_real_peer_is_recognised_and_read(model: str) -> None:
    index = peer(model)
    table = recognise(index)
    assert table.name == ("mmdet-glip" if model.startswith("mmdet") else "mmpretrain-glip")
    plan = make_route(table, hub_table(table.spec), index)
    wanted = table.spec.tensors(plan.config)
    assert {t.name: t.shape for t in plan.targets} == wanted
    sources = [t.name for step in plan.steps for t in step.sources] + [out.tensor.name for out in plan.left_out]
    assert sorted(sources) == sorted(index.tensors)


@pytest.mark.parametrize("model", ["mmdet_a", "mmdet_t", "mmdet_l"])
def test_back_to_official_all_but_the_unused_classifier_is_there(model: str) -> None:
    plan = make_route(load_format("mmdet-glip"), load_format("glip-official"), peer(model))
    lacking = {k: v for k, v in described(official(OFFICIAL_OF[model]).tensors.values()).items()
               if k not in described(plan.targets)}  # fmt: skip
    assert set(lacking) == {f"module.rpn.head.cls_logits.{param}" for param in ("weight", "bias")}
    (missing,) = plan.missing
    assert missing.names == "rpn.head.cls_logits.{param}"
    assert "nothing reads it" in missing.reason


def residue_between(source: str, plan: Plan, weights: Weights, path: Path) -> tuple[Residue, Weights]:
    """What `--keep-residue` keeps, written to `path` and read again."""
    kept = {tensor.name: weights.arrays[tensor.name] for step in steps_to_keep(plan) for tensor in step.sources}
    save_file(kept, path, residue_metadata(plan, {"sha256": "0" * 64}))
    with open_checkpoint(path) as checkpoint:
        return read_residue(checkpoint).residue(FORMATS[source]), Weights(kept)


@pytest.mark.parametrize("model", ["glip-t-a", "glip-t", "glip-l"])
def test_the_variant_is_known_from_the_residue_too(model: str) -> None:
    """Swin-T alone is of several."""
    source, swin = load_format("glip-official"), load_format("timm-swin")
    there = make_route(source, swin, official(model))
    kept = {source.short(tensor.name): tensor for step in steps_to_keep(there) for tensor in step.sources}
    buffers = {source.short(out.tensor.name): out.tensor.dtype for out in there.left_out if out.rebuild}
    back = make_route(swin, source, Index(list(there.targets)), residue=Residue(kept, buffers, there.naming))
    assert described(back.targets) == described(official(model).tensors.values())


def test_the_length_of_a_prompt_is_known_from_the_residue_too(tmp_path: Path) -> None:
    prompted = Weights({**hub_weights().arrays, "head.prompt.weight": np.ones((3, 6), np.float32)})
    weights = execute(make_route(FORMATS["glip"], FORMATS["glip-official"], prompted), prompted)
    there = make_route(FORMATS["glip-official"], FORMATS["timm-swin"], weights)
    residue, kept = residue_between("glip-official", there, weights, tmp_path / "residue.safetensors")
    made = execute(there, weights)
    back = make_route(FORMATS["timm-swin"], FORMATS["glip-official"], made, residue=residue)
    assert same(execute(back, made, kept), weights)


def in_format(name: str) -> Weights:
    """The small GLIP, or the part of it that the format holds, in that format."""
    weights = hub_weights()
    return execute(make_route(FORMATS["glip"], FORMATS[name], weights), weights)


def with_extras(name: str, weights: Weights) -> Weights:
    """With what a real checkpoint holds beside the model, which stands behind a prefix there."""
    extras = {
        "glip-official": {"module.rpn.head.cls_logits.weight": (5, 8, 1, 1), "module.rpn.head.cls_logits.bias": (5,)},
        "swin-original": {"head.weight": (9, 32), "head.bias": (9,)},
        "timm-swin": {"head.fc.weight": (9, 32), "head.fc.bias": (9,)},
        "transformers-swin": {"classifier.weight": (9, 32), "classifier.bias": (9,)},
        "transformers-bert": {"cls.predictions.bias": (11,), "bert.pooler.dense.weight": (6, 6)},
    }.get(name, {})
    prefix = {"transformers-swin": "swin.", "transformers-bert": "bert."}.get(name, "")
    random = np.random.default_rng(1)
    added = {n: random.standard_normal(s).astype(np.float32) for n, s in extras.items()}
    return Weights({**added, **{prefix + n: array for n, array in weights.arrays.items()}})


def written(a: str, b: str) -> Table:
    """The format that `a` becomes: of a part, glip is written in part."""
    return hub_table(FORMATS["glip"].spec.parts[PARTS[a]]) if b == "glip" and PARTS[a] else FORMATS[b]


PAIRS = [(a, b) for a, b in permutations(FORMATS, 2) if PARTS[a] == PARTS[b] or "" in (PARTS[a], PARTS[b])]
HAS_ALL_NORMS = {"glip", "glip-official", "mmdet-glip", "mmpretrain-glip", "transformers-swin-backbone"}


def refused(a: str, b: str) -> bool:
    """Whether `b` needs what `a` does not hold."""
    if PARTS[a] and not PARTS[b]:
        return b != "glip"  # of which a part can be written
    return PARTS[b] == "backbone" and b in HAS_ALL_NORMS and a not in HAS_ALL_NORMS


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if not refused(*pair)])
def test_there_and_back_with_the_residue_gives_every_bit(a: str, b: str, tmp_path: Path) -> None:
    weights = with_extras(a, in_format(a))
    there = make_route(FORMATS[a], FORMATS[b], weights)
    made = execute(there, weights)
    residue, kept = residue_between(a, there, weights, tmp_path / "residue.safetensors")
    back = make_route(written(a, b), FORMATS[a], made, residue=residue)
    assert same(execute(back, made, kept), weights)


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if not refused(*pair) and not refused(*pair[::-1])])
def test_there_and_back_without_the_residue_gives_the_model(a: str, b: str) -> None:
    weights = in_format(a)
    there = make_route(FORMATS[a], FORMATS[b], weights)
    made = execute(there, weights)
    back = execute(make_route(written(a, b), FORMATS[a], made), made)
    assert all(back.arrays[name].tobytes() == array.tobytes() for name, array in weights.arrays.items()
               if name in back.arrays)  # fmt: skip
    lost = weights.arrays.keys() - back.arrays.keys()
    said = {out.tensor.name for out in there.left_out}
    assert lost <= said


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if refused(*pair)])
def test_a_format_that_needs_more_than_is_there_is_refused(a: str, b: str) -> None:
    with pytest.raises(PlanError, match=r"alone|is missing"):
        make_route(FORMATS[a], FORMATS[b], in_format(a))


@pytest.mark.parametrize(("a", "b"), list(product(BACKBONES, ["transformers-bert"])))
def test_nothing_passes_between_parts(a: str, b: str) -> None:
    with pytest.raises(PlanError, match="no tensor is in both"):
        make_route(FORMATS[a], FORMATS[b], in_format(a))


@pytest.mark.parametrize(("a", "b"), [pair for pair in PAIRS if not refused(*pair) and "glip" not in pair])
def test_the_way_through_a_file_of_the_hub_is_the_same(a: str, b: str) -> None:
    weights = in_format(a)
    direct = execute(make_route(FORMATS[a], FORMATS[b], weights), weights)
    hub = execute(make_route(FORMATS[a], hub_table(FORMATS[a].spec), weights), weights)
    assert same(execute(make_route(hub_table(FORMATS[a].spec), FORMATS[b], hub), hub), direct)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("glip",)])
def test_full_size_state_dicts_are_recognised(name: str) -> None:
    plan = make_route(load_format("glip-official"), load_format(name), official("glip-t"))
    assert recognise(Index(list(plan.targets))).name == name


@pytest.mark.parametrize("part", ["backbone", "text_encoder"])
def test_a_part_of_the_hub_is_recognised(part: str) -> None:
    spec = load_spec("glip").parts[part]
    tensors = [Tensor(n, s, DTYPES["float32"]) for n, s in spec.tensors(spec.variants[0].config).items()]
    assert recognise(Index(tensors)).label == f"glip {part}"


def test_what_could_be_several_formats_is_refused_with_their_names() -> None:
    """Microsoft's Swin and timm's differ in where the downsampling is."""
    plan = make_route(load_format("glip-official"), load_format("timm-swin"), official("glip-t"))
    with pytest.raises(PlanError, match=r"several formats.*--from") as caught:
        recognise(Index([tensor for tensor in plan.targets if "downsample" not in tensor.name]))
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"swin-original", "timm-swin"}


def test_what_only_one_format_can_be_is_that_one() -> None:
    plan = make_route(load_format("glip-official"), load_format("transformers-swin"), official("glip-t"))
    bare = Index([tensor for tensor in plan.targets if not tensor.name.startswith("layernorm")])
    assert recognise(bare).name == "transformers-swin"  # a SwinBackbone must have norms


def test_a_foreign_checkpoint_is_refused_with_what_to_do() -> None:
    foreign = Index([Tensor(f"conv{i}.weight", (3, 3), DTYPES["float32"]) for i in range(5)])
    with pytest.raises(PlanError, match=r"no known format.*converter draft"):
        recognise(foreign)


def test_two_specs_have_nothing_in_common(tmp_path: Path) -> None:
    from tests.support.tiny import write_table

    with pytest.raises(TableError, match="tiny-table is a format of tiny, glip-official one of glip"):
        make_route(load_format(str(write_table(tmp_path))), load_format("glip-official"), official("glip-t-a"))


@pytest.mark.parametrize("prefix", ["module.", "bert.", "module.bert."])
def test_old_names_of_norms_and_wrappers_are_known(prefix: str) -> None:
    weights = in_format("transformers-bert")
    old = {
        prefix + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
        for n, a in weights.arrays.items()
    }
    assert any(name.endswith("gamma") for name in old)
    own = hub_table(FORMATS["transformers-bert"].spec)
    made = execute(make_route(FORMATS["transformers-bert"], own, Weights(old)), Weights(old))
    assert same(made, execute(make_route(FORMATS["transformers-bert"], own, weights), weights))


def test_patch_merging_by_unfold_computes_the_same_on_the_written_weights() -> None:
    """MMPretrain's way of merging, written down here independently: unfold, norm, reduce."""
    hub, written = hub_weights().arrays, in_format("mmpretrain-glip").arrays
    x = torch.randn(1, 4, 6, 8, dtype=torch.float64)
    corners = torch.cat([x[:, :, r::2, c::2] for c in (0, 1) for r in (0, 1)], 1).flatten(2).transpose(1, 2)
    unfolded = F.unfold(x, 2, stride=2).transpose(1, 2)
    results = []
    for tokens, weights in ((corners, hub), (unfolded, written)):
        at = "backbone.stages.0.downsample."
        norm, bias, reduction = (
            torch.from_numpy(weights[at + n]).double() for n in ("norm.weight", "norm.bias", "reduction.weight")
        )
        results.append(F.layer_norm(tokens, norm.shape, norm, bias) @ reduction.T)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_learned_prompt_is_not_dropped_in_silence() -> None:
    prompted = Weights({**hub_weights().arrays, "head.prompt.weight": np.ones((3, 6), np.float32)})
    with pytest.raises(PlanError, match=r"mmdet-glip cannot hold 'head.prompt.weight'"):
        make_route(FORMATS["glip"], FORMATS["mmdet-glip"], prompted)
    made = execute(make_route(FORMATS["glip"], FORMATS["glip-official"], prompted), prompted)
    assert "module.rpn.tunable_linear.weight" in made.arrays
