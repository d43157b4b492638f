"""A certificate covers the graphs of its weights: what is published with them is what was compared."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest

from converter.cli.families import family_of
from converter.errors import HubError
from converter.parity.consistency import contradictions
from converter.parity.schemas import problem_of
from converter.publish.folder import read_folder
from tests.onnx.conftest import SMALLER, Small, capture, exported, run
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.packaging import bill_of
from tests.support.saved_glip import ledger
from tests.support.small_glip import small_glip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return exported(tmp_path_factory.mktemp("onnx"), "--size", "96x160", "--tokens", "13")


@pytest.fixture
def conversion(small: Small, tmp_path: Path) -> Path:
    """The weights as `convert` writes a folder, with the graph that was made of them, certified."""
    folder = tmp_path / "glip"
    folder.mkdir()
    shutil.copyfile(small.weights, folder / "model.safetensors")
    shutil.copyfile(small.graph, folder / "small.onnx")
    config = {"model": "glip", "variant": "small", "config": small.config}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "conversion.json").write_text(json.dumps(ledger(folder / "model.safetensors")))
    small_vocabulary(tmp_path)
    words = ["certify", folder, "--reference", small.capture, "--mutate", "0", "--export", folder / "small.onnx"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    return folder


def package(conversion: Path) -> Path:
    out = conversion.with_name("out")
    result = run("package", conversion, out, "--vocab", conversion.with_name("vocab.txt"))
    assert result.exit_code == 0, result.output
    return out


def test_what_was_certified_is_packaged_shown_and_verified(conversion: Path, small: Small) -> None:
    out = package(conversion)
    assert (out / "small.onnx").samefile(conversion / "small.onnx")
    assert "| `small.onnx` | `float32` | 20 |" in (out / "README.md").read_text()
    bill = bill_of(out)
    assert "small.onnx" in {part["name"] for part in bill["components"]}
    stated = {each["name"]: each["value"] for each in bill["metadata"]["component"]["properties"]}
    (certified,) = json.loads((out / "parity.json").read_text())["exports"]
    taps = [tap for taps in certified["runs"][0]["modes"].values() for tap in taps]
    assert stated["converter:export:1:files"] == "small.onnx"
    assert int(stated["converter:export:1:parity:1:comparisons"]) == len(taps)
    assert float(stated["converter:export:1:parity:1:largest_relative_error"]) == max(tap["relative"] for tap in taps)
    tools = {each["name"]: each["version"] for each in bill["metadata"]["tools"]["components"]}
    assert tools["onnxruntime"] == version("onnxruntime")
    result = run("verify", out)
    assert (result.exit_code, "exported: small.onnx as certified" in result.stdout) == (0, True)
    assert {file.name for file in read_folder(out, family_of)} >= {"small.onnx", "model.safetensors"}
    (out / "small.onnx").unlink()  # as on the Hub, where `verify` fetches the weights alone
    result = run("verify", out)
    assert (result.exit_code, "exported" in result.stdout) == (0, False)


def test_a_byte_that_changed_is_noticed_everywhere(conversion: Path) -> None:
    out = package(conversion)
    content = bytearray((out / "small.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "small.onnx").unlink()
    (out / "small.onnx").write_bytes(content)
    result = run("verify", out)
    assert result.exit_code == 1
    assert "small.onnx: other content than certified" in result.stdout
    with pytest.raises(HubError, match=r"small\.onnx: other content than certified"):
        read_folder(out, family_of)
    (conversion / "small.onnx").write_bytes(content)
    result = run("package", conversion, out.with_name("again"), "--vocab", conversion.with_name("vocab.txt"))
    assert result.exit_code == 8
    assert "small.onnx" in result.stderr


def test_a_graph_that_nobody_compared_is_not_published(conversion: Path) -> None:
    out = package(conversion)
    shutil.copyfile(out / "small.onnx", out / "other.onnx")
    with pytest.raises(HubError, match=r"other\.onnx: not certified"):
        read_folder(out, family_of)


def test_a_graph_elsewhere_or_of_other_weights_is_refused(conversion: Path, small: Small) -> None:
    words = ["certify", conversion, "--reference", small.capture, "--mutate", "0", "--force"]
    assert run(*words, "--export", small.graph).exit_code == 8
    certificate = json.loads((conversion / "parity.json").read_text())
    certificate["exports"][0]["weights"] = "0" * 64
    (conversion / "parity.json").write_text(json.dumps(certificate))
    result = run("verify", conversion)
    assert result.exit_code == 8
    assert "exports/0: is of other weights" in result.stderr


@pytest.mark.parametrize("name", ["small.onnx", "small.onnx.data"])
def test_a_summary_is_not_written_into_a_graph(small: Small, name: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"  # of a folder all files are inputs
    shutil.copyfile(small.weights, weights)
    (tmp_path / "small.onnx").touch()
    (tmp_path / name).write_bytes(b"graph")
    words = ["certify", weights, "--reference", small.capture, "--export", tmp_path / "small.onnx"]
    result = run(*words, "--summary", tmp_path / name)
    assert (result.exit_code, "is one of the inputs" in result.stderr) == (6, True)
    assert (tmp_path / name).read_bytes() == b"graph"


def of_other_weights(graph: Path, path: Path) -> Path:
    """A copy that says that it was made of others."""
    model = onnx.load(graph)
    about = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(about | {"weights": "0" * 64})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("name", "Rename it: of letters, digits"),
        ("suffix", "whose name ends in .onnx"),
        ("place", "is not beside the weights"),
        ("twice", "is given twice"),
        ("weights", "was exported from other weights"),
    ],
)
def test_what_cannot_be_certified_is_said_before_a_model_runs(
    conversion: Path, small: Small, case: str, said: str
) -> None:
    graph = conversion / "small.onnx"
    graphs = {
        "name": lambda: [graph.rename(conversion / "my model.onnx")],
        "suffix": lambda: [conversion / "model.safetensors"],
        "place": lambda: [small.graph],
        "twice": lambda: [graph, graph],
        "weights": lambda: [of_other_weights(graph, conversion / "other.onnx")],
    }[case]()
    given = [word for path in graphs for word in ("--export", path)]
    result = run("certify", conversion, "--reference", small.capture, "--mutate", "0", "--force", *given)
    assert result.exit_code == 8
    assert said in result.stderr
    assert "comparing" not in result.stderr


def test_a_line_feed_ends_no_name(conversion: Path) -> None:
    certificate = json.loads((conversion / "parity.json").read_text())
    assert problem_of(certificate, "certificate") is None
    files = certificate["exports"][0]["files"]
    files["small.onnx\n"] = files.pop("small.onnx")
    assert problem_of(certificate, "certificate") is not None


def test_a_run_of_a_graph_compares_what_the_weights_have(conversion: Path) -> None:
    certificate = json.loads((conversion / "parity.json").read_text())
    assert list(contradictions(certificate)) == []
    certificate["exports"][0]["runs"][0]["modes"]["propagated"][0]["name"] = "unheard"
    assert "exports/0: compares unheard, which no run of the weights does" in contradictions(certificate)


def test_a_graph_of_one_size_is_compared_with_captures_of_it(conversion: Path, small: Small, tmp_path: Path) -> None:
    other = capture(small_glip(**SMALLER), tmp_path / "larger.safetensors", 128, 160, 13)
    words = ["certify", conversion, "--mutate", "0", "--force", "--export", conversion / "small.onnx"]
    result = run(*words, "--reference", other)
    assert (result.exit_code, "Export with --size 128x160" in result.stderr) == (7, True)
    assert run(*words, "--reference", other, "--reference", small.capture).exit_code == 0
    certificate = json.loads((conversion / "parity.json").read_text())
    assert [capture["name"] for capture in certificate["captures"]] == ["larger", "capture"]
    assert [run["capture"] for run in certificate["exports"][0]["runs"]] == ["capture"]


def test_a_graph_and_its_data_go_together(conversion: Path, small: Small) -> None:
    graph, files = conversion / "large.onnx", ["large.onnx", "large.onnx.data"]
    fixed = ["--size", "96x160", "--tokens", "13"]
    assert run("export", conversion, graph, *fixed, "--external-data").exit_code == 0
    words = ["certify", conversion, "--reference", small.capture, "--mutate", "0", "--force"]
    assert run(*words, "--export", graph).exit_code == 0
    (conversion / "small.onnx").unlink()
    out = package(conversion)
    assert {file.name for file in read_folder(out, family_of)} >= set(files)
    assert "exported: large.onnx, large.onnx.data as certified" in run("verify", out).stdout
    for name in files:
        (out / name).rename(out.with_name(name))
        result = run("verify", out)
        assert (result.exit_code, f"{name}: certified, and not here" in result.stdout) == (1, True)
        with pytest.raises(HubError, match=f"{name}: certified, and not here"):
            read_folder(out, family_of)
        out.with_name(name).rename(out / name)
    (conversion / "large.onnx.data").unlink()
    result = run("package", conversion, out.with_name("again"), "--vocab", conversion.with_name("vocab.txt"))
    assert (result.exit_code, "large.onnx.data: certified, and not here" in result.stderr) == (8, True)
