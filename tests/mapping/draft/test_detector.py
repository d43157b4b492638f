"""A draft for a model of 938 tensors: Grounding DINO as its authors' package writes it, and as transformers does.

The truth is what both packages compute (groundingdino-py 0.4.0, transformers 5.24.0) and what transformers' own script,
convert_grounding_dino_to_hf.py of release 4.57, renames.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.mapping.draft import Draft, Named, known_target, new_target, propose
from converter.mapping.draft.names import take_apart
from converter.mapping.lint import lint
from converter.mapping.pattern import compile_pattern
from converter.planning.fit import make_plan
from tests import DATA, ROOT
from tests.mapping.draft.test_draft import index_of, loaded, pairs, stored, wrong_though_sure
from tests.support.official_keys import Index

SOURCE, TARGET = "groundingdino-swint", "hf-grounding-dino-tiny"
_SWIN, _HF_SWIN = "backbone.0.", "model.backbone.conv_encoder.model."
_BLOCK, _HF_BLOCK = f"{_SWIN}layers.{{a}}.blocks.{{b}}.", f"{_HF_SWIN}encoder.layers.{{a}}.blocks.{{b}}."
_LAYERS, _HF_LAYERS = "transformer.encoder.", "model.encoder.layers.{a}."
_DECODER, _HF_DECODER = "transformer.decoder.layers.{a}.", "model.decoder.layers.{a}."
_WAYS = {"v": "vision", "l": "text"}
PARTS = ("query", "key", "value")
TRUTH: dict[str, str] = {
    f"{_SWIN}patch_embed.proj.{{p}}": f"{_HF_SWIN}embeddings.patch_embeddings.projection.{{p}}",
    f"{_SWIN}patch_embed.norm.{{p}}": f"{_HF_SWIN}embeddings.norm.{{p}}",
    f"{_BLOCK}norm1.{{p}}": f"{_HF_BLOCK}layernorm_before.{{p}}",
    f"{_BLOCK}norm2.{{p}}": f"{_HF_BLOCK}layernorm_after.{{p}}",
    f"{_BLOCK}attn.proj.{{p}}": f"{_HF_BLOCK}attention.output.dense.{{p}}",
    f"{_BLOCK}attn.relative_position_bias_table": f"{_HF_BLOCK}attention.self.relative_position_bias_table",
    f"{_BLOCK}mlp.fc1.{{p}}": f"{_HF_BLOCK}intermediate.dense.{{p}}",
    f"{_BLOCK}mlp.fc2.{{p}}": f"{_HF_BLOCK}output.dense.{{p}}",
    f"{_SWIN}layers.{{a}}.downsample.norm.{{p}}": f"{_HF_SWIN}encoder.layers.{{a}}.downsample.norm.{{p}}",
    f"{_SWIN}layers.{{a}}.downsample.reduction.{{p}}": f"{_HF_SWIN}encoder.layers.{{a}}.downsample.reduction.{{p}}",
    f"{_SWIN}norm{{a}}.{{p}}": f"{_HF_SWIN}hidden_states_norms.stage{{a + 1}}.{{p}}",
    f"{_LAYERS}layers.{{a}}.norm1.{{p}}": f"{_HF_LAYERS}deformable_layer.self_attn_layer_norm.{{p}}",
    f"{_LAYERS}layers.{{a}}.norm2.{{p}}": f"{_HF_LAYERS}deformable_layer.final_layer_norm.{{p}}",
    f"{_LAYERS}layers.{{a}}.linear{{b}}.{{p}}": f"{_HF_LAYERS}deformable_layer.fc{{b}}.{{p}}",
    f"{_LAYERS}text_layers.{{a}}.norm1.{{p}}": f"{_HF_LAYERS}text_enhancer_layer.layer_norm_before.{{p}}",
    f"{_LAYERS}text_layers.{{a}}.norm2.{{p}}": f"{_HF_LAYERS}text_enhancer_layer.layer_norm_after.{{p}}",
    f"{_LAYERS}text_layers.{{a}}.linear{{b}}.{{p}}": f"{_HF_LAYERS}text_enhancer_layer.fc{{b}}.{{p}}",
    f"{_LAYERS}text_layers.{{a}}.self_attn.out_proj.{{p}}": f"{_HF_LAYERS}text_enhancer_layer.self_attn.out_proj.{{p}}",
    **{
        f"{_LAYERS}fusion_layers.{{a}}.{name.format(v)}": f"{_HF_LAYERS}fusion_layer.{becomes.format(way)}"
        for v, way in _WAYS.items()
        for name, becomes in {
            "gamma_{}": "{}_param",
            "layer_norm_{}.{{p}}": "layer_norm_{}.{{p}}",
            "attn.{}_proj.{{p}}": "attn.{}_proj.{{p}}",
            "attn.values_{}_proj.{{p}}": "attn.values_{}_proj.{{p}}",
            "attn.out_{}_proj.{{p}}": "attn.out_{}_proj.{{p}}",
        }.items()
    },
    **{
        f"{source}.{module}.{{p}}": f"{target}.{module}.{{p}}"
        for source, target in {
            f"{_LAYERS}layers.{{a}}.self_attn": f"{_HF_LAYERS}deformable_layer.self_attn",
            f"{_DECODER}cross_attn": f"{_HF_DECODER}encoder_attn",
        }.items()
        for module in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    },
    f"{_DECODER}norm1.{{p}}": f"{_HF_DECODER}encoder_attn_layer_norm.{{p}}",
    f"{_DECODER}norm2.{{p}}": f"{_HF_DECODER}self_attn_layer_norm.{{p}}",
    f"{_DECODER}norm3.{{p}}": f"{_HF_DECODER}final_layer_norm.{{p}}",
    f"{_DECODER}catext_norm.{{p}}": f"{_HF_DECODER}encoder_attn_text_layer_norm.{{p}}",
    f"{_DECODER}linear{{b}}.{{p}}": f"{_HF_DECODER}fc{{b}}.{{p}}",
    f"{_DECODER}self_attn.out_proj.{{p}}": f"{_HF_DECODER}self_attn.out_proj.{{p}}",
    f"{_DECODER}ca_text.out_proj.{{p}}": f"{_HF_DECODER}encoder_attn_text.out_proj.{{p}}",
    "transformer.decoder.ref_point_head.layers.{a}.{p}": "model.decoder.reference_points_head.layers.{a}.{p}",
    "transformer.decoder.norm.{p}": "model.decoder.layer_norm.{p}",
    "transformer.enc_output.{p}": "model.enc_output.{p}",
    "transformer.enc_output_norm.{p}": "model.enc_output_norm.{p}",
    "transformer.enc_out_bbox_embed.layers.{a}.{p}": "model.encoder_output_bbox_embed.layers.{a}.{p}",
    "transformer.level_embed": "model.level_embed",
    "transformer.tgt_embed.weight": "model.query_position_embeddings.weight",
    "bbox_embed.0.layers.{a}.{p}": "bbox_embed.0.layers.{a}.{p}",
    "input_proj.{a}.{b}.{p}": "model.input_proj_vision.{a}.{b}.{p}",
    "feat_map.{p}": "model.text_projection.{p}",
}
JOINT: dict[str, str] = {
    f"{_BLOCK}attn.qkv.{{p}}": f"{_HF_BLOCK}attention.self.PART.{{p}}",
    f"{_LAYERS}text_layers.{{a}}.self_attn.in_proj_{{p}}": f"{_HF_LAYERS}text_enhancer_layer.self_attn.PART.{{p}}",
    f"{_DECODER}self_attn.in_proj_{{p}}": f"{_HF_DECODER}self_attn.PART.{{p}}",
    f"{_DECODER}ca_text.in_proj_{{p}}": f"{_HF_DECODER}encoder_attn_text.PART.{{p}}",
}


def sources() -> list[Named]:
    """The tensors of the source, in its order; those of one module have one mark under each of its names."""
    modules = sorted(json.loads((DATA / "draft" / f"{SOURCE}.json").read_text())["shared"], key=len)
    found = []
    for tensor in stored(SOURCE):
        module = next((m for m in modules if tensor.name.startswith(m)), None)
        numbers = tensor.name.removeprefix(module) if module else ""
        found.append(Named(tensor.name, tensor.shape, tensor.kind, numbers))
    return found


def truth() -> Iterator[tuple[str, str]]:
    """Every (source, target)."""
    words = {"p": ("weight", "bias")}
    rules = [*TRUTH.items(), *((joint, part.replace("PART", one)) for joint, part in JOINT.items() for one in PARTS)]
    compiled = [tuple(compile_pattern(text, words, {}) for text in rule) for rule in rules]
    for tensor in stored(SOURCE):
        if tensor.name.startswith("bert.") and ".pooler." not in tensor.name:
            yield tensor.name, tensor.name.replace("bert", "model.text_backbone")
        for source, target in compiled:
            if (captures := source.match(tensor.name)) is not None:
                yield tensor.name, target.format(captures)


@pytest.fixture(scope="module")
def draft() -> Draft:
    return propose("official", sources(), new_target(TARGET, stored(TARGET)))


def test_the_truth_is_all_that_the_target_has_but_one_norm() -> None:
    made = [target for _, target in truth()]
    left = {tensor.name for tensor in stored(TARGET)} - set(made)
    assert len(made) == len(set(made)) == 978
    assert left == {f"{_HF_SWIN}swin.layernorm.{p}" for p in ("weight", "bias")}


def test_what_neither_has_of_the_other_is_left_alone(draft: Draft) -> None:
    """The pooler's bias is as long as a norm that only the target has, and is not it."""
    assert {t.name for t in draft.matching.left_sources} >= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert {t.name for t in draft.matching.left_targets} == {
        f"{_HF_SWIN}swin.layernorm.{p}" for p in ("weight", "bias")
    }


