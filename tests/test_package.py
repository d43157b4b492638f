"""The folder to publish: whole, loadable, and a card that says no more than is known."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bert_vocabulary import small_vocabulary
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_glip import ledger, saved_glip
from server import HubServer
from small_capture import small_capture
from small_glip import loading, subject

from converter.cli import main
from converter.glip import GLIP
from converter.glip.family import FAMILY
from converter.parity.certificate import certify, verify
from converter.parity.evidence import read_evidence
from converter.parity.mutate import mutation_score
from converter.parity.run import parity
from converter.publish.card import UNVERIFIED, code, mark_unverified, text

FILES = [
    "README.md", "config.json", "conversion.json", "model.safetensors", "parity.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt",
]  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion as a file and as a folder, each with its certificate, and a vocabulary."""
    folder = tmp_path_factory.mktemp("conversion")
    weights = saved_glip(folder)
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    single = folder / "glip.safetensors"
    save_file(load_file(weights), single, metadata | {"conversion": json.dumps(ledger(weights))})
    with small_capture(tmp_path_factory.mktemp("capture")) as capture:
        model = GLIP.from_pretrained(single).double()
        certify(
            single,
            capture,
            [parity(subject(model), capture)],
            mutation_score(subject(model), capture, 5),
            subject(model),
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
def folder(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "in"))


def run(folder: Path, conversion: str, out: Path, *more: object) -> Result:
    vocab = ["--vocab", folder / "vocab.txt"]
    return CliRunner().invoke(main, ["package", *map(str, [folder / conversion, out, *vocab, *more])])


def packaged(folder: Path, conversion: str = "glip.safetensors", *more: object) -> Path:
    out = folder / "out"
    result = run(folder, conversion, out, *more)
    assert result.exit_code == 0, result.output
    return out


def card_of(out: Path) -> str:
    return (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("conversion", "files"), [("glip.safetensors", FILES), ("glip", sorted([*FILES, "report.html"]))]
)
def test_the_folder_is_complete(folder: Path, conversion: str, files: list[str]) -> None:
    out = packaged(folder, conversion)
    assert sorted(path.name for path in out.iterdir()) == files
    source = folder / conversion
    assert (out / "model.safetensors").samefile(source / "model.safetensors" if source.is_dir() else source)


def test_the_model_loads_and_is_the_same(folder: Path) -> None:
    out = packaged(folder)
    model = GLIP.from_pretrained(out)
    for name, parameter in GLIP.from_pretrained(folder / "glip.safetensors").named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_the_copy_verifies(folder: Path) -> None:
    out = packaged(folder)
    assert verify(out, loading(out)).passed


def test_config_says_architecture_preprocessing_and_origin(folder: Path) -> None:
    config = json.loads((packaged(folder, "glip", "--model-name", "glip-t-b") / "config.json").read_text())
    assert config["model"] == "glip"
    assert config["model_name"] == "glip-t-b"
    assert config["config"]["vocab_size"] == config["vocabulary"]["entries"] == 50
    assert config["preprocessing"]["mean"] == [103.53, 116.28, 123.675]
    assert config["provenance"]["source"]["sha256"] == "b" * 64
    assert config["vocabulary"]["bert_base_uncased"] is False


