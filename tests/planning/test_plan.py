"""Plans for the official key lists, and every ordinary way in which a checkpoint does not fit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from converter.checkpoint import DTYPES
from converter.errors import PlanError
from converter.mapping.load import load_table
from converter.planning.fit import Fit, make_plan
from converter.planning.keys import by_key
from converter.planning.plan import Plan
from tests.support.official_keys import Index, IndexEntry, official_index

F32 = DTYPES["float32"]
TABLE = load_table("glip-official")


def plan_of(index: dict[str, IndexEntry], variant: str | None = None, dtype: str | None = None) -> Plan:
    return make_plan(TABLE, Index(index), variant=variant, dtype=dtype)


def problems_of(index: dict[str, IndexEntry], **options: str) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        plan_of(index, **options)
    return caught.value.problems


@pytest.fixture
def index() -> dict[str, IndexEntry]:
    return official_index("glip-t")


@pytest.mark.parametrize(
    ("model", "variant"), [("glip-t-a", "glip-t-a"), ("glip-t-b", "glip-t"), ("glip-t", "glip-t"), ("glip-l", "glip-l")]
)
def test_every_official_tensor_is_accounted_for(model: str, variant: str) -> None:
    index = official_index(model)
    plan = plan_of(index)
    assert plan.variant.name == variant
    used = [source.name for step in plan.steps for source in step.sources]
    left_out = [out.tensor.name for out in plan.left_out]
    assert sorted(used + left_out) == sorted(index)
    assert {t.name: t.shape for t in plan.targets} == TABLE.spec.tensors(plan.config)


def test_the_order_and_prefix_of_keys_do_not_matter(index: dict[str, IndexEntry]) -> None:
    bare = {
        k.removeprefix("module."): replace(v, name=k.removeprefix("module.")) for k, v in reversed(list(index.items()))
    }
    assert [s.targets for s in plan_of(bare).steps] == [s.targets for s in plan_of(index).steps]


def test_query_key_and_value_are_joined_in_this_order(index: dict[str, IndexEntry]) -> None:
    (step,) = (s for s in plan_of(index).steps if s.targets[0].name == "text_encoder.layers.3.attention.qkv.bias")
    prefix = "module.language_backbone.body.model.encoder.layer.3.attention.self."
    assert [s.name for s in step.sources] == [f"{prefix}{part}.bias" for part in ("query", "key", "value")]
    assert step.describe() == ["concat(axis=0, sizes=(768, 768, 768))"]


def test_the_reverse_plan_names_every_kept_source_once(index: dict[str, IndexEntry]) -> None:
    plan = plan_of(index)
    back = plan.reverse()
    assert {t.name: t.shape for t in back.targets} == {s.name: s.shape for step in plan.steps for s in step.sources}
    assert back.reverse().steps == plan.steps


def test_optional_keys(index: dict[str, IndexEntry]) -> None:
    for key in [k for k in index if k.endswith(("position_ids", "relative_position_index")) or "cell_anchors" in k]:
        del index[key]
    head = "module.rpn.head.mlm_head."
    for key, shape in {
        "module.rpn.tunable_linear.weight": (1000, 768),
        f"{head}bias": (30522,),
        f"{head}transform.dense.weight": (768, 768),
        f"{head}transform.LayerNorm.bias": (768,),
        f"{head}decoder.weight": (30522, 768),
    }.items():
        index[key] = IndexEntry(key, shape, F32)
    plan = plan_of(index)
    assert plan.config["prompt_length"] == 1000
    assert ("head.prompt.weight", (1000, 768)) in [(t.name, t.shape) for t in plan.targets]
    assert sum("mlm_head" in out.tensor.name for out in plan.left_out) == 4


@pytest.mark.parametrize("model", ["glip-t-a", "glip-t", "glip-l"])
def test_the_variant_that_the_shapes_speak_for_is_fitted_first(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []
    init = Fit.__post_init__

    def noted(fit: Fit) -> None:
        fitted.append(fit.variant.name)
        init(fit)

    monkeypatch.setattr(Fit, "__post_init__", noted)
    plan_of(official_index(model))
    assert fitted == [model]


def test_a_stated_variant_is_taken_by_any_of_its_names(index: dict[str, IndexEntry]) -> None:
    assert plan_of(index, variant="glip-t-c").variant.name == "glip-t"
    with pytest.raises(PlanError, match="no variant 'glip-x'; known: glip-t-a, glip-t, glip-t-b, glip-t-c, glip-l"):
        plan_of(index, variant="glip-x")


def test_a_wrong_variant_is_refused_with_the_right_one_named(index: dict[str, IndexEntry]) -> None:
    for wrong in ("glip-l", "glip-t-a"):
        with pytest.raises(PlanError, match=f"{wrong} was stated, but every tensor is that of glip-t") as refused:
            plan_of(index, variant=wrong)
        assert not refused.value.problems
    del index["module.backbone.body.patch_embed.proj.weight"]
    with pytest.raises(PlanError, match="glip-l was stated, but this looks like glip-t "):
        plan_of(index, variant="glip-l")


def missing_block(index: dict[str, IndexEntry]) -> set[str]:
    keys = {k for k in index if "layers.2.blocks.5." in k}
    for key in keys:
        del index[key]
    return {k.removeprefix("module.") for k in keys if "relative_position_index" not in k}


def extra_keys(index: dict[str, IndexEntry]) -> set[str]:
    extra = {
        "module.rpn.head.foo.weight": (256, 256),
        "module.backbone.body.layers.2.blocks.6.norm1.weight": (384,),
        "module.rpn.head.dyhead_tower.18.b_attn.gamma_v": (256,),
        "module.rpn.head.dyhead_tower.0.attention.self.query.bias": (768,),
    }
    index.update({k: IndexEntry(k, shape, F32) for k, shape in extra.items()})
    return set(extra)


def transposed(index: dict[str, IndexEntry]) -> set[str]:
    key = "module.rpn.head.dot_product_projection_text.weight"
    index[key] = replace(index[key], shape=(768, 256))
    return {key}


def wrong_dtypes(index: dict[str, IndexEntry]) -> set[str]:
    keys = ["module.rpn.head.bias0", "module.rpn.head.bias_lang"]
    index[keys[0]] = replace(index[keys[0]], dtype=DTYPES["int64"])
    index[keys[1]] = replace(index[keys[1]], dtype=DTYPES["complex64"])
    return set(keys)


def collision(index: dict[str, IndexEntry]) -> set[str]:
    index["rpn.head.bias0"] = IndexEntry("rpn.head.bias0", (1,), F32)
    return {"rpn.head.bias0", "module.rpn.head.bias0"}


FAULTS = [missing_block, extra_keys, transposed, wrong_dtypes, collision]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_each_fault_is_named_and_nothing_else(
    index: dict[str, IndexEntry], fault: Callable[[dict[str, IndexEntry]], set[str]]
) -> None:
    names = fault(index)
    problems = problems_of(index)
    assert all(any(repr(name) in problem for problem in problems) for name in names)
    assert all(any(repr(name) in problem for name in names) for problem in problems)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("embeddings.LayerNorm.gamma", "same key once wrappers are taken off and other names are replaced"),
        ("module.embeddings.LayerNorm.gamma", "same key once wrappers are taken off and other names are replaced"),
        ("module.embeddings.LayerNorm.weight", "same key once wrappers are taken off."),
    ],
)
def test_an_older_name_beside_the_newer_one_is_said_to_be_that(other: str, said: str) -> None:
    names = ["embeddings.LayerNorm.weight", other]
    (problem,) = by_key({n: IndexEntry(n, (768,), F32) for n in names}, load_table("transformers-bert"))[1]
    assert said in problem


def test_all_faults_are_reported_at_once(index: dict[str, IndexEntry]) -> None:
    names = set().union(*(fault(index) for fault in FAULTS))
    problems = problems_of(index)
    assert all(any(repr(name) in problem for problem in problems) for name in names)


def test_a_refusal_says_what_is_near(index: dict[str, IndexEntry]) -> None:
    index["module.rpn.head.dyhead_tower.2.offest.weight"] = index.pop("module.rpn.head.dyhead_tower.2.offset.weight")
    unknown = next(p for p in problems_of(index) if p.startswith("no rule matches"))
    assert "Nearest: 'rpn.head.dyhead_tower.2.offset.weight' (27, 256, 3, 3)" in unknown


def test_a_transposed_matrix_is_called_that(index: dict[str, IndexEntry]) -> None:
    transposed(index)
    (problem,) = problems_of(index)
    assert "is (768, 256) (it looks transposed)" in problem


def test_another_model_is_refused_as_such() -> None:
    resnet = {k: IndexEntry(k, (64, 3, 7, 7), F32) for k in ("conv1.weight", "layer1.0.conv1.weight", "fc.bias")}
    with pytest.raises(PlanError, match="not a checkpoint of this family: among its 3 tensors 0 of the"):
        plan_of(resnet)


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(PlanError, match="among its 0 tensors"):
        plan_of({})


def test_what_shapes_cannot_tell_is_listed(index: dict[str, IndexEntry]) -> None:
    plan = plan_of(index)
    groups = dict(plan.indistinguishable())
    assert {"head.blocks.0.fusion.image_query.weight", "head.blocks.5.fusion.image_value.weight"} <= set(
        groups[(2048, 256)]
    )
    assert "backbone.stages.0.blocks.0.attention.projection.weight" in plan.transposable()
    assert not any(name.endswith(("norm1.weight", "qkv.weight")) for name in plan.transposable())


def test_a_stated_dtype_is_cast_to_and_its_loss_is_known(index: dict[str, IndexEntry]) -> None:
    assert all(step.is_lossless and not step.casts for step in plan_of(index).steps)
    assert not any(step.is_lossless for step in plan_of(index, dtype="bfloat16").steps)
    assert all(step.is_lossless and step.casts for step in plan_of(index, dtype="float64").steps)


@pytest.mark.parametrize("name", ["module.rpn.tunable_linear.weight", "module.something.else"])
def test_a_tensor_that_cannot_be_read_is_not_dropped_in_silence(name: str, index: dict[str, IndexEntry]) -> None:
    table = load_table("glip-official")
    with pytest.raises(PlanError, match="is sparse; the table does not leave it out"):
        make_plan(table, Index(index, {name: f"tensor {name!r}: it is sparse"}))
    found = make_plan(table, Index(index, objects={name: "an object"}), refuse=False).problems
    # where the format could have a tensor, an object is one that was lost
    assert found == (("an object; the table does not leave it out",) if "tunable_linear" in name else ())


def test_one_that_the_table_leaves_out_may_be_unreadable(index: dict[str, IndexEntry]) -> None:
    name = "module.rpn.head.mlm_head.bias"
    assert make_plan(load_table("glip-official"), Index(index, {name: "it is sparse"})).problems == ()


def test_many_unknown_names_take_little_time(index: dict[str, IndexEntry]) -> None:
    letters = random.Random(0)
    more = {}
    for _ in range(20_000):
        key = "module.rpn.head." + "".join(letters.choices("abcdefgh", k=60))
        more[key] = IndexEntry(key, (1,), DTYPES["float32"])
    start = time.perf_counter()
    plan = make_plan(load_table("glip-official"), Index(index | more), refuse=False)
    assert len(plan.problems) == 20_000
    assert time.perf_counter() - start < 20  # minutes, if near names were searched for each


def test_a_variant_that_cannot_be_is_no_matter_where_another_one_fits(tmp_path: Path) -> None:
    spec = {
        "kind": "spec", "name": "tiny", "title": "x", "config": {"width": "w"},
        "variants": {name: {"title": "x", "config": {"width": width}} for name, width in (("good", 8), ("bad", 2))},
        "tensors": [{"name": "fc", "weight": ["width", "width - 3"]}],
    }  # fmt: skip
    rule = {"source": "linear.weight", "target": "fc.weight"}
    table = {"kind": "table", "name": "tt", "title": "x", "target": "tiny", "rules": [rule]}
    (tmp_path / "tiny.json").write_text(json.dumps(spec))
    (tmp_path / "t.json").write_text(json.dumps(table))
    plan = make_plan(
        load_table(tmp_path / "t.json"), Index({"linear.weight": IndexEntry("linear.weight", (8, 5), F32)})
    )
    assert plan.variant.name == "good"