def test_other_names_of_one_module_are_left_out_as_copies(draft: Draft) -> None:
    """Of the 12 names of the box head the one that the target has, too, is matched, and none takes another's place."""
    shared = [tensor.name for tensor in sources() if tensor.numbers]
    assert {name for name in shared if name not in draft.copies} == {
        f"bbox_embed.0.layers.{i}.{p}" for i in range(3) for p in ("weight", "bias")
    }
    assert len(shared) == 72
    assert all(name.endswith(draft.copies[name].removeprefix("bbox_embed.0.")) for name in draft.copies)
    told = {entry["source"]: entry["doubt"] for entry in draft.table["ignore"] if "with the numbers" in entry["doubt"]}
    assert told.keys() == {
        f"{stem}.layers.{{layer}}.{p}"
        for stem in ("bbox_embed.{bbox_embed + 1}", "transformer.decoder.bbox_embed.{bbox_embed}")
        for p in ("weight", "bias")
    }
    assert all("the numbers of bbox_embed.0.layers.{layer}" in doubt for doubt in told.values())
    assert all(entry["rebuild"]["as"] == "copy" for entry in draft.table["ignore"] if entry["source"] in told)


def test_the_draft_is_sound_once_all_is_settled(draft: Draft, tmp_path: Path) -> None:
    """The norm that only the target has is named as absent, in doubt like all else that is not sure."""
    (absent,) = draft.table["absent"]
    assert absent["target"] == f"{_HF_SWIN}swin.layernorm.{{param}}"
    assert "2 of shape (768,): does the source hold it nowhere?" in absent["doubt"]
    assert lint(loaded(draft, tmp_path)) == []


