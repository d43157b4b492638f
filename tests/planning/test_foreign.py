"""A model that GLIP's keys are part of is refused in one sentence, not in one for each of its other keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from converter.checkpoint import DTYPES
from converter.errors import PlanError
from converter.planning.fit import make_plan
from converter.planning.formats import load_format, recognise
from tests.support.official_keys import Index, IndexEntry, official_index

BERT = "module.language_backbone.body.model"


def mq_det() -> Iterator[tuple[str, tuple[int, ...]]]:
    """What MQ-Det adds to GLIP-T: maskrcnn_benchmark/modeling/language_backbone/modeling_bert_new.py of its code."""

    def feed_forward(at: str, size: int, inner: int, made: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{at}.norm.{param}", (size,)) for param in ("weight", "bias"))
        yield from ((f"{at}.linear1.weight", (inner, size)), (f"{at}.linear2.weight", (made, inner)))

    def attention(at: str, size: int, inner: int, made: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{at}.{norm}.{param}", (size,)) for norm in ("norm", "norm_kv") for param in ("weight", "bias"))
        yield from ((f"{at}.to_q.weight", (inner, size)), (f"{at}.to_kv.weight", (2 * inner, size)))
        yield f"{at}.to_out.weight", (made, inner)

    for layer in range(6):
        at = f"{BERT}.encoder.qv_layer.{layer}"
        yield from attention(f"{at}.attn", 768, 512, 768)
        yield from feed_forward(f"{at}.attn_gate", 768, 384, 1)
        yield from feed_forward(f"{at}.ff", 768, 3072, 768)
        yield f"{at}.ff_gate", (1,)
    for block, made in enumerate((256, 768)):
        at = f"{BERT}.pre_select.layers.{block}"
        yield from attention(f"{at}.image_condition", 256, 256, made)
        yield from feed_forward(f"{at}.ff", made, 4 * made, made)
    yield f"{BERT}.pre_select.layers.1.res_mapping.weight", (768, 256)
    yield f"{BERT}.embeddings.mask_tok_qv_layer", (768,)


def index(model: str, *extra: tuple[str, tuple[int, ...]]) -> Index:
    return Index(official_index(model) | {name: IndexEntry(name, shape, DTYPES["float32"]) for name, shape in extra})


def test_mq_det_is_recognised_and_refused_in_one_sentence() -> None:
    checkpoint = index("glip-t", *mq_det())
    added = len(checkpoint.tensors) - len(official_index("glip-t"))
    assert added > 100
    table = recognise(checkpoint)
    assert table.name == "glip-official"
    with pytest.raises(PlanError) as refused:
        make_plan(table, checkpoint)
    (problem,) = refused.value.problems
    assert problem.startswith("this is MQ-Det, which looks for what is on given pictures, too")
    assert problem.endswith(f": '{BERT}.encoder.qv_layer.0.attn.norm.weight' (768,) and {added - 1} more tensors")


def test_one_such_tensor_is_enough() -> None:
    checkpoint = index("glip-t", ("module.rpn.head.query_fuse_qv_layer.fuse.attn_gate", (1,)))
    with pytest.raises(PlanError) as refused:
        make_plan(load_format("glip-official"), checkpoint)
    (problem,) = refused.value.problems
    assert problem.endswith(": 'module.rpn.head.query_fuse_qv_layer.fuse.attn_gate' (1,)")


def test_other_unknown_keys_are_still_named_one_by_one() -> None:
    checkpoint = index("glip-t", *mq_det(), ("module.stray", (3,)), ("module.rpn.head.stray", (4,)))
    plan = make_plan(load_format("glip-official"), checkpoint, refuse=False)
    assert sum("no rule matches" in problem for problem in plan.problems) == 2
    assert len(plan.problems) == 3


def test_a_key_of_the_format_is_not_taken_for_a_foreign_one() -> None:
    """Whatever is in its name."""
    table = replace(load_format("glip-official"), parts_of_others={"backbone": "no GLIP"})
    assert not make_plan(table, index("glip-t"), refuse=False).problems
