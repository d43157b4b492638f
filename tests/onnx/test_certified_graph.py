"""A certificate covers the graphs of its weights: what is published with them is what was compared."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from converter.cli.families import family_of
from converter.errors import HubError
from converter.publish.folder import read_folder
from tests.onnx.conftest import Small, exported, run
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.packaging import bill_of
from tests.support.saved_glip import ledger


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
    assert run("verify", out).exit_code == 0
    assert {file.name for file in read_folder(out, family_of)} >= {"small.onnx", "model.safetensors"}
    (out / "small.onnx").unlink()  # as on the Hub, where `verify` fetches the weights alone
    assert run("verify", out).exit_code == 0


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
