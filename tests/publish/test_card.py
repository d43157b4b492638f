"""The card says no more than is known, and hides nothing that is not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from converter.glip.family import FAMILY
from converter.publish.card import UNVERIFIED, code, mark_unverified, text
from tests import ROOT
from tests.support.alone import alone
from tests.support.drawings import is_drawn
from tests.support.hub.server import HubServer
from tests.support.packaging import card_of, edit, packaged, run


def test_the_hub_can_read_the_card(conversions: Path) -> None:
    data = ModelCard.load(packaged(conversions, "glip", "--model-name", "glip-t") / "README.md").data
    assert data.license == "mit"
    assert data.pipeline_tag == "zero-shot-object-detection"
    assert data.library_name == "converter"
    assert data.base_model == "GLIPModel/GLIP"
    assert data.datasets == ["google-research-datasets/conceptual_captions", "vicenteor/sbu_captions"]


def test_the_card_has_the_numbers_of_the_certificate(conversions: Path) -> None:
    card = card_of(packaged(conversions))
    certificate = json.loads((conversions / "glip.parity.json").read_text())
    (run_,) = certificate["runs"]
    taps = [tap for results in run_["modes"].values() for tap in results]
    worst = max(tap["relative"] for tap in taps)
    assert f"| `cpu` | `float64` | {len(taps)} | {worst:.1e} (" in card
    assert f"of {certificate['mutations']['made']} faults made on purpose" in card
    assert f"it noticed {certificate['mutations']['caught']};" in card
    assert f"would show in {certificate['coverage']['seen']:,} of {certificate['coverage']['elements']:,} num" in card
    assert "UNVERIFIED" not in card
    assert "Nothing was compared on a GPU." in card
    assert "Nothing was compared in float32, bfloat16, float16." in card
    assert "capture `small`, on 2 images of 101x75 and 90x60 pixels" in card


def test_a_capture_that_is_not_of_the_official_code_is_not_said_to_be(conversions: Path) -> None:
    assert "**The capture does not say that it is of the official code.**" in card_of(packaged(conversions))
    official = "configs/pretrain/glip_Swin_T_O365_GoldG.yaml"
    edit(conversions / "glip" / "parity.json", lambda c: c["captures"][0]["facts"].update(official_config=official))
    assert run(conversions, "glip", conversions / "again").exit_code == 0
    card = card_of(conversions / "again")
    assert f"capture `small`, a recording of the official code (`{official}`)" in card
    assert "does not say that it is of the official code" not in card


def test_without_a_certificate_the_card_begins_with_it(conversions: Path) -> None:
    (conversions / "glip.parity.json").unlink()
    result = run(conversions, "glip.safetensors", conversions / "out", "--model-name", "glip-t")
    assert "UNVERIFIED" in result.stdout
    card = card_of(conversions / "out")
    assert card.split("\n\n")[2].startswith(UNVERIFIED)  # below front matter and heading
    assert "What was verified" not in card
    assert "Nothing was compared with the official code" in card
    assert "passed" not in card
    assert not (conversions / "out" / "parity.json").exists()


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


def test_nothing_is_claimed_of_a_model_that_was_not_named(conversions: Path) -> None:
    out = packaged(conversions)
    card, data = card_of(out), ModelCard.load(out / "README.md").data
    assert "Which model this is was not stated" in card
    assert (data.license, data.base_model, data.datasets) == (None, None, None)
    assert "Reported by the authors" not in card
    assert "Objects365" not in card


@pytest.mark.parametrize("name", ["glip-t", "glip-t-b", "glip-t-c"])
def test_figures_are_the_authors_and_said_to_be(name: str, conversions: Path) -> None:
    card = card_of(packaged(conversions, "glip", "--model-name", name))
    model = FAMILY.about()["models"][name]
    section = card.split("## Reported by the authors")[1].split("\n## ")[0]
    assert "not measured here" in section
    assert "https://github.com/microsoft/GLIP" in section
    assert re.findall(r"\| ([0-9.]+) \|", section) == [str(value) for value in model["figures"].values()]
    assert model["checkpoint"] in card


@pytest.mark.parametrize("name", ["glip-l", "glip-t-a", "glip-x", "`"])
def test_another_models_name_is_refused(name: str, conversions: Path) -> None:
    result = run(conversions, "glip.safetensors", conversions / "out", "--model-name", name)
    assert result.exit_code == 7
    assert "its architecture is that of glip-t-b, glip-t-c, glip-t" in result.stderr
    assert not (conversions / "out").exists()


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


def test_rounded_weights_are_said_to_be(conversions: Path) -> None:
    path = conversions / "glip" / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lossless": False}))
    assert "Converting rounded the weights" in card_of(packaged(conversions, "glip"))


def blocks(card: str, language: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(card) if token.type == "fence" and token.info == language]


@pytest.fixture(params=[None, "someone/glip-t"], ids=["in the folder", "from the Hub"])
def carried(request: pytest.FixtureRequest, conversions: Path, running: HubServer) -> tuple[str, Path]:
    """A card, and a folder from which it is followed: the model's own, or another one with the model on the Hub."""
    repo_id = request.param
    out = packaged(conversions, "glip", *(["--repo-id", repo_id] if repo_id else []))
    # as small as the model; a picture of full size takes seconds
    config = json.loads((out / "config.json").read_text())
    config["preprocessing"] |= {"shorter_side": 96, "longer_side": 160}
    (out / "config.json").write_text(json.dumps(config))
    if repo_id is not None:
        running.reset(conversions / "hub")
        running.storage.create(repo_id, False, "someone")
        running.push(repo_id, {path.name: path.read_bytes() for path in out.iterdir()})
    here = conversions if repo_id else out
    Image.fromarray(skimage.data.rocket()).save(here / "street.jpg")
    return card_of(out), here


