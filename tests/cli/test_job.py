"""What the page of a CI job shows: a summary in Markdown, and JUnit XML and a page of a run without a result, too."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from converter.cli import main
from converter.cli.job import ROWS, as_table, code, page, prose
from converter.display import plain
from tests.support.program import Program
from tests.support.saved_glip import saved_glip
from tests.support.small_files import official


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


# Runs without a result


def the_error(xml: Path) -> ET.Element:
    """The only case's, whose numbers are right."""
    root = ET.parse(xml).getroot()
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    assert counts.items() <= root.attrib.items()
    (suite,) = root
    assert counts.items() <= suite.attrib.items()
    ((error,),) = suite
    return error


@pytest.mark.parametrize(
    ("model", "capture", "kind", "code"),
    [
        ("absent", "reference", "NotACheckpointError", 3),
        ("weights", "absent", "NotACheckpointError", 3),
        ("weights", "broken", "CorruptCheckpointError", 3),
        ("broken", "reference", "CorruptCheckpointError", 3),
        ("weights", "weights", "CaptureError", 8),
    ],
)
def test_a_comparison_that_cannot_begin_is_an_error(
    model: str, capture: str, kind: str, code: int, weights: Path, reference: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.safetensors").write_bytes(reference.read_bytes()[:100])
    given = {"weights": weights, "reference": reference, "absent": tmp_path / "absent.safetensors",
             "broken": tmp_path / "broken.safetensors"}  # fmt: skip
    xml, summary, html = tmp_path / "parity.xml", tmp_path / "summary.md", tmp_path / "parity.html"
    html.write_text("pass, of an earlier run")
    outputs = ("--junit", xml, "--summary", summary, "--html", html)
    result = run("parity", given[model], "--reference", given[capture], *outputs)
    assert result.exit_code == code, result.output
    error = the_error(xml)
    assert error.get("type") == kind
    assert error.get("message", "?") in result.stderr
    assert summary.read_text().splitlines()[0].endswith(".safetensors: no result")
    assert "<h1>no result</h1>" in html.read_text()
    assert escape(error.get("message", "?")) in html.read_text()
    assert "pass" not in html.read_text().replace(str(tmp_path), "")


def test_what_needs_no_file_is_an_error_too(weights: Path, reference: Path, tmp_path: Path, program: Program) -> None:
    xml = tmp_path / "parity.xml"
    arguments = ("parity", weights, "--reference", reference, "--junit", xml)
    run = program(*arguments, before="import sys\nsys.modules['torch'] = None\n")
    assert (run.code, "torch" in (the_error(xml).get("message") or "")) == (8, True)
    run = program(*arguments, "--coverage", "--dtype", "float32")
    assert (run.code, the_error(xml).get("type")) == (2, "UsageError")
    broken = "from converter.cli import sources\nsources.locate = lambda *arguments, **options: {}['key']\n"
    run = program(*arguments, before=broken)
    assert (run.code, the_error(xml).get("type")) == (70, "KeyError")


def test_an_interruption_is_told_in_place_of_what_was_there(
    weights: Path, reference: Path, tmp_path: Path, program: Program
) -> None:
    stopped = "import signal\nfrom converter.cli import sources\n"
    stopped += "sources.locate = lambda *arguments, **options: signal.raise_signal(signal.SIGTERM)\n"
    xml, html, summary = tmp_path / "parity.xml", tmp_path / "parity.html", tmp_path / "summary.md"
    for path in (xml, html):
        path.write_text("pass, of an earlier run")
    outputs = ("--junit", xml, "--html", html, "--summary", summary)
    run = program("parity", weights, "--reference", reference, *outputs, before=stopped)
    assert (run.code, run.err) == (143, "terminated; nothing is half-written\n")
    assert (the_error(xml).get("type"), the_error(xml).get("message")) == (
        "Interrupted", "terminated before there was a result",
    )  # fmt: skip
    assert all("terminated before there was a result" in path.read_text() for path in (html, summary))


@pytest.mark.parametrize("command", ["parity", "certify", "verify", "diff", "compare"])
def test_every_comparison_tells_an_error(command: str, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    absent = tmp_path / "<b>absent"
    more = [absent] if command in ("diff", "compare") else [] if command == "verify" else ["--reference", absent]
    result = run(command, absent, *more, "--summary", summary)
    assert result.exit_code in (3, 7, 8), result.output
    first, _, error = summary.read_text().partition("\n\n")
    assert first.startswith(f"### converter {command} ")
    assert first.endswith(": no result")
    assert error.startswith("- **error**: ")
    assert "<b>" not in summary.read_text()


@pytest.mark.parametrize("option", ["--junit", "--html", "--summary"])
def test_an_input_is_never_written_to(option: str, weights: Path, reference: Path, tmp_path: Path) -> None:
    """Not even where the run fails, which it tells there."""
    before = {path: path.read_bytes() for path in (weights, reference)}
    folder = tmp_path / "folder"
    folder.mkdir()
    precious = folder / "notes.md"
    precious.write_text("precious")
    for model, output in ((weights, weights), (weights, reference), (folder, precious)):
        result = run("parity", model, "--reference", reference, option, output)
        assert (result.exit_code, "is one of the inputs" in result.stderr) == (6, True), result.output
    assert {path: path.read_bytes() for path in before} == before
    assert precious.read_text() == "precious"


def test_a_summary_that_cannot_be_written_takes_nothing_from_the_error(
    weights: Path, reference: Path, tmp_path: Path, program: Program
) -> None:
    nowhere = run("parity", weights, "--reference", reference, "--junit", tmp_path / "absent" / "parity.xml")
    assert (nowhere.exit_code, "there is no folder" in nowhere.stderr) == (6, True)  # before anything is compared
    full = ("--summary", "/dev/full")
    result = run("parity", tmp_path / "absent", "--reference", reference, *full)
    assert result.exit_code == 3
    assert "warning: /dev/full cannot be written" in result.stderr
    assert run("diff", weights, weights, *full).exit_code == 6
    os.mkfifo(tmp_path / "fifo")  # that nobody reads
    assert program("diff", weights, weights, "--summary", tmp_path / "fifo").code == 6
    summary = tmp_path / "summary.md"
    summary.write_text("x" * 90)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    assert program("diff", weights, weights, "--summary", summary, before=limit).code == 6
    assert summary.read_text() == "x" * 90


# Results


def test_a_failure_names_what_differs_and_steps_share_a_file(
    weights: Path, wrong: Path, reference: Path, tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("of another step")
    assert run("parity", weights, "--reference", reference, "--mutate", 3, "--summary", summary).exit_code == 0
    assert run("parity", wrong, "--reference", reference, "--summary", summary).exit_code == 1
    assert run("certify", wrong, "--reference", reference, "--summary", summary).exit_code == 1
    assert run("diff", weights, wrong, "--summary", summary).exit_code == 1
    text = summary.read_text()
    earlier, passed, failed, refused, different = re.split("^### ", text, flags=re.MULTILINE)
    assert earlier == "of another step\n"
    assert [part.splitlines()[0].rpartition(": ")[2] for part in (passed, failed, refused, different)] == [
        "pass", "FAIL", "FAIL, not certified", "different",
    ]  # fmt: skip
    assert "**mutations**" in passed
    assert "| verdict" not in passed
    for part in (failed, refused):
        assert "**first difference**: at language_backbone.body.model.encoder.layer.1 (" in part
        assert "- **next**: `converter diff OFFICIAL.pth /" in part
        assert part.count("\n| FAIL |") == (ROWS if part is failed else 2 * ROWS)  # in two dtypes
    assert "different: text_encoder.layers.1.attention.qkv.weight" in unescaped(different)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert sum(token.type == "table_open" for token in tokens) == 4


def test_a_certificate_and_a_copy(reference: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    weights = saved_glip(tmp_path)
    certified = run("certify", weights, "--reference", reference, "--mutate", 3, "--summary", summary)
    assert (certified.exit_code, certified.stderr.splitlines()) == (0, [  # what takes minutes of a whole model
        "comparing with 1 capture in float32 and float64",
        "computing which elements of the weights the captures see",
        "making 3 faults on purpose",
    ])  # fmt: skip
    assert run("verify", weights, "--summary", summary).exit_code == 0
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert run("verify", weights, "--summary", summary).exit_code == 1
    certified, same, changed = summary.read_text().split("\n### ")
    assert certified.splitlines()[0].endswith(": pass")
    assert "small.parity.json" in unescaped(certified)
    assert same.splitlines()[0].endswith(": pass")
    assert changed.splitlines()[0].endswith(": FAIL")
    assert "\n| changed: " in unescaped(changed)


def test_a_file_and_its_own_record(small_mappings: None, tmp_path: Path) -> None:
    summary, weights = tmp_path / "summary.md", tmp_path / "small.safetensors"
    torch.save(official(), tmp_path / "official.pth")
    assert run("convert", tmp_path / "official.pth", weights).exit_code == 0
    assert run("verify", weights, "--summary", summary).exit_code == 0
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run("verify", weights, "--summary", summary).exit_code == 1
    same, changed = summary.read_text().split("\n### ")
    assert same.splitlines()[0].endswith(": as recorded")
    assert changed.splitlines()[0].endswith(": FAIL")
    assert "\n| changed: " in unescaped(changed)


def test_outputs_of_two_models(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    save_file({"tokens|x": torch.ones(3, dtype=torch.float64)}, tmp_path / "a.safetensors")
    save_file({"tokens|x": torch.ones(3, dtype=torch.float64) * 2}, tmp_path / "b.safetensors")
    pair = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert run("compare", *pair, "--summary", summary).exit_code == 1
    (line,) = (line for line in summary.read_text().splitlines() if line.startswith("| DIFFERENT |"))
    assert line.count("<code>tokens&#124;x</code>") == 2


def unescaped(markdown: str) -> str:
    return re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), markdown)


# A stranger's names

HOSTILE = [
    "<script>alert(1)</script>", "a|b", "a\\|b", "`a`", "``", "_a_ *b* ~~c~~", "[a](javascript:b)", "![a](b)", "&lt;",
    "@someone", "http://a.b", "www.a.b", ":smile:", "$x$", "# a", "- a", " ", "", "a\nb", "\u202ea",
]  # fmt: skip


@given(st.one_of(st.sampled_from(HOSTILE), st.text("`|\\<>&*_[]()!#$@:~ab\n ")))
def test_a_name_is_shown_as_it_is(name: str) -> None:
    """Whatever Markdown, HTML or a table would make of it."""
    text = page(name, "FAIL", [(name, name)], as_table(["name", "error"], [[code(name), prose(name)]]))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = [token.type.removesuffix("_open").removesuffix("_close") for token in tokens]
    expected = ["heading", "inline", "heading", "bullet_list", "list_item", "paragraph", "inline", "paragraph"]
    assert kinds[:8] == expected
    assert kinds.count("td") == 4
    heading, bullet, cell, error = (tokens[i].children or [] for i in [1, 6, *find(kinds, "inline", -2)])
    shown = plain(name)
    label = plain(name.strip() or repr(name))
    assert "".join(token.content for token in heading) == f"{shown}: FAIL".strip()
    assert {token.type for token in heading} <= {"text", "text_special"}
    assert "".join(token.content for token in bullet) == f"{label}: {shown}".rstrip()
    assert {token.type for token in bullet} <= {"text", "text_special", "strong_open", "strong_close"}
    tags = {token.content for token in cell if token.type == "html_inline"}
    assert tags <= {"<code>", "</code>"}
    assert "".join(token.content for token in cell if token.type != "html_inline") == shown
    assert {token.type for token in error} <= {"text", "text_special"}
    assert not re.search(r"://|www\.|@", prose(name))


def find(kinds: list[str], wanted: str, last: int) -> list[int]:
    return [i for i, kind in enumerate(kinds) if kind == wanted][last:]
