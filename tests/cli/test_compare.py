"""`converter compare`: two files of outputs are the same, different, or cannot be judged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from converter.cli import main

TOKENS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.arange(12).view(2, 6)


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def written(folder: Path, **outputs: torch.Tensor) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    save_file({name.replace("__", "."): value.contiguous() for name, value in outputs.items()}, path)
    return path


def judged(code: int, a: Path, b: Path, *options: object) -> Mapping[str, Any]:
    """The first output of the comparison, as JSON has it."""
    content = json.loads(run(a, b, *options, "--json", code=code).stdout)
    assert content["verdict"] == {0: "same", 1: "DIFFERENT", 8: "could not be judged"}[code]
    found: Mapping[str, Any] = content["outputs"][0]
    return found


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return written(tmp_path, tokens=TOKENS, input__ids=IDS)


def test_rounding_is_the_same(reference: Path, tmp_path: Path) -> None:
    found = judged(0, reference, written(tmp_path, tokens=TOKENS * (1 + 1e-13), input__ids=IDS))
    assert found["relative"] == pytest.approx(1e-13, rel=0.05)
    assert found["limit"] == 1e-10
    assert "inputs: 1 tensor, the same in both" in run(reference, tmp_path / "1.safetensors").stdout


def test_what_differs_is_told_with_its_place(reference: Path, tmp_path: Path) -> None:
    other = TOKENS.clone()
    other[1, 2, 3] += 0.5
    path = written(tmp_path, tokens=other, input__ids=IDS)
    found = judged(1, reference, path)
    assert (found["worst"], found["max_abs"]) == ([1, 2, 3], pytest.approx(0.5))
    assert found["relative"] == pytest.approx(0.5 / float(TOKENS.norm()))
    assert found["values"] == [TOKENS[1, 2, 3].item(), other[1, 2, 3].item()]
    said = run(reference, path, code=1).stdout
    assert said.startswith("DIFFERENT\n1 output: 0 within the limit, 1 beyond, 0 not judged\n")
    assert "largest difference 5.0e-01 at [1, 2, 3]" in said


def test_a_little_more_than_rounding_has_a_cause(reference: Path, tmp_path: Path) -> None:
    path = written(tmp_path, tokens=TOKENS * (1 + 1e-7), input__ids=IDS)
    assert "another epsilon, another GELU or a part in float32" in run(reference, path, code=1).stdout
    judged(0, reference, path, "--gate", "1e-6")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_the_same(value: float, reference: Path, tmp_path: Path) -> None:
    other = TOKENS.clone()
    other[0, 0, 0] = value
    path = written(tmp_path, tokens=other, input__ids=IDS)
    assert judged(1, reference, path, "--gate", "1e9")["unsound"] == 1
    if np.isnan(value):  # on both sides, too
        assert judged(1, path, written(tmp_path, tokens=other, input__ids=IDS))["unsound"] == 1


def test_a_mask_of_minus_infinity_is_compared_around(tmp_path: Path) -> None:
    masked = TOKENS.clone()
    masked[:, :, 4] = -torch.inf
    a, b = (written(tmp_path, tokens=masked + noise) for noise in (0, 1e-3))
    assert judged(1, a, b)["max_abs"] == pytest.approx(1e-3)
    judged(0, a, written(tmp_path, tokens=masked))
    judged(1, a, written(tmp_path, tokens=masked.nan_to_num(neginf=np.inf)))


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float64).min])
def test_numbers_of_a_mask_do_not_hide_the_others(fill: float, tmp_path: Path) -> None:
    a, b = TOKENS.clone(), TOKENS.clone()
    a[:, :, 4] = b[:, :, 4] = fill
    b[0, 0, 0] += 1e-3
    path = written(tmp_path, tokens=a)
    assert judged(1, path, written(tmp_path, tokens=b))["relative"] == pytest.approx(1e-3 / TOKENS.norm(), rel=0.5)
    judged(0, path, written(tmp_path, tokens=a))
    b[0, 0, 4] = -fill  # what the mask itself holds counts, too
    judged(1, path, written(tmp_path, tokens=b), "--gate", "1e-2")


def test_numbers_whose_squares_are_infinite_are_compared(tmp_path: Path) -> None:
    a = written(tmp_path, tokens=TOKENS * 1e300)
    judged(1, a, written(tmp_path, tokens=TOKENS * 1.001e300))
    judged(0, a, written(tmp_path, tokens=TOKENS * 1e300))


def test_outputs_of_other_inputs_say_nothing(reference: Path, tmp_path: Path) -> None:
    done = run(reference, written(tmp_path, tokens=TOKENS, input__ids=IDS + 1), code=8)
    assert "'input.ids' of A is not what B got" in done.stderr
    # the argument may have another name there
    run(reference, written(tmp_path, tokens=TOKENS, input__text=IDS))
    assert "they may have differed" in run(reference, written(tmp_path, tokens=TOKENS)).stdout


def test_every_output_needs_its_counterpart_or_is_paired(reference: Path, tmp_path: Path) -> None:
    other = written(tmp_path, last_hidden_state=TOKENS, pooled=TOKENS[0].clone(), input__ids=IDS)
    done = run(reference, other, code=8)
    assert "only in A: 'tokens'" in done.stderr
    assert "only in B: 'last_hidden_state', 'pooled'" in done.stderr
    assert "not compared: pooled of B" in run(reference, other, "--pair", "tokens=last_hidden_state").stdout
    assert "it has 'last_hidden_state', 'pooled'" in run(reference, other, "--pair", "tokens=last", code=8).stderr
    run(reference, other, "--pair", "tokens", code=2)


def test_shapes_types_and_integers_have_to_be_equal(tmp_path: Path) -> None:
    a = written(tmp_path, labels=IDS)
    judged(0, a, written(tmp_path, labels=IDS.clone()))
    changed = IDS.clone()
    changed[1, 1] = 99
    found = judged(1, a, written(tmp_path, labels=changed))
    assert (found["differing"], found["worst"]) == (1, [1, 1])
    assert "(2, 6) in A and (6, 2) in B" in judged(1, a, written(tmp_path, labels=IDS.T))["problem"]
    assert "int64 in A and float64 in B" in judged(1, a, written(tmp_path, labels=IDS.double()))["problem"]


def test_in_float32_somebody_has_to_say_what_may_differ(tmp_path: Path) -> None:
    a, b = (written(tmp_path, tokens=TOKENS.to(dtype)) for dtype in (torch.float64, torch.float32))
    assert "--gate 1e-5" in judged(8, a, b)["why"]
    judged(0, a, b, "--gate", "1e-5")
    rounded = written(tmp_path, tokens=TOKENS.bfloat16())
    proposed = judged(8, a, rounded)["why"].split()[-1]
    judged(0, a, rounded, "--gate", proposed)
    assert float(proposed) > 2**-8  # less is below what the type can say


def test_a_capture_says_so_itself(tmp_path: Path) -> None:
    """Of its own model's error in float32."""
    facts = {"name": "a", "model": "m", "dtype": "float64", "errors": {"float32": {"tokens": 1e-7}}}
    path = tmp_path / "capture.safetensors"
    save_file({"tokens": TOKENS}, path, {"capture": json.dumps(facts)})
    assert judged(0, path, written(tmp_path, tokens=TOKENS.float()))["limit"] == pytest.approx(4e-7)
    judged(1, path, written(tmp_path, tokens=(TOKENS * (1 + 1e-5)).float()))
    save_file({"tokens": TOKENS}, path, {"capture": json.dumps(facts | {"compact": {}})})
    assert "is a compact capture" in run(path, tmp_path / "1.safetensors", code=8).stderr


