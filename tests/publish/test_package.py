"""The folder to publish: whole, loadable, and a card that says no more than is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.glip import GLIP
from converter.parity.evidence import read_evidence
from tests.support.certifying import verify
from tests.support.packaging import edit, packaged, run
from tests.support.small_glip import loading

FILES = [
    "README.md", "bom.cdx.json", "config.json", "conversion.json", "model.safetensors", "parity.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("conversion", "files"), [("glip.safetensors", FILES), ("glip", sorted([*FILES, "report.html"]))]
)
def test_the_folder_is_complete(conversions: Path, conversion: str, files: list[str]) -> None:
    out = packaged(conversions, conversion)
    assert sorted(path.name for path in out.iterdir()) == files
    source = conversions / conversion
    assert (out / "model.safetensors").samefile(source / "model.safetensors" if source.is_dir() else source)


def test_the_model_loads_and_is_the_same(conversions: Path) -> None:
    out = packaged(conversions)
    model = GLIP.from_pretrained(out)
    for name, parameter in GLIP.from_pretrained(conversions / "glip.safetensors").named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_the_copy_verifies(conversions: Path) -> None:
    out = packaged(conversions)
    assert verify(out, loading(out)).passed


def test_config_says_architecture_preprocessing_and_origin(conversions: Path) -> None:
    config = json.loads((packaged(conversions, "glip", "--model-name", "glip-t-b") / "config.json").read_text())
    assert config["model"] == "glip"
    assert config["model_name"] == "glip-t-b"
    assert config["config"]["vocab_size"] == config["vocabulary"]["entries"] == 50
    assert config["preprocessing"]["mean"] == [103.53, 116.28, 123.675]
    assert config["provenance"]["source"]["sha256"] == "b" * 64
    assert config["vocabulary"]["bert_base_uncased"] is False


def test_shards_come_with_their_index(conversions: Path) -> None:
    inside = conversions / "glip"
    tensors = sorted(load_file(inside / "model.safetensors").items())
    (inside / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((tensors[:40], tensors[40:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), inside / name, {"format": "pt"})
        weight_map |= {key: name for key, _ in part}
    (inside / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out = packaged(conversions, "glip")
    assert {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} <= {p.name for p in out.iterdir()}
    assert GLIP.from_pretrained(out).config.vocab_size == 50
    assert verify(out, loading(out)).passed


def test_twice_gives_the_same_bytes(conversions: Path) -> None:
    first = packaged(conversions)
    assert run(conversions, "glip.safetensors", conversions / "again").exit_code == 0
    for path in first.iterdir():
        assert path.read_bytes() == (conversions / "again" / path.name).read_bytes(), path.name


def test_a_copy_is_made_where_no_link_can_be(conversions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    link = os.link

    def refuse(source: Any, *arguments: Any, **options: Any) -> None:
        if str(source).endswith(".safetensors"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, *arguments, **options)

    monkeypatch.setattr(os, "link", refuse)
    out = packaged(conversions)
    assert not (out / "model.safetensors").samefile(conversions / "glip.safetensors")
    assert (out / "model.safetensors").read_bytes() == (conversions / "glip.safetensors").read_bytes()


def test_weights_that_must_be_copied_need_space(conversions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 20  # documents fit
    assert (conversions / "glip.safetensors").stat().st_size > free
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        result = run(conversions, "glip.safetensors", Path(elsewhere) / "out")
    assert result.exit_code == 6
    assert "GB are needed" in result.stderr
    assert run(conversions, "glip.safetensors", conversions / "out").exit_code == 0


# ---- what the card says


# ---- refusals


DAMAGE: dict[str, tuple[str, Callable[[dict[str, Any]], object], int, str]] = {
    "a certificate of other weights": (
        "parity.json", lambda c: c["weights"]["tensors"].update({"head.bias": "0" * 64}), 8,
        "differ from what the certificate says in 1 tensor, head.bias first",
    ),
    "a certificate of fewer tensors": (
        "parity.json", lambda c: (c.pop("coverage"), c["weights"]["tensors"].pop("head.bias")), 8, "head.bias first"
    ),
    "a certificate that did not pass": (
        "parity.json", lambda c: c["runs"][0].update(passed=False), 8, "at 'runs/0/passed'"
    ),
    "a certificate of nothing": ("parity.json", lambda c: c.update(runs=[]), 8, "at 'runs'"),
    "a certificate without numbers": ("parity.json", lambda c: c["runs"][0].update(modes={}), 8, "at 'runs/0/modes'"),
    "an infinite error": (
        "parity.json", lambda c: c["runs"][0]["modes"]["propagated"][0].update(relative="Infinity"), 8, "relative'"
    ),
    "an error that is not a number": (
        "parity.json", lambda c: c["runs"][0]["modes"]["propagated"][0].update(relative=float("nan")), 8, "NaN is not"
    ),
    "a certificate of another format": ("parity.json", lambda c: c.update(format=3), 8, "at 'format'"),
    "a certificate without a fingerprint": ("parity.json", lambda c: c.pop("fingerprint"), 8, "'fingerprint' is a"),
    "a fingerprint that is invalid": (
        "parity.json", lambda c: c.update(fingerprint="!!!!"), 8, "its fingerprint is damaged"
    ),
    "a device that is markup": (
        "parity.json", lambda c: c["runs"][0].update(device="<img src=x>"), 8, "at 'runs/0/device'"
    ),
    "a dtype that is markup": ("parity.json", lambda c: c["runs"][0].update(dtype="<b>"), 8, "at 'runs/0/dtype'"),
    "a record of other weights": (
        "conversion.json", lambda c: c["tensors"].update({"head.bias": "0" * 64}), 8, "what conversion.json says"
    ),
    "no record": ("conversion.json", lambda c: c.clear(), 7, "its record 'conversion' is invalid"),
    "a part of a model": ("conversion.json", lambda c: c["target"].update(part="swin"), 7, "only a part of a model"),
    "tensors that are missing": (
        "conversion.json", lambda c: c.update(missing=[{"names": "a", "reason": "b"}]), 7, "only a part of a model"
    ),
    "another model": ("config.json", lambda c: c.update(model="detr"), 7, "expected one that is known here"),
    "a record of another hash": ("conversion.json", lambda c: c.update(sha256="0" * 64), 8, "conversion.json says 000"),
    "another architecture": (
        "config.json", lambda c: c["config"].update(embed_dim=16), 7,
        "tensor 'backbone.norms.0.bias' is (16,), expected (32,)",
    ),
    "an architecture without end": ("config.json", lambda c: c["config"].update(text_layers=10**12), 7, "more than"),
    "an architecture of another type": ("config.json", lambda c: c["config"].update(depths=2), 7, "depths is 2"),
    "half an architecture": ("config.json", lambda c: c["config"].pop("num_heads"), 7, "field 'num_heads' is missing"),
    "another vocabulary": ("config.json", lambda c: c["config"].update(vocab_size=30522), 7, "has 50 entries"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_together_is_refused(name: str, conversions: Path) -> None:
    file, change, exit_code, message = DAMAGE[name]
    edit(conversions / "glip" / file, change)
    result = run(conversions, "glip", conversions / "out", "--json")
    assert result.exit_code == exit_code, result.output
    assert message in json.loads(result.stdout)["error"]["message"]
    assert not (conversions / "out").exists()


def test_weights_without_a_record_are_refused(conversions: Path) -> None:
    assert run(conversions, "small.safetensors", conversions / "out").exit_code == 7
    (conversions / "glip" / "conversion.json").unlink()
    assert run(conversions, "glip", conversions / "out").exit_code == 7
    assert run(conversions, "absent", conversions / "out").exit_code == 3


def test_changed_weights_are_refused(conversions: Path) -> None:
    path = conversions / "glip" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(conversions, "glip", conversions / "out").exit_code == 8


def test_a_dry_run_writes_nothing_and_says_the_same(conversions: Path) -> None:
    before = sorted(conversions.iterdir())
    dry = json.loads(run(conversions, "glip", conversions / "out", "--dry-run", "--json").stdout)
    assert sorted(conversions.iterdir()) == before
    real = json.loads(run(conversions, "glip", conversions / "out", "--json").stdout)
    assert dry | {"written": True} == real
    assert real["files"] == {path.name: path.stat().st_size for path in (conversions / "out").iterdir()}


def test_nothing_is_lost(conversions: Path) -> None:
    out = packaged(conversions)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(conversions, "glip", out).exit_code == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(conversions, "glip", out, "--force").exit_code == 0
    assert "report.html" in {path.name for path in out.iterdir()}
    (out / "letter.txt").write_text("dear")
    result = run(conversions, "glip", out, "--force")
    assert result.exit_code == 6
    assert "letter.txt" in result.stderr
    assert run(conversions, "glip", conversions / "glip", "--force").exit_code == 6
    for name in ("out.safetensors", "out.pth", "out.json"):
        assert run(conversions, "glip", conversions / name).exit_code == 6
    assert run(conversions, "glip", conversions / "new", "--repo-id", "no/such/id").exit_code == 2


def test_packaging_needs_no_torch(conversions: Path) -> None:
    arguments = ["package", conversions / "glip", conversions / "out", "--vocab", conversions / "vocab.txt"]
    code = (
        "import sys; from converter.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'safetensors', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)


def test_the_certificate_is_read_as_it_is(originals: Path) -> None:
    evidence = read_evidence(originals / "glip.parity.json")
    assert [run.dtype for run in evidence.runs] == ["float64"]
    assert evidence.made == 5
    assert [capture.name for capture in evidence.captures] == ["small"]
    assert evidence.custom == ()
