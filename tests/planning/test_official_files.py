"""The files that GLIP's and DesCo's authors list have the official names: it follows from their configurations."""

from __future__ import annotations

from typing import Any

import pytest

from converter.checkpoint import DTYPES
from converter.errors import PlanError
from converter.planning.fit import make_plan
from converter.planning.formats import load_format, make_route, recognise
from scripts.synthetic_checkpoint import MODELS, manifest
from tests import ROOT
from tests.support.official_keys import Index, IndexEntry
from tests.support.official_names import ZOO, official_names, settings_of

BUFFERS = ("relative_position_index", "position_ids", "cell_anchors")
FUSE = "DYHEAD.FUSE_CONFIG."
CONFIG_OF = {
    "glip-t-a": "configs/pretrain/glip_A_Swin_T_O365.yaml",
    "glip-t-b": "configs/pretrain/glip_Swin_T_O365.yaml",
    "glip-t": "configs/pretrain/glip_Swin_T_O365_GoldG.yaml",
    "glip-l": "configs/pretrain/glip_Swin_L.yaml",
}


def index(settings: dict[str, Any], *extra: str) -> Index:
    """The tensors of a model of these settings, and some more of one element."""
    named = official_names(settings) | dict.fromkeys(extra, (1,))
    return Index({name: IndexEntry(name, shape, DTYPES["float32"]) for name, shape in named.items()})


@pytest.mark.parametrize("model", MODELS)
def test_the_settings_give_the_names_of_the_recorded_state_dicts(model: str) -> None:
    recorded = {name: shape for name, shape, _ in manifest(model) if not any(buffer in name for buffer in BUFFERS)}
    assert official_names(settings_of(CONFIG_OF[model])) == recorded


@pytest.mark.parametrize("file", ZOO["files"], ids=lambda file: file["file"])
def test_each_listed_file_is_of_the_stated_variant(file: dict[str, str]) -> None:
    checkpoint = index(settings_of(file["config"]))
    table = recognise(checkpoint)
    plan = make_route(table, load_format("glip"), checkpoint)
    assert (table.name, plan.variant.name) == ("glip-official", file["variant"])
    assert {name.removeprefix("module.") for name in checkpoint.tensors if ".cls_logits." in name} == {
        out.tensor.name.removeprefix("module.") for out in plan.left_out
    }


def test_the_document_lists_them_all() -> None:
    text = (ROOT / "docs" / "files-zoo.md").read_text()
    for file in ZOO["files"]:
        (row,) = (line for line in text.splitlines() if f"`{file['file']}`" in line)
        assert f"`{file['config'].rpartition('/')[2]}`" in row
        assert f"`{file['variant']}`" in row
    assert all(config["commit"][:8] in text for config in ZOO["configs"].values())


@pytest.mark.parametrize(
    ("setting", "part"), [("MLM_LOSS", "rpn.head.mlm_head."), ("ADD_LINEAR_LAYER", "rpn.tunable_linear.")]
)
def test_settings_of_training_that_add_names_are_known(setting: str, part: str) -> None:
    settings = settings_of("configs/pretrain_new/desco_glip.yaml") | {FUSE + setting: True}
    checkpoint = index(settings)
    added = [name for name in checkpoint.tensors if part in name]
    assert added
    plan = make_plan(load_format("glip-official"), checkpoint)
    left_out = {out.tensor.name for out in plan.left_out}
    assert left_out.issuperset(added) if setting == "MLM_LOSS" else plan.config["prompt_length"] == 1000


def test_a_text_layer_that_a_setting_leaves_out_is_missed() -> None:
    """The last one, where the logits do not come of fused features."""
    settings = settings_of(CONFIG_OF["glip-t"]) | {f"{FUSE}USE_FUSED_FEATURES_DOT_PRODUCT": False}
    with pytest.raises(PlanError) as refused:
        make_plan(load_format("glip-official"), index(settings))
    assert all("'rpn.head.dyhead_tower.16." in problem and "missing" in problem for problem in refused.value.problems)


@pytest.mark.parametrize(
    "name",
    [
        "rpn.head.token_logits.weight",  # USE_TOKEN_LOSS
        "rpn.head.contrastive_align_projection_text.weight",  # USE_CONTRASTIVE_ALIGN_LOSS
        "rpn.head.dyhead_tower.0.t2i_attn.q_proj_weight.weight",  # TYPE: MHA-S
        "rpn.head.dyhead_tower.0.b_attn.shrink_lang.fc.weight",  # SEPARATE_BIDIRECTIONAL
        "backbone.body.absolute_pos_embed",  # SWINT.APE
    ],
)
def test_names_of_other_settings_are_refused_by_name(name: str) -> None:
    with pytest.raises(PlanError) as refused:
        make_plan(load_format("glip-official"), index(settings_of(CONFIG_OF["glip-t"]), f"module.{name}"))
    (problem,) = refused.value.problems
    assert f"no rule matches 'module.{name}' (1,)" in problem


def test_desco_fiber_is_refused_in_one_sentence_first() -> None:
    """Its head has GLIP's names."""
    settings = settings_of(CONFIG_OF["glip-t-a"])
    named = {
        name.replace("module.", "module.fusion_backbone.") if "backbone" in name else name: shape
        for name, shape in official_names(settings).items()
    }
    checkpoint = Index({name: IndexEntry(name, shape, DTYPES["float32"]) for name, shape in named.items()})
    with pytest.raises(PlanError) as refused:
        make_plan(load_format("glip-official"), checkpoint)
    assert refused.value.problems[0].startswith(
        "this is FIBER or DesCo-FIBER, whose encoders of image and text are one"
    )
