"""Conversions to make packages of, keys to sign with, and what a signature is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.glip import GLIP
from converter.parity.certificate import certify
from converter.parity.coverage import coverage
from converter.parity.coverage_report import proof_of_rows, to_json
from converter.parity.mutate import mutation_score
from converter.parity.run import parity
from tests.support.bert_vocabulary import small_vocabulary
from tests.support.certifying import read_weights
from tests.support.saved_glip import ledger, saved_glip
from tests.support.signing import Pair, pair
from tests.support.small_capture import small_capture
from tests.support.small_glip import subject


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion as a file and as a folder, each with its certificate, and a vocabulary."""
    folder = tmp_path_factory.mktemp("conversion")
    weights = saved_glip(folder)
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    single = folder / "glip.safetensors"
    save_file(load_file(weights), single, metadata | {"conversion": json.dumps(ledger(weights))})
    with small_capture(tmp_path_factory.mktemp("capture")) as capture:
        found = read_weights(single)
        model = GLIP.from_pretrained(single).double()
        certify(
            found,
            [capture],
            [parity(subject(model), capture)],
            mutation_score(subject(model), [capture], 5),
            subject(model),
            to_json(coverage(subject(model), [capture]), proof_of_rows(found.ledger, found.sha256)),
        )
    inside = folder / "glip"
    inside.mkdir()
    save_file(load_file(weights), inside / "model.safetensors", {"format": "pt"})
    (inside / "config.json").write_text(metadata["config"])
    (inside / "conversion.json").write_text(json.dumps(ledger(weights)))
    shutil.copy(folder / "glip.parity.json", inside / "parity.json")
    (inside / "report.html").write_text("<p>report</p>")
    small_vocabulary(folder)
    return folder


@pytest.fixture
def conversions(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "in"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What a signature sees of a model: files."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "vocab.txt", "parity.json", "conversion.json", "README.md"):
        (folder / name).write_text(f"content of {name}\n" * 100)
    return folder