def test_the_example_runs_as_pasted(carried: tuple[str, Path]) -> None:
    card, here = carried
    (example,) = blocks(card, "python")
    lower = example.replace("threshold=0.5", "threshold=0.2")  # random weights are sure of nothing
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lower],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^(person|dog) 0\.\d+ \[\d+, \d+, \d+, \d+\]$", done.stdout, re.MULTILINE)
    assert is_drawn(here / "found.jpg", here / "street.jpg")


def test_its_command_line_runs_as_pasted(carried: tuple[str, Path]) -> None:
    card, here = carried
    *_, command = blocks(card, "console")
    program, *arguments = shlex.split(command)
    done = alone(*arguments, "--threshold", 0.2, cwd=here)
    assert (program, done.returncode) == ("converter", 0), done.stderr
    assert is_drawn(here / "found" / "street.jpg", here / "street.jpg")


def test_it_says_how_to_install_what_the_example_needs(carried: tuple[str, Path]) -> None:
    card, _ = carried
    use = card.split("\n## Use\n")[1]
    assert use.index("pip install '.[detect]'") < use.index("from converter.glip import Detector")


def test_where_it_was_read_from_is_said(conversions: Path) -> None:
    reference = "hf://org/name/official.pth@0123456789abcdef0123456789abcdef01234567"
    edit(conversions / "glip" / "conversion.json", lambda c: c["source"].update({"origin": {"reference": reference}}))
    assert f"| read from | `{reference}` |" in card_of(packaged(conversions, "glip"))


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


def test_the_tables_are_tables(conversions: Path) -> None:
    card = card_of(packaged(conversions, "glip", "--model-name", "glip-t")).split("---\n", 2)[2]
    html = MarkdownIt("gfm-like", {"linkify": False}).render(card)
    assert html.count("<table>") == 4
    assert html.count("<h1>") == 1
    assert "|" not in re.sub(r"<code.*?</code>", "", html, flags=re.DOTALL)