def test_what_proves_nothing_is_not_called_the_same(reference: Path, tmp_path: Path) -> None:
    a, b = (written(tmp_path, tokens=torch.ones(3, 4, dtype=torch.float64)) for _ in range(2))
    assert "which proves nothing" in judged(8, a, b)["why"]
    assert "are the same file" in run(reference, reference, code=8).stderr
    assert "holds no output" in run(reference, written(tmp_path, input__ids=IDS), code=8).stderr


def test_a_dict_of_torch_save_is_read_and_nothing_in_it_run(reference: Path, tmp_path: Path) -> None:
    torch.save({"tokens": TOKENS, "input.ids": IDS}, tmp_path / "outputs.pth")
    run(reference, tmp_path / "outputs.pth")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    run(reference, tmp_path / "evil.pth", code=3)
    assert not Path("executed").exists()


def recorder() -> Callable[..., None]:
    """`record` of the file that `compare --template` prints."""
    space: dict[str, Any] = {}
    exec(compile(run("--template").stdout, "record.py", "exec"), space)
    found: Callable[..., None] = space["record"]
    return found


def test_weights_that_are_alike_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two fresh norms exchanged: no output shows it, so that somebody has to say so."""

    class Norms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = torch.nn.LayerNorm(5), torch.nn.LayerNorm(5)
            self.fc = torch.nn.Linear(5, 5)
            self.tied = self.fc.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(self.fc(self.before(x)))

    torch.manual_seed(0)
    fresh, trained = Norms(), Norms()
    for weight in trained.parameters():
        torch.nn.init.normal_(weight)
    record = recorder()
    for name, model in {"fresh": fresh, "trained": trained}.items():
        for side in "ab":
            record(copy.deepcopy(model), None, tmp_path / f"{name}-{side}.safetensors", inputs={"x": TOKENS})
        assert ("warning: 4 of the 7 tensors" in capsys.readouterr().out) is (name == "fresh")
    files = [tmp_path / f"fresh-{side}.safetensors" for side in "ab"]
    assert run(*files).stdout.startswith("same\nbut 4 of the 7 tensors of the weights (such as before.weight and")
    content = json.loads(run(*files, "--json").stdout)
    assert content["weights_alike"] == {"count": 4, "of": 7, "first": ["before.weight", "after.weight", "before.bias"]}
    assert content["weights_unreached"] is None
    files = [tmp_path / f"trained-{side}.safetensors" for side in "ab"]
    assert json.loads(run(*files, "--json").stdout)["weights_alike"] is None


def test_weights_without_a_part_in_the_outputs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pooler, self.never = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3), torch.nn.Linear(2, 7)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.body(x), self.pooler(self.body(x))

    for name in "ab":
        torch.manual_seed(0)
        one, both, unknown = (tmp_path / f"{name}-{which}.safetensors" for which in ("one", "both", "unknown"))
        recorder()(Two(), None, one, inputs={"x": TOKENS}, outputs=lambda made: {"body": made[0]})
        assert "warning: 4 of the 6 tensors of the weights (pooler.weight, pooler.bias" in capsys.readouterr().out
        recorder()(Two(), None, both, inputs={"x": TOKENS})
        recorder()(Two(), None, unknown, inputs={"x": TOKENS}, reach=False)
    said = run(tmp_path / "a-one.safetensors", tmp_path / "b-one.safetensors").stdout
    assert said.startswith(
        "same\nbut 4 of the 6 tensors of the weights (such as pooler.weight and pooler.bias) have no"
    )
    for which, count in {"both": 2, "unknown": None}.items():
        files = [tmp_path / f"{name}-{which}.safetensors" for name in "ab"]
        found = json.loads(run(*files, "--json").stdout)["weights_unreached"]
        assert (found and found["count"]) == count


@pytest.mark.parametrize(
    "said", ["[1]", "{" * 500, '{"count": true, "of": 3, "first": ["a"]}', '{"count": 4, "of": 3, "first": ["a"]}',
             '{"count": 1, "of": 3, "first": [1]}', '{"count": 1e999, "of": 3, "first": ["a"]}'],
)  # fmt: skip
def test_what_a_file_says_of_its_weights_is_not_believed_blindly(said: str, reference: Path, tmp_path: Path) -> None:
    save_file({"tokens": TOKENS}, tmp_path / "odd.safetensors", {"alike": said, "unreached": said})
    content = json.loads(run(reference, tmp_path / "odd.safetensors", "--json").stdout)
    assert (content["weights_alike"], content["weights_unreached"]) == (None, None)


def test_the_template_records_what_any_module_returns(tmp_path: Path) -> None:
    record = recorder()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = torch.nn.Linear(3, 4), torch.nn.Dropout()

        def forward(self, x: torch.Tensor, scale: float) -> dict[str, Any]:
            y = self.drop(self.fc(x)) * scale
            return {"logits": y, "states": (y[0], {"last": y[1]})}

    model = Model()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    path = tmp_path / "out.safetensors"
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    record(Model(), tmp_path / "weights.safetensors", path, inputs={"x": x, "scale": 2.0})
    made = load_file(path)
    assert set(made) == {"input.x", "logits", "states.0", "states.1.last"}
    assert torch.equal(made["logits"], 2 * model.double().fc(x.double()))
    torch.save(Model().state_dict() | {"more": x}, tmp_path / "wrong.pth")
    with pytest.raises(RuntimeError, match="more"):
        record(Model(), tmp_path / "wrong.pth", path, inputs={"x": x, "scale": 2.0})


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 0.8e308])
def test_numbers_whose_squares_no_float_holds(size: float, tmp_path: Path) -> None:
    values = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64) * size
    same, other = written(tmp_path, tokens=values), written(tmp_path, tokens=values * (1 + 1e-13))
    assert judged(0, same, other)["relative"] < 1e-11
    for factor in (0.9, -1.0):
        found = judged(1, same, written(tmp_path, tokens=values * factor))
        assert found["relative"] == pytest.approx(1 - factor, rel=1e-6)


def test_inputs_that_would_take_hours_to_pair(tmp_path: Path) -> None:
    files = [written(tmp_path, tokens=TOKENS, **{f"input__{x}{n}": IDS + n for n in range(200)}) for x in "ab"]
    assert "200 inputs of A have other names in B" in run(*files, code=8).output
    run(files[0], written(tmp_path, tokens=TOKENS, **{f"input__a{n}": IDS + n for n in range(200)}))
