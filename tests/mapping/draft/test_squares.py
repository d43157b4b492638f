"""No shape tells whether a square matrix is transposed: it is in doubt unless another matrix of its kind tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from converter.mapping.draft import Draft, Named, new_target, propose, squares_as_stored
from converter.mapping.lint import lint
from tests.mapping.draft.test_draft import loaded

WIDTH = 8
Shapes = Mapping[str, Sequence[int]]


def tensors(shapes: Shapes, layers: int = 2) -> list[Named]:
    """`#` in a name counts layers."""
    named = [(name.replace("#", str(i)), s) for name, s in shapes.items() for i in range(layers if "#" in name else 1)]
    return [Named(name, tuple(shape)) for name, shape in named]


def draft(source: Shapes, target: Shapes) -> Draft:
    return propose("one", tensors(source), new_target("other", tensors(target)))


def rule(found: Draft, target: str) -> dict[str, Any]:
    (rule,) = (rule for rule in found.table["rules"] if rule["target"] == target)
    return rule


def square_doubts(found: Draft) -> set[str]:
    """Targets of the rules that are in doubt about a transposition."""
    return {str(rule["target"]) for rule in found.doubtful if "is square" in rule["doubt"]}


LINEAR = {
    "blocks.#.attn.proj.weight": (WIDTH, WIDTH), "blocks.#.attn.proj.bias": (WIDTH,),
    "blocks.#.mlp.fc1.weight": (3 * WIDTH, WIDTH), "blocks.#.mlp.fc1.bias": (3 * WIDTH,),
}  # fmt: skip
RENAMED = {name.replace("blocks", "layers"): shape for name, shape in LINEAR.items()}


def test_other_matrices_with_biases_tell_how_those_of_modules_are_stored() -> None:
    found = draft(LINEAR, RENAMED)
    assert found.doubtful == []
    assert sorted(squares_as_stored(found.matching)) == [f"layers.{i}.attn.proj.weight" for i in range(2)]


def test_a_bare_parameter_is_in_doubt_though_they_do() -> None:
    found = draft({**LINEAR, "text_projection": (WIDTH, WIDTH)}, {**RENAMED, "text_projection.weight": (WIDTH, WIDTH)})
    assert square_doubts(found) == {"text_projection.weight"}
    assert "'text_projection' is a parameter of no module" in rule(found, "text_projection.weight")["doubt"]


def test_one_transposed_matrix_puts_every_square_one_in_doubt(tmp_path: Path) -> None:
    source = {**LINEAR, "text_projection": (WIDTH, WIDTH), "visual.proj": (5, WIDTH)}
    target = {**RENAMED, "text_projection.weight": (WIDTH, WIDTH), "visual_projection.weight": (WIDTH, 5)}
    found = draft(source, target)
    assert square_doubts(found) == {"text_projection.weight", "layers.{layer}.attn.proj.weight"}
    assert "'visual.proj' is" in rule(found, "text_projection.weight")["doubt"]
    assert squares_as_stored(found.matching) == []
    assert lint(loaded(found, tmp_path)) == []


def test_the_doubt_is_of_the_matrix_and_not_of_its_bias() -> None:
    found = draft({**LINEAR, "visual.proj": (5, WIDTH)}, {**RENAMED, "visual_projection.weight": (WIDTH, 5)})
    assert "doubt" in rule(found, "layers.{layer}.attn.proj.weight")
    assert "doubt" not in rule(found, "layers.{layer}.attn.proj.bias")


def test_an_embedding_tells_nothing() -> None:
    """It is stored alike by models that transpose all else."""
    source = {"wte.weight": (50, WIDTH), "h.#.proj.weight": (WIDTH, WIDTH), "h.#.proj.bias": (WIDTH,)}
    target = {name.replace("h.", "layers.").replace("wte", "tokens"): shape for name, shape in source.items()}
    assert square_doubts(draft(source, target)) == {"layers.{layer}.proj.weight"}


def test_a_model_without_biases_tells_nothing() -> None:
    source = {name: shape for name, shape in LINEAR.items() if name.endswith("weight")}
    target = {name: shape for name, shape in RENAMED.items() if name.endswith("weight")}
    assert square_doubts(draft(source, target)) == {"layers.{layer}.attn.proj.weight"}


def test_others_of_its_family_tell() -> None:
    """A first stage that keeps its width stands beside those that do not."""
    sizes = [(WIDTH, WIDTH), (2 * WIDTH, WIDTH), (4 * WIDTH, 2 * WIDTH)]
    source, target = (
        [Named(f"{word}.{i}.reduction.weight", size) for i, size in enumerate(sizes)] for word in ("stages", "layers")
    )
    assert propose("one", source, new_target("other", target)).doubtful == []


@pytest.mark.parametrize("inputs", [WIDTH, 3])
def test_kernels_are_told_by_kernels(inputs: int) -> None:
    source = {"stem.conv.weight": (WIDTH, inputs, 3, 3), "body.#.conv.weight": (WIDTH, WIDTH, 3, 3)}
    found = draft(source, {name.replace("body", "layers"): shape for name, shape in source.items()})
    assert ("layers.{layer}.conv.weight" in square_doubts(found)) == (inputs == WIDTH)


def test_stacked_matrices_are_square_too() -> None:
    found = draft({"experts.down": (3, WIDTH, WIDTH)}, {"mlp.experts.down": (3, WIDTH, WIDTH)})
    assert square_doubts(found) == {"mlp.experts.down"}


def test_the_parts_of_a_joint_matrix_are_square_too() -> None:
    parts = {f"layers.#.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkv"}
    (doubtful,) = draft({"blocks.#.qkv.weight": (3 * WIDTH, WIDTH)}, parts).doubtful
    assert f"each part {(WIDTH, WIDTH)} is square" in doubtful["doubt"]
