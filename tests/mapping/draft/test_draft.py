"""A draft is right where it is sure, says where it is not, and is always a table that loads."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint import DTYPES
from converter.errors import TableError
from converter.mapping.documents import to_text
from converter.mapping.draft import Draft, Named, known_target, new_target, propose
from converter.mapping.draft.assignment import assign, margins_of
from converter.mapping.draft.names import take_apart
from converter.mapping.lint import lint
from converter.mapping.load import load_table
from converter.mapping.table import Table
from converter.planning.fit import make_plan
from converter.planning.plan import Plan
from tests import DATA
from tests.support.official_keys import Index, IndexEntry, official_index

GLIP = ("glip-t-a", "glip-t-b", "glip-t", "glip-l")
# source, target, and by hand: source family -> target family, numbers as they are counted in the names
PEERS: dict[tuple[str, str], dict[str, str]] = {
    ("timm-vit-small", "hf-vit-small"): {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.P": "embeddings.patch_embeddings.projection.P",
        "blocks.A.norm1.P": "layers.A.layernorm_before.P",
        "blocks.A.norm2.P": "layers.A.layernorm_after.P",
        "blocks.A.attn.proj.P": "layers.A.attention.o_proj.P",
        "blocks.A.mlp.fc1.P": "layers.A.mlp.fc1.P",
        "blocks.A.mlp.fc2.P": "layers.A.mlp.fc2.P",
        "norm.P": "layernorm.P",
    },
    ("timm-convnext-tiny", "hf-convnext-tiny"): {
        "stem.0.P": "convnext.embeddings.patch_embeddings.P",
        "stem.1.P": "convnext.embeddings.layernorm.P",
        "stages.A.blocks.B.gamma": "convnext.encoder.stages.A.layers.B.layer_scale_parameter",
        "stages.A.blocks.B.conv_dw.P": "convnext.encoder.stages.A.layers.B.dwconv.P",
        "stages.A.blocks.B.norm.P": "convnext.encoder.stages.A.layers.B.layernorm.P",
        "stages.A.blocks.B.mlp.fc1.P": "convnext.encoder.stages.A.layers.B.pwconv1.P",
        "stages.A.blocks.B.mlp.fc2.P": "convnext.encoder.stages.A.layers.B.pwconv2.P",
        "stages.A.downsample.B.P": "convnext.encoder.stages.A.downsampling_layer.B.P",
        "head.norm.P": "convnext.layernorm.P",
        "head.fc.P": "classifier.P",
    },
    ("timm-resnet50", "hf-resnet50"): {
        "conv1.P": "resnet.embedder.embedder.convolution.P",
        "bn1.P": "resnet.embedder.embedder.normalization.P",
        "layer{A+1}.B.conv{C+1}.P": "resnet.encoder.stages.A.layers.B.layer.C.convolution.P",
        "layer{A+1}.B.bn{C+1}.P": "resnet.encoder.stages.A.layers.B.layer.C.normalization.P",
        "layer{A+1}.0.downsample.0.P": "resnet.encoder.stages.A.layers.0.shortcut.convolution.P",
        "layer{A+1}.0.downsample.1.P": "resnet.encoder.stages.A.layers.0.shortcut.normalization.P",
        "fc.P": "classifier.1.P",
    },
    ("timm-swin-tiny", "hf-swin-tiny"): {
        "patch_embed.proj.P": "swin.embeddings.patch_embeddings.projection.P",
        "patch_embed.norm.P": "swin.embeddings.norm.P",
        "layers.A.blocks.B.norm1.P": "swin.encoder.layers.A.blocks.B.layernorm_before.P",
        "layers.A.blocks.B.norm2.P": "swin.encoder.layers.A.blocks.B.layernorm_after.P",
        "layers.A.blocks.B.attn.proj.P": "swin.encoder.layers.A.blocks.B.attention.o_proj.P",
        "layers.A.blocks.B.attn.relative_position_bias_table": (
            "swin.encoder.layers.A.blocks.B.attention.relative_position_bias.relative_position_bias_table"
        ),
        "layers.A.blocks.B.mlp.fc1.P": "swin.encoder.layers.A.blocks.B.mlp.fc1.P",
        "layers.A.blocks.B.mlp.fc2.P": "swin.encoder.layers.A.blocks.B.mlp.fc2.P",
        "layers.{A+1}.downsample.norm.P": "swin.encoder.layers.A.downsample.norm.P",
        "layers.{A+1}.downsample.reduction.P": "swin.encoder.layers.A.downsample.reduction.P",
        "norm.P": "swin.layernorm.P",
        "head.fc.P": "classifier.P",
    },
}
PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def named(index: Mapping[str, IndexEntry]) -> list[Named]:
    return [Named(name, e.shape, "" if e.dtype.kind == "float" else e.dtype.name) for name, e in index.items()]


def stored(name: str) -> list[Named]:
    rows = json.loads((DATA / "draft" / f"{name}.json").read_text())["tensors"]
    return [Named(key, tuple(shape), "" if dtype == "float32" else dtype) for key, shape, dtype in rows]


def index_of(tensors: Iterable[Named]) -> dict[str, IndexEntry]:
    return {t.name: IndexEntry(t.name, t.shape, DTYPES[t.kind or "float32"]) for t in tensors}


def loaded(draft: Draft, folder: Path, *, settled: bool = True) -> Table:
    """The draft as files, with every doubt taken out as if a person had."""
    table = json.loads(to_text(draft.table))
    for entry in (e for part in ("rules", "ignore", "absent") for e in table.get(part, ())) if settled else ():
        entry.pop("doubt", None)
    if draft.spec is not None:
        (folder / f"{draft.spec['name']}.json").write_text(to_text(draft.spec))
    path = folder / f"{table['name']}.json"
    path.write_text(json.dumps(table))
    return load_table(path)


def pairs(plan: Plan) -> dict[tuple[str, str], str]:
    """(source, target) -> rule, of every step."""
    return {(s.name, t.name): step.pointer for step in plan.steps for s in step.sources for t in step.targets}


def wrong_though_sure(draft: Draft, plan: Plan, truth: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    doubted = {f"/rules/{i}" for i, rule in enumerate(draft.table["rules"]) if "doubt" in rule}
    right = set(truth)
    return [pair for pair, rule in pairs(plan).items() if rule not in doubted and pair not in right]


def truth_of(source: str, target: str) -> set[tuple[str, str]]:
    """PEERS written out for every number that the source has."""
    names = {tensor.name for tensor in stored(source)}
    found = set()
    for left, right in PEERS[source, target].items():
        for a in range(13):
            for b in range(10):
                for c in range(4):
                    for p in PARAMETERS:

                        def filled(text: str, values: Mapping[str, Any]) -> str:
                            text = re.sub(r"\{([ABC])\+1\}", lambda m: str(values[m[1]] + 1), text)
                            return re.sub(r"\b[ABCP]\b", lambda m: str(values[m[0]]), text)

                        values = {"A": a, "B": b, "C": c, "P": p}
                        if (name := filled(left, values)) in names:
                            found.add((name, filled(right, values)))
    return found


@pytest.fixture(scope="module", params=GLIP)
def glip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Draft, Plan, Plan]:
    """A draft for an official key list, its plan, and the plan of the table that people wrote."""
    index = official_index(request.param)
    sources = named(index)
    draft = propose("drafted", sources, known_target("glip", sources))
    plan = make_plan(loaded(draft, tmp_path_factory.mktemp("glip")), Index(index), refuse=False)
    return draft, plan, make_plan(load_table("glip-official"), Index(index))


def test_the_variant_is_found(glip: tuple[Draft, Plan, Plan]) -> None:
    draft, _, truth = glip
    assert draft.variant == truth.variant.name


def test_a_sure_rule_of_the_official_list_is_right(glip: tuple[Draft, Plan, Plan]) -> None:
    draft, plan, truth = glip
    assert wrong_though_sure(draft, plan, pairs(truth)) == []


def test_all_of_the_official_list_is_found(glip: tuple[Draft, Plan, Plan]) -> None:
    draft, plan, truth = glip
    right = pairs(plan).keys() & pairs(truth).keys()
    doubted = {f"/rules/{i}" for i, rule in enumerate(draft.table["rules"]) if "doubt" in rule}
    sure = [pair for pair in right if pairs(plan)[pair] not in doubted]
    # also the fusion's `v_proj`, the image's, as there is an `l_proj` beside it
    assert right == pairs(truth).keys()
    assert len(sure) >= 0.7 * len(pairs(truth)), len(sure) / len(pairs(truth))


def test_every_tensor_of_the_official_list_is_accounted_for(glip: tuple[Draft, Plan, Plan]) -> None:
    assert glip[1].problems == ()


def test_what_the_names_cannot_tell_is_in_doubt(glip: tuple[Draft, Plan, Plan]) -> None:
    doubted = [str(rule["source"]) for rule in glip[0].doubtful]
    assert any("DyConv.0.conv" in source for source in doubted)
    assert any("self.query" in source for source in doubted)


@pytest.mark.parametrize(("source", "target"), PEERS)
def test_timm_becomes_transformers(source: str, target: str, tmp_path: Path) -> None:
    draft = propose(source, stored(source), new_target(target, stored(target)))
    table = loaded(draft, tmp_path)
    plan = make_plan(table, Index(index_of(stored(source))))
    truth = truth_of(source, target)
    split = {pair for pair in pairs(plan) if ".qkv." in pair[0]}
    assert lint(table) == []
    assert pairs(plan).keys() - split == truth
    assert wrong_though_sure(draft, plan, truth) == []
    parts = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
    assert all([n.name.split(".")[-2] for n in step.targets] == list(parts) for step in plan.steps if step.ops)


@pytest.mark.parametrize(("target", "source"), PEERS)
def test_transformers_becomes_timm(source: str, target: str, tmp_path: Path) -> None:
    draft = propose(source, stored(source), new_target(target, stored(target)))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(stored(source))))
    truth = {(b, a) for a, b in truth_of(target, source)}
    assert {pair for pair in pairs(plan) if ".qkv." not in pair[1]} == truth
    assert wrong_though_sure(draft, plan, truth) == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (DATA / "draft").glob("*.json")))
def test_a_drafted_spec_is_its_checkpoint(name: str, tmp_path: Path) -> None:
    tensors = stored(name)
    table = loaded(propose("same", tensors, new_target(name, tensors)), tmp_path)
    config = table.spec.variants[0].config
    assert table.spec.tensors(config) == {t.name: t.shape for t in tensors}
    assert table.spec.dtypes(config) == {t.name: t.kind for t in tensors if t.kind}


@pytest.mark.parametrize(("source", "target"), PEERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_sure_rule_is_right_though_parts_are_missing(source: str, target: str, seed: int, tmp_path: Path) -> None:
    """Where the counterpart of a tensor is not there, what takes its place is in doubt."""
    chance = random.Random(seed)

    def some(tensors: list[Named]) -> list[Named]:
        families = sorted({take_apart(t.name)[0] for t in tensors})
        kept = {family for family in families if chance.random() < 0.8}
        return [t for t in tensors if take_apart(t.name)[0] in kept]

    sources, targets = some(stored(source)), some(stored(target))
    draft = propose(source, sources, new_target(target, targets))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(sources)), refuse=False)
    assert wrong_though_sure(draft, plan, truth_of(source, target)) == []


@pytest.mark.parametrize("misleading", [False, True])
@pytest.mark.parametrize("model", ["glip-t-a", "glip-t"])
def test_names_that_say_nothing_are_not_sure(model: str, misleading: bool, tmp_path: Path) -> None:
    """Half of the words are replaced, by nonsense or by words that mean something else."""
    index = official_index(model)
    vocabulary = sorted({word for name in index for word in re.findall("[A-Za-z]+", name)} - {"module", *PARAMETERS})
    chance = random.Random(7)
    other = {w: chance.choice(vocabulary) if misleading else f"w{n:03}x" for n, w in enumerate(vocabulary)}
    other = {w: o if chance.random() < 0.5 else w for w, o in other.items()}
    renamed = {re.sub("[A-Za-z]+", lambda m: other.get(m[0], m[0]), name): name for name in index}
    sources = {new: IndexEntry(new, index[old].shape, index[old].dtype) for new, old in renamed.items()}
    draft = propose("drafted", named(sources), known_target("glip", named(sources)))
    plan = make_plan(loaded(draft, tmp_path), Index(sources), refuse=False)
    back = {new.removeprefix("module."): old for new, old in renamed.items()}
    known = {(s.removeprefix("module."), t) for s, t in pairs(make_plan(load_table("glip-official"), Index(index)))}
    truth = {(new, t) for new, old in back.items() for s, t in known if s == old.removeprefix("module.")}
    truth |= {(f"module.{new}", t) for new, t in truth}
    if len(renamed) == len(index):  # else two names became one
        assert wrong_though_sure(draft, plan, truth) == []


def test_a_transposed_matrix_is_found_and_doubted(tmp_path: Path) -> None:
    sources = [Named(f"h.{i}.c_fc.{p}", s) for i in range(3) for p, s in (("weight", (4, 16)), ("bias", (16,)))]
    targets = [Named(f"layers.{i}.fc1.{p}", s) for i in range(3) for p, s in (("weight", (16, 4)), ("bias", (16,)))]
    draft = propose("conv1d", sources, new_target("linear", targets))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(sources)))
    weight = next(rule for rule in draft.table["rules"] if rule["target"].endswith("weight"))
    assert weight["ops"] == [{"op": "transpose", "axes": [1, 0]}]
    assert "transposed" in weight["doubt"]
    assert draft.doubtful == [weight]  # its bias has the shape that it had
    assert ("h.2.c_fc.weight", "layers.2.fc1.weight") in pairs(plan)


def test_numbers_without_a_formula_are_paired_in_order_and_doubted(tmp_path: Path) -> None:
    sources = [Named(f"features.{i}.weight", (8, 8, 3, 3)) for i in (0, 2, 5, 7, 10)]
    targets = [Named(f"{a}.convs.{b}.weight", (8, 8, 3, 3)) for a in range(2) for b in range(2 + a)]
    draft = propose("flat", sources, new_target("nested", [Named(f"stage{t.name}", t.shape) for t in targets]))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(sources)))
    assert [pair[1] for pair in sorted(pairs(plan), key=lambda p: int(p[0].split(".")[1]))] == [
        f"stage{t.name}" for t in targets
    ]
    assert all("doubt" in rule for rule in draft.table["rules"])


def test_what_is_left_over_is_ignored_in_doubt() -> None:
    sources = [Named("fc.weight", (3, 4)), *(Named(f"teacher.{i}.weight", (5,)) for i in range(4))]
    draft = propose("left", sources, new_target("right", [Named("fc.weight", (3, 4))]))
    (entry,) = draft.table["ignore"]
    assert entry["source"] == "teacher.{teacher}.weight"
    assert (entry["reason"], entry["rebuild"]) == ("drafted: no counterpart found", None)
    assert "doubt" in entry


def test_integers_never_become_weights() -> None:
    sources = [Named("a", (3,), "int64"), Named("b", (2,))]
    draft = propose("ints", sources, new_target("t", [Named("a", (3,)), Named("b", (2,))]))
    assert [tensor.name for tensor in draft.matching.left_targets] == ["a"]


@pytest.mark.parametrize("name", ["a.{b}.weight", "блок.weight", "a\nb", "", "x" * 400, "a#b"])
def test_a_name_that_no_pattern_says_is_refused(name: str) -> None:
    fine = [Named("fc.weight", (3, 4))]
    with pytest.raises(TableError, match="cannot be written in a table"):
        propose("bad", [*fine, Named(name, (3,))], new_target("t", fine))
    with pytest.raises(TableError, match="names of the target"):
        new_target("t", [Named(name, (3,))])


@pytest.mark.parametrize(
    "name",
    ["a.007.weight", "12345678901.weight", "if.3.len.0.weight", "1.2.3.4.5.6.7", "num_x.1.weight", "9", "a b*c/+-.1"],
)
def test_awkward_names_make_a_sound_table(name: str, tmp_path: Path) -> None:
    tensors = [Named(name, (3, 2)), *(Named(f"{name}.{i}", (3,)) for i in range(3)), Named(f"{name}.03", (4,))]
    table = loaded(propose("odd", tensors, new_target("target", tensors)), tmp_path)
    plan = make_plan(table, Index(index_of(tensors)))
    assert lint(table) == []
    assert all(source == target for source, target in pairs(plan))


def test_the_draft_does_not_depend_on_the_order_of_the_file() -> None:
    tensors = stored("timm-swin-tiny")
    target = new_target("hf-swin-tiny", stored("hf-swin-tiny"))
    mixed = random.Random(0).sample(tensors, len(tensors))
    first, second = (propose("t", some, target).table for some in (tensors, mixed))
    assert [json.dumps(rule) for rule in first["rules"]] == [json.dumps(rule) for rule in second["rules"]]


def test_a_thousand_tensors_of_one_shape_take_seconds() -> None:
    chance = random.Random(1)

    def some(count: int) -> list[Named]:
        return [Named("".join(chance.choices("abcdefgh", k=12)) + ".weight", (8, 8)) for _ in range(count)]

    start = time.perf_counter()
    draft = propose("many", some(1000), new_target("t", some(1000)))
    assert time.perf_counter() - start < 60  # some 10 s; a loaded machine is slower
    assert len(draft.doubtful) == 1000


def test_tens_of_thousands_of_names_are_folded() -> None:
    def some(word: str) -> list[Named]:
        return [
            Named(f"{word}.{i}.experts.{j}.fc{k}.weight", (2, 3)) for i in range(75) for j in range(200) for k in (1, 2)
        ]

    draft = propose("many", some("blocks"), new_target("t", some("layers")))
    assert [rule["target"] for rule in draft.table["rules"]] == ["layers.{layer}.experts.{expert}.fc{item}.weight"]


def test_a_margin_is_what_the_best_other_assignment_loses() -> None:
    chance = np.random.default_rng(0)
    for _ in range(20):
        score = chance.random((5, 5))
        rows, columns = assign(score)
        best = score[rows, columns].sum()
        for row, column, margin in zip(rows, columns, margins_of(score, rows, columns), strict=True):
            without = score.copy()
            without[row, column] = -1e3
            other = assign(without)
            assert margin == pytest.approx(best - without[other[0], other[1]].sum())