@pytest.mark.parametrize(("known", "count"), [(True, "depths[layer]"), (False, "num_blocks[layer]")])
def test_a_buffer_is_rebuilt_for_every_block_of_every_stage(known: bool, count: str, draft: Draft) -> None:
    found = propose("official", sources(), known_target("transformers-grounding-dino", sources())) if known else draft
    (entry,) = (e for e in found.table["ignore"] if e["source"].endswith("relative_position_index"))
    assert entry["rebuild"] == {"as": "relative_position_index", "window_size": 7}
    assert entry["written"] == {"layer": 4, "block": count}
    assert "doubt" in entry


def test_for_the_spec_that_people_wrote_all_is_found(tmp_path: Path) -> None:
    draft = propose("official", sources(), known_target("transformers-grounding-dino", sources()))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(sources())))
    assert draft.variant == "grounding-dino-tiny"
    assert pairs(plan).keys() == set(truth())


def test_a_target_that_has_all_names_gets_all() -> None:
    draft = propose("same", sources(), new_target("other", stored(SOURCE)))
    assert draft.matching.left_sources == draft.matching.left_targets == ()


def test_norms_that_only_numbers_tell_apart_are_proposed_by_the_order_of_the_file(draft: Draft, tmp_path: Path) -> None:
    """`norm1` stands behind `cross_attn`, which becomes `encoder_attn`, and there is an `encoder_attn_layer_norm`."""
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(sources())), refuse=False)
    assert pairs(plan).keys() == set(truth())
    (norm,) = (rule for rule in draft.doubtful if rule["source"] == "transformer.decoder.layers.{layer}.norm1.{param}")
    assert "do not tell candidates of one shape apart" in norm["doubt"]
    assert norm["doubt"].endswith("proposed for what stands before it in the file")


