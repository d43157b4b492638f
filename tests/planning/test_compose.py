"""Laws of plans, on random tables: reverse and compose are inverses, and no key vanishes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import PlanError
from converter.mapping.lint import lint
from converter.mapping.load import hub_table
from converter.mapping.ops import Arrange, Branches, Concat, Reshape, Split, Transpose, apply_ops, invert_ops
from converter.mapping.table import Table
from converter.planning.compose import compose
from converter.planning.export import make_export
from converter.planning.fit import make_plan
from converter.planning.formats import make_route
from tests.support.random_tables import LAYERS, WIDTH, specs, tables
from tests.support.small_formats import FORMATS, Weights, execute, hub_weights, same

LAW = settings(max_examples=150)


def random_weights(table: Table) -> Weights:
    """The spec's tensors, every number different from all others."""
    shapes = table.spec.tensors({"layers": LAYERS, "width": WIDTH})
    start, arrays = 0, {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return Weights(arrays)


@st.composite
def two_formats(draw: st.DrawFn) -> tuple[Table, Table]:
    spec = draw(specs())
    return draw(tables(spec, "a")), draw(tables(spec, "b"))


@LAW
@given(two_formats())
def test_random_tables_are_sound(formats: tuple[Table, Table]) -> None:
    assert [lint(table) for table in formats] == [[], []]


@LAW
@given(two_formats())
def test_writing_a_format_and_reading_it_are_inverse(formats: tuple[Table, Table]) -> None:
    table, _ = formats
    own = hub_table(table.spec)
    hub = random_weights(table)
    written = execute(make_route(own, table, hub), hub)
    plan = make_route(table, own, written)
    assert same(execute(plan, written), hub)
    assert same(execute(plan.reverse(), hub), written)


@LAW
@given(two_formats())
def test_composing_is_one_conversion_after_the_other(formats: tuple[Table, Table]) -> None:
    a, b = formats
    hub = random_weights(a)
    source = execute(make_route(hub_table(a.spec), a, hub), hub)
    first = make_plan(a, source)
    second = make_export(b, list(first.targets))
    in_two_steps = execute(second, execute(first, source))
    at_once = compose(first, second)
    assert same(execute(at_once, source), in_two_steps)
    assert same(execute(make_route(b, a, in_two_steps), in_two_steps), source)


@LAW
@given(two_formats(), st.data())
def test_no_key_vanishes(formats: tuple[Table, Table], data: st.DataObject) -> None:
    """A source key is used by exactly one step or left out; without one of them there is no plan at all."""
    a, b = formats
    hub = random_weights(a)
    source = execute(make_route(hub_table(a.spec), a, hub), hub)
    plan = make_route(a, b, source)
    used = [tensor.name for step in plan.steps for tensor in step.sources]
    assert sorted(used + [out.tensor.name for out in plan.left_out]) == sorted(source.arrays)
    made = [tensor.name for tensor in plan.targets]
    assert len(made) == len(set(made))
    lost = data.draw(st.sampled_from(sorted(source.arrays)))
    rest = Weights({name: array for name, array in source.arrays.items() if name != lost})
    with pytest.raises(PlanError) as missing:
        make_route(a, b, rest)
    assert repr(lost.removeprefix("module.")) in str(missing.value)
    with pytest.raises(PlanError) as unknown:
        make_route(a, b, Weights({**source.arrays, "stray": np.zeros(2, np.float32)}))
    assert "'stray'" in str(unknown.value)


def test_what_is_joined_on_both_sides_is_only_renamed() -> None:
    """Both formats keep query, key and value apart; joining and splitting them on the way would cost memory."""
    weights = hub_weights()
    bert = execute(make_route(FORMATS["glip"], FORMATS["transformers-bert"], weights), weights)
    official = execute(make_route(FORMATS["glip"], FORMATS["glip-official"], weights), weights)
    plan = make_route(FORMATS["glip-official"], FORMATS["transformers-bert"], official)
    assert {step.describe()[0] for step in plan.steps} == {"rename"}
    assert all(len(step.sources) == len(step.targets) == 1 for step in plan.steps)
    made = execute(plan, official)
    assert all(made.arrays[name].tobytes() == array.tobytes() for name, array in bert.arrays.items())


def test_ops_side_by_side_and_rearranged_are_inverted() -> None:
    chain = (
        Branches(((2, 1, (Concat(0, (1, 2)),)), (1, 2, (Split(1, (1, 1)), Transpose((1, 0)))))),
        Arrange((2, 0, 1)),
    )
    inputs = [np.arange(4).reshape(1, 4), np.arange(8).reshape(2, 4), np.arange(6).reshape(3, 2)]
    outputs = apply_ops(chain, inputs)
    assert [array.shape for array in outputs] == [(1, 3), (3, 4), (1, 3)]
    assert outputs[0].tolist() == [[1, 3, 5]]
    assert all(np.array_equal(a, b) for a, b in zip(apply_ops(invert_ops(chain), outputs), inputs, strict=True))
    assert Reshape((2,), (2, 1)).inverse() == Reshape((2, 1), (2,))