def test_shards_come_with_their_index(folder: Path) -> None:
    inside = folder / "glip"
    tensors = sorted(load_file(inside / "model.safetensors").items())
    (inside / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((tensors[:40], tensors[40:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), inside / name, {"format": "pt"})
        weight_map |= {key: name for key, _ in part}
    (inside / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out = packaged(folder, "glip")
    assert {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} <= {p.name for p in out.iterdir()}
    assert GLIP.from_pretrained(out).config.vocab_size == 50
    assert verify(out, loading(out)).passed


def test_twice_gives_the_same_bytes(folder: Path) -> None:
    first = packaged(folder)
    assert run(folder, "glip.safetensors", folder / "again").exit_code == 0
    for path in first.iterdir():
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes(), path.name


def test_a_copy_is_made_where_no_link_can_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    link = os.link

    def refuse(source: Any, *arguments: Any, **options: Any) -> None:
        if str(source).endswith(".safetensors"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, *arguments, **options)

    monkeypatch.setattr(os, "link", refuse)
    out = packaged(folder)
    assert not (out / "model.safetensors").samefile(folder / "glip.safetensors")
    assert (out / "model.safetensors").read_bytes() == (folder / "glip.safetensors").read_bytes()


def test_weights_that_must_be_copied_need_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 20  # documents fit
    assert (folder / "glip.safetensors").stat().st_size > free
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        result = run(folder, "glip.safetensors", Path(elsewhere) / "out")
    assert result.exit_code == 6
    assert "GB are needed" in result.stderr
    assert run(folder, "glip.safetensors", folder / "out").exit_code == 0


# ---- what the card says


def test_the_hub_can_read_the_card(folder: Path) -> None:
    data = ModelCard.load(packaged(folder, "glip", "--model-name", "glip-t") / "README.md").data
    assert data.license == "mit"
    assert data.pipeline_tag == "zero-shot-object-detection"
    assert data.library_name == "converter"
    assert data.base_model == "GLIPModel/GLIP"
    assert data.datasets == ["google-research-datasets/conceptual_captions", "vicenteor/sbu_captions"]


def test_the_card_has_the_numbers_of_the_certificate(folder: Path) -> None:
    card = card_of(packaged(folder))
    certificate = json.loads((folder / "glip.parity.json").read_text())
    (run_,) = certificate["runs"]
    taps = [tap for results in run_["modes"].values() for tap in results]
    worst = max(tap["relative"] for tap in taps)
    assert f"| `cpu` | `float64` | {len(taps)} | {worst:.1e} (" in card
    assert f"of {certificate['mutations']['made']} faults made on purpose" in card
    assert f"it noticed {certificate['mutations']['caught']};" in card
    assert "UNVERIFIED" not in card
    assert "Nothing was compared on a GPU." in card
    assert "Nothing was compared in float32, bfloat16, float16." in card
    assert "capture `small`, on 2 images of 101x75 and 90x60 pixels" in card


def test_a_capture_that_is_not_of_the_official_code_is_not_said_to_be(folder: Path) -> None:
    assert "**The capture does not say that it is of the official code.**" in card_of(packaged(folder))
    official = "configs/pretrain/glip_Swin_T_O365_GoldG.yaml"
    edit(folder / "glip" / "parity.json", lambda c: c["capture"]["facts"].update(official_config=official))
    assert run(folder, "glip", folder / "again").exit_code == 0
    card = card_of(folder / "again")
    assert f"capture `small`, a recording of the official code (`{official}`)" in card
    assert "does not say that it is of the official code" not in card


def test_without_a_certificate_the_card_begins_with_it(folder: Path) -> None:
    (folder / "glip.parity.json").unlink()
    result = run(folder, "glip.safetensors", folder / "out", "--model-name", "glip-t")
    assert "UNVERIFIED" in result.stdout
    card = card_of(folder / "out")
    assert card.split("\n\n")[2].startswith(UNVERIFIED)  # below front matter and heading
    assert "What was verified" not in card
    assert "Nothing was compared with the official code" in card
    assert "passed" not in card
    assert not (folder / "out" / "parity.json").exists()


@pytest.mark.parametrize(
    ("card", "before"),
    [
        ("# GLIP\n\nText\n", "# GLIP\n\n"),
        ("---\nlicense: mit\n---\n# GLIP\nText\n", "---\nlicense: mit\n---\n# GLIP\n\n"),
        ("---\r\nlicense: mit\r\n---\r\n\r\n# GLIP\r\n", "---\r\nlicense: mit\r\n---\r\n\r\n# GLIP\n\n"),
        ("---\nlicense: mit\n---\nText\n", "---\nlicense: mit\n---\n\n"),
        ("Text\n\n# GLIP\n", ""),
        ("<!--\n> **UNVERIFIED.**\n-->\n# GLIP\n", ""),
        ("```\n# code\n```\n", ""),
        ("#hashtag\n", ""),
        ("", ""),
    ],
)
def test_a_card_is_marked_where_it_is_seen(card: str, before: str) -> None:
    marked = mark_unverified(card)
    assert marked.startswith(f"{before}{UNVERIFIED}")
    assert MarkdownIt().render(marked[len(before) :]).startswith("<blockquote>\n<p><strong>UNVERIFIED.</strong>")
    assert "".join(marked.split()).endswith("".join(card[len(before.rstrip()) :].split()))
    assert mark_unverified(marked) == marked


def test_nothing_is_claimed_of_a_model_that_was_not_named(folder: Path) -> None:
    out = packaged(folder)
    card, data = card_of(out), ModelCard.load(out / "README.md").data
    assert "Which model this is was not stated" in card
    assert (data.license, data.base_model, data.datasets) == (None, None, None)
    assert "Reported by the authors" not in card
    assert "Objects365" not in card


@pytest.mark.parametrize("name", ["glip-t", "glip-t-b", "glip-t-c"])
def test_figures_are_the_authors_and_said_to_be(name: str, folder: Path) -> None:
    card = card_of(packaged(folder, "glip", "--model-name", name))
    model = FAMILY.about()["models"][name]
    section = card.split("## Reported by the authors")[1].split("\n## ")[0]
    assert "not measured here" in section
    assert "https://github.com/microsoft/GLIP" in section
    assert re.findall(r"\| ([0-9.]+) \|", section) == [str(value) for value in model["figures"].values()]
    assert model["checkpoint"] in card


@pytest.mark.parametrize("name", ["glip-l", "glip-t-a", "glip-x", "`"])
def test_another_models_name_is_refused(name: str, folder: Path) -> None:
    result = run(folder, "glip.safetensors", folder / "out", "--model-name", name)
    assert result.exit_code == 7
    assert "its architecture is that of glip-t-b, glip-t-c, glip-t" in result.stderr
    assert not (folder / "out").exists()


def test_every_fact_of_the_zoo_has_a_source() -> None:
    sources, models = FAMILY.about()["sources"], FAMILY.about()["models"]
    assert list(models) == ["glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l"]
    for entry in [
        FAMILY.about()["license"],
        FAMILY.about()["base_model"],
        *FAMILY.about()["data"].values(),
        *models.values(),
    ]:
        assert sources[entry["source"]].startswith("https://")
    for model in models.values():
        assert set(model["figures"]) <= set(FAMILY.about()["figures"])
        assert set(model["data"]) <= set(FAMILY.about()["data"])


def test_rounded_weights_are_said_to_be(folder: Path) -> None:
    path = folder / "glip" / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lossless": False}))
    assert "Converting rounded the weights" in card_of(packaged(folder, "glip"))


def python_blocks(card: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(card) if token.type == "fence" and token.info == "python"]


@pytest.mark.parametrize("repo_id", [None, "someone/glip-t"])
def test_the_example_runs_as_pasted(repo_id: str | None, folder: Path, running: HubServer) -> None:
    out = packaged(folder, "glip", *(["--repo-id", repo_id] if repo_id else []))
    # as small as the model; a picture of full size takes seconds
    config = json.loads((out / "config.json").read_text())
    config["preprocessing"] |= {"shorter_side": 96, "longer_side": 160}
    (out / "config.json").write_text(json.dumps(config))
    (example,) = python_blocks(card_of(out))
    if repo_id is not None:
        running.reset(folder / "hub")
        running.storage.create(repo_id, False, "someone")
        running.push(repo_id, {path.name: path.read_bytes() for path in out.iterdir()})
    lower = example.replace("threshold=0.5", "threshold=0.2")  # random weights are sure of nothing
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lower],
        cwd=folder if repo_id else out,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^(person|dog) 0\.\d+ \[\d+, \d+, \d+, \d+\]$", done.stdout, re.MULTILINE)


def test_where_it_was_read_from_is_said(folder: Path) -> None:
    reference = "hf://org/name/official.pth@0123456789abcdef0123456789abcdef01234567"
    edit(folder / "glip" / "conversion.json", lambda c: c["source"].update({"origin": {"reference": reference}}))
    assert f"| read from | `{reference}` |" in card_of(packaged(folder, "glip"))


@pytest.mark.parametrize(
    "hostile", ["", "www.evil.example", "https://evil.example", "`|x\n# y", "<script>", "a](b)", "\x1b[31m", "\ud800"]
)
def test_names_out_of_files_stay_names(hostile: str) -> None:
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
        f"| a | b |\n| --- | --- |\n| {code(hostile)} | {text(hostile)} |\n"
    )
    assert html.count("<td>") == 2
    assert re.search(r"<td><code>[^<]+</code></td>\n<td>[^<]*</td>", html)
    assert not re.search(r"www\.|://", html.split("</code>")[1])  # of which GitHub and the Hub make links


def test_the_tables_are_tables(folder: Path) -> None:
    card = card_of(packaged(folder, "glip", "--model-name", "glip-t")).split("---\n", 2)[2]
    html = MarkdownIt("gfm-like", {"linkify": False}).render(card)
    assert html.count("<table>") == 3
    assert html.count("<h1>") == 1
    assert "|" not in re.sub(r"<code.*?</code>", "", html, flags=re.DOTALL)


# ---- refusals


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGE: dict[str, tuple[str, Callable[[dict[str, Any]], object], int, str]] = {
    "a certificate of other weights": (
        "parity.json", lambda c: c["weights"]["tensors"].update({"head.bias": "0" * 64}), 8,
        "differ from what the certificate says in 1 tensor, head.bias first",
    ),
    "a certificate of fewer tensors": (
        "parity.json", lambda c: c["weights"]["tensors"].pop("head.bias"), 8, "head.bias first"
    ),
    "a certificate that did not pass": (
        "parity.json", lambda c: c["runs"][0].update(passed=False), 8, "at 'runs/0/passed'"
    ),
    "a certificate of nothing": ("parity.json", lambda c: c.update(runs=[]), 8, "at 'runs'"),
    "a certificate without numbers": ("parity.json", lambda c: c["runs"][0].update(modes={}), 8, "at 'runs/0/modes'"),
    "an infinite error": (
        "parity.json", lambda c: c["runs"][0]["modes"]["propagated"][0].update(relative="Infinity"), 8, "relative'"
    ),
    "an error that is no number": (
        "parity.json", lambda c: c["runs"][0]["modes"]["propagated"][0].update(relative=float("nan")), 8, "is no JSON"
    ),
    "a certificate of another format": ("parity.json", lambda c: c.update(format=2), 8, "at 'format'"),
    "a certificate without a fingerprint": ("parity.json", lambda c: c.pop("fingerprint"), 8, "'fingerprint' is a"),
    "a fingerprint that is none": (
        "parity.json", lambda c: c.update(fingerprint="!!!!"), 8, "its fingerprint is damaged"
    ),
    "a device that is markup": (
        "parity.json", lambda c: c["runs"][0].update(device="<img src=x>"), 8, "at 'runs/0/device'"
    ),
    "a dtype that is markup": ("parity.json", lambda c: c["runs"][0].update(dtype="<b>"), 8, "at 'runs/0/dtype'"),
    "a record of other weights": (
        "conversion.json", lambda c: c["tensors"].update({"head.bias": "0" * 64}), 8, "what conversion.json says"
    ),
    "no record": ("conversion.json", lambda c: c.clear(), 7, "its record 'conversion' is none"),
    "a part of a model": ("conversion.json", lambda c: c["target"].update(part="swin"), 7, "only a part of a model"),
    "tensors that are missing": (
        "conversion.json", lambda c: c.update(missing=[{"names": "a", "reason": "b"}]), 7, "only a part of a model"
    ),
    "another model": ("config.json", lambda c: c.update(model="detr"), 7, "a model that is known here"),
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
def test_what_does_not_fit_together_is_refused(name: str, folder: Path) -> None:
    file, change, exit_code, message = DAMAGE[name]
    edit(folder / "glip" / file, change)
    result = run(folder, "glip", folder / "out", "--json")
    assert result.exit_code == exit_code, result.output
    assert message in json.loads(result.stdout)["error"]["message"]
    assert not (folder / "out").exists()


def test_weights_without_a_record_are_refused(folder: Path) -> None:
    assert run(folder, "small.safetensors", folder / "out").exit_code == 7
    (folder / "glip" / "conversion.json").unlink()
    assert run(folder, "glip", folder / "out").exit_code == 7
    assert run(folder, "absent", folder / "out").exit_code == 3


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / "glip" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(folder, "glip", folder / "out").exit_code == 8


def test_a_dry_run_writes_nothing_and_says_the_same(folder: Path) -> None:
    before = sorted(folder.iterdir())
    dry = json.loads(run(folder, "glip", folder / "out", "--dry-run", "--json").stdout)
    assert sorted(folder.iterdir()) == before
    real = json.loads(run(folder, "glip", folder / "out", "--json").stdout)
    assert dry | {"written": True} == real
    assert real["files"] == {path.name: path.stat().st_size for path in (folder / "out").iterdir()}


def test_nothing_is_lost(folder: Path) -> None:
    out = packaged(folder)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(folder, "glip", out).exit_code == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(folder, "glip", out, "--force").exit_code == 0
    assert "report.html" in {path.name for path in out.iterdir()}
    (out / "letter.txt").write_text("dear")
    result = run(folder, "glip", out, "--force")
    assert result.exit_code == 6
    assert "letter.txt" in result.stderr
    assert run(folder, "glip", folder / "glip", "--force").exit_code == 6
    for name in ("out.safetensors", "out.pth", "out.json"):
        assert run(folder, "glip", folder / name).exit_code == 6
    assert run(folder, "glip", folder / "new", "--repo-id", "no/such/id").exit_code == 2


def test_packaging_needs_no_torch(folder: Path) -> None:
    arguments = ["package", folder / "glip", folder / "out", "--vocab", folder / "vocab.txt"]
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
    assert evidence.capture == "small"