@pytest.mark.parametrize("order", ["as it is", "sorted", "mixed"])
def test_a_sure_rule_is_right_in_any_order(order: str, tmp_path: Path) -> None:
    tensors = sources()
    if order != "as it is":
        tensors.sort(key=lambda tensor: tensor.name)
    if order == "mixed":
        random.Random(0).shuffle(tensors)
    draft = propose("official", tensors, new_target(TARGET, stored(TARGET)))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(tensors)), refuse=False)
    assert wrong_though_sure(draft, plan, truth()) == []
    assert len(pairs(plan).keys() & set(truth())) >= 0.92 * 978


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_sure_rule_is_right_though_families_are_missing(seed: int, back: bool, tmp_path: Path) -> None:
    """One family in fifty on either side: what is like a neighbour's counterpart, or one layer of another tower, is not
    taken for its own."""
    chance = random.Random(seed)

    def some(tensors: list[Named]) -> list[Named]:
        kept = {f for f in sorted({take_apart(t.name)[0] for t in tensors}) if chance.random() >= 0.02}
        return [tensor for tensor in tensors if take_apart(tensor.name)[0] in kept]

    left, right = some(sources()), some(stored(TARGET))
    known = {*truth(), *((n.name, f"bbox_embed.0.{n.numbers}") for n in left if n.numbers)}
    if back:
        left, right, known = right, left, {(target, source) for source, target in known}
    draft = propose("official", left, new_target(TARGET, right))
    plan = make_plan(loaded(draft, tmp_path), Index(index_of(left)), refuse=False)
    assert wrong_though_sure(draft, plan, known) == []


def test_a_doubt_about_a_norm_names_the_one_that_is_left_over(draft: Draft) -> None:
    """And what has another shape than that has no doubt for it."""
    doubts = {rule["source"]: rule["doubt"] for rule in draft.doubtful}
    assert (
        f"'{_HF_SWIN}swin.layernorm' of this shape has no counterpart" in doubts["backbone.0.norm{stage + 1}.{param}"]
    )
    assert "backbone.0.layers.{layer}.blocks.{block}.attn.proj.{param}" not in doubts
    assert "input_proj.{input_proj_vision}.{item}.{param}" not in doubts


def test_the_figures_that_the_document_states(draft: Draft, tmp_path: Path) -> None:
    known = propose("official", sources(), known_target("transformers-grounding-dino", sources()))
    text = (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8")
    stated = {
        cells[1].strip(): [c.strip() for c in cells[3:5]]
        for cells in map(re.compile(r"\|").split, text.splitlines())
        if len(cells) == 6
    }
    for column, found in enumerate((draft, known)):
        (folder := tmp_path / str(column)).mkdir()
        made = pairs(make_plan(loaded(found, folder), Index(index_of(sources()))))
        sure = {pair for pair, rule in made.items() if rule not in found.doubts}
        measured = {
            "rules": len(found.table["rules"]),
            "of 978 target tensors, right": len(made.keys() & set(truth())),
            "said to be sure": len(sure),
            "sure and wrong": len(sure - set(truth())),
            "doubts": len(found.doubts),
        }
        assert {label: int(stated[label][column]) for label in measured} == measured
