"""The bill of materials: valid by CycloneDX's schema, the same bytes for the same folder, and of what lies there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from jsonschema import Draft7Validator
from markdown_it import MarkdownIt

from converter import errors
from converter.errors import ModelError
from converter.glip.family import FAMILY
from converter.publish import figures as recorded
from converter.publish.bom import bill_of_materials
from converter.publish.facts import Facts
from tests import ROOT
from tests.support.evaluations import evaluate, evaluated
from tests.support.packaging import bill_of, card_of, edit, packaged, run
from tests.support.publishing import shard

SINGLE = "glip.safetensors"
NAMED = ("--model-name", "glip-t", "--repo-id", "someone/glip-t")
HOSTILE = ["\x00\x1b[31m\n", "\ud800", "a" * 10_000, "<script>", "`|x`", "夜", "", "https://evil.example/ x"]


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parts(bill: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in bill["components"] if part["type"] == kind}


def properties(part: dict[str, Any]) -> dict[str, str]:
    """Of which none may be there twice."""
    found = {entry["name"].removeprefix("converter:"): entry["value"] for entry in part["properties"]}
    assert len(found) == len(part["properties"])
    return found


def model_of(out: Path) -> dict[str, Any]:
    model: dict[str, Any] = bill_of(out)["metadata"]["component"]
    return model


CONVERSIONS: dict[str, Callable[[Path], object]] = {
    "certified": lambda folder: None,
    "not certified": lambda folder: (folder / "glip" / "parity.json").unlink(),
    "evaluated": lambda folder: evaluate(folder / "glip", evaluated(), evaluated(dataset="lvis", limited=True)),
    "in shards": lambda folder: shard(folder / "glip"),
}


@pytest.mark.parametrize("more", [(), NAMED], ids=["not named", "named"])
@pytest.mark.parametrize("what", CONVERSIONS)
def test_it_is_valid_and_has_the_hash_of_every_file(what: str, more: tuple[str, ...], conversions: Path) -> None:
    CONVERSIONS[what](conversions)
    out = packaged(conversions, "glip", *more)
    bill = bill_of(out)
    found = {name: part["hashes"] for name, part in parts(bill, "file").items()}
    expected = {path.name: path for path in out.iterdir() if path.name not in ("README.md", "bom.cdx.json")}
    assert found == {name: [{"alg": "SHA-256", "content": file_sha256(path)}] for name, path in expected.items()}
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model.get("hashes") == (None if what == "in shards" else found["model.safetensors"])
    ledger = json.loads((out / "conversion.json").read_text())
    assert model["version"] == properties(model)["sha256"] == ledger["sha256"]
    assert "bom.cdx.json" in ledger["folder"]
    assert ("UNVERIFIED" in model["description"]) == (what == "not certified")
    assert Bom.from_json(bill).serial_number.version == 5  # type: ignore[attr-defined]


def test_the_validator_would_notice(conversions: Path) -> None:
    out = packaged(conversions)
    assert "iri-reference" in Draft7Validator.FORMAT_CHECKER.checkers  # else addresses would go unchecked
    edit(out / "bom.cdx.json", lambda bill: bill["metadata"]["component"].update(hash="x"))
    with pytest.raises(AssertionError):
        bill_of(out)


def test_it_has_the_figures_of_certificate_and_evaluations(conversions: Path) -> None:
    evaluate(conversions / "glip", evaluated(), evaluated(dataset="lvis"))
    out = packaged(conversions, "glip")
    certificate = json.loads((out / "parity.json").read_text())
    stated = properties(model_of(out))
    (run_,) = certificate["runs"]
    taps = [tap for results in run_["modes"].values() for tap in results]
    assert float(stated["parity:1:largest_relative_error"]) == max(tap["relative"] for tap in taps)
    assert int(stated["parity:1:comparisons"]) == len(taps)
    assert (stated["parity:1:device"], stated["parity:1:dtype"], stated["certified"]) == ("cpu", "float64", "true")
    assert int(stated["mutations:caught"]) == certificate["mutations"]["caught"]
    assert int(stated["coverage:seen"]) == certificate["coverage"]["seen"]
    assert stated["capture:1:sha256"] == certificate["captures"][0]["sha256"]
    for number, each in enumerate(json.loads((out / "evaluation.json").read_text())["evaluations"], start=1):
        known = {name: value for name, value in each["figures"].items() if value is not None}
        assert (
            known.items()
            <= {
                name: float(value)
                for key, value in stated.items()
                if (name := key.removeprefix(f"evaluation:{number}:")).startswith("A")
            }.items()
        )
        assert stated[f"evaluation:{number}:dataset"] == each["dataset"]["name"]
        assert stated[f"evaluation:{number}:annotations"] == each["dataset"]["annotations_sha256"]
    assert "evaluation:1:APm" not in stated  # nothing of it is annotated


def test_source_table_and_versions_are_those_on_record(conversions: Path) -> None:
    files = {"official.pth": "c" * 64, "config.json": "d" * 64}
    origin = {"reference": f"hf://org/name/official.pth@{'0' * 40}", "files": files}
    ledger = conversions / "glip" / "conversion.json"
    edit(ledger, lambda c: c["source"].update(origin=origin))
    edit(ledger, lambda c: c.update(earlier=[{"name": "mine", "sha256": "e" * 64, "custom": True}]))
    out = packaged(conversions, "glip")
    bill, content = bill_of(out), json.loads(ledger.read_text())
    source = parts(bill, "machine-learning-model")[origin["reference"]]
    assert source["version"] == properties(source)["sha256"] == content["source"]["sha256"]
    assert {part["name"]: part["hashes"][0]["content"] for part in source["components"]} == files
    (ancestor,) = bill["metadata"]["component"]["pedigree"]["ancestors"]
    assert (ancestor["name"], ancestor["version"]) == (source["name"], source["version"])
    tables = parts(bill, "data")
    assert tables["glip-official"]["version"] == content["table"]["sha256"]
    assert tables["mine"]["description"].startswith("A custom table, which no release has.")
    run_ = json.loads((out / "parity.json").read_text())["runs"][0]["settings"]
    tools = {(tool["name"], tool["version"]): tool["type"] for tool in bill["metadata"]["tools"]["components"]}
    assert tools == {
        ("converter", run_["converter"]): "application",
        ("torch", run_["torch"]): "library",
        ("python", run_["python"]): "platform",
    }


def test_of_a_model_that_was_named_it_has_licence_and_training_data(conversions: Path) -> None:
    bill = bill_of(packaged(conversions, "glip", *NAMED))
    model = bill["metadata"]["component"]
    assert (model["name"], model["purl"]) == ("GLIP-T", "pkg:huggingface/someone/glip-t")
    assert model["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "declared"}}]
    trained = [FAMILY.about()["data"][key]["name"] for key in FAMILY.about()["models"]["glip-t"]["data"]]
    assert parts(bill, "data").keys() == {"glip-official", *trained}
    models = parts(bill, "machine-learning-model")
    assert models["GLIPModel/GLIP"]["purl"] == "pkg:huggingface/GLIPModel/GLIP"
    assert "glip_tiny_model_o365_goldg_cc_sbu.pth" in models
    (depends,) = [entry["dependsOn"] for entry in bill["dependencies"] if entry["ref"] == "model"]
    assert sorted(depends) == sorted(part["bom-ref"] for part in bill["components"])


def test_of_a_model_that_was_not_named_it_claims_nothing(conversions: Path) -> None:
    bill = bill_of(packaged(conversions))
    assert bill["metadata"]["component"]["name"] == "GLIP (small)"
    assert "licenses" not in json.dumps(bill)
    assert parts(bill, "data").keys() == {"glip-official"}
    assert parts(bill, "machine-learning-model").keys() == {"a checkpoint"}


def test_a_package_of_the_package_has_the_same(conversions: Path) -> None:
    out = packaged(conversions, "glip")
    (out / "bom.cdx.json").write_text("{}")  # what an earlier one says counts for nothing
    assert run(conversions, "out", conversions / "again").exit_code == 0
    again = conversions / "again"
    assert run(conversions, "glip", conversions / "third").exit_code == 0
    assert (again / "bom.cdx.json").read_bytes() == (conversions / "third" / "bom.cdx.json").read_bytes()
    assert "timestamp" not in bill_of(again)["metadata"]


def test_what_differs_has_another_serial_number(conversions: Path) -> None:
    first = bill_of(packaged(conversions, "glip"))["serialNumber"]
    (conversions / "glip" / "report.html").write_text("<p>another</p>")
    assert run(conversions, "glip", conversions / "again").exit_code == 0
    assert bill_of(conversions / "again")["serialNumber"] != first


def test_the_card_shows_it(conversions: Path) -> None:
    out = packaged(conversions, "glip", *NAMED)
    section = card_of(out).split("\n## Bill of materials\n")[1].split("\n## ")[0]
    assert f"`bom.cdx.json` (SHA-256 `{file_sha256(out / 'bom.cdx.json')}`)" in section
    html = MarkdownIt("gfm-like", {"linkify": False}).render(section)
    assert html.count("<tr>") == 7
    assert "| data sets | `Objects365`, `GoldG`, Conceptual Captions 3M, SBU captions |" in section
    assert f"| files | {len(list(out.iterdir())) - 2}, each with its SHA-256 |" in section


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_names_out_of_files_leave_it_valid(hostile: str, conversions: Path) -> None:
    changed = {"dataset": hostile or "x", "protocol": {"name": hostile[:1000] or "x"}, "torch": hostile}
    changed = {key: value[:1000] if isinstance(value, str) else value for key, value in changed.items()}
    evaluate(conversions / "glip", evaluated(**changed, library=hostile[:1000] or "x"))
    (conversions / "glip" / "parity.json").unlink()  # which would refuse another table
    origin = {"reference": hostile, "files": {hostile: hostile, hostile + "a": "b" * 64, hostile + "b": "c" * 64}}
    for change in (
        lambda c: c["source"].update(origin=origin, sha256=hostile, layout=hostile),
        lambda c: c.update(converter=hostile, table={"name": hostile, "sha256": hostile}, earlier=[{"name": hostile}]),
    ):
        edit(conversions / "glip" / "conversion.json", change)
    edit(conversions / "glip" / "config.json", lambda c: c.update(variant=hostile))
    out = packaged(conversions, "glip", "--repo-id", "a/b.c_d-e")
    bill = bill_of(out)
    assert all(text.isprintable() and len(text) < 1100 for text in texts(bill))
    assert run(conversions, "glip", conversions / "again", "--repo-id", "a/b.c_d-e").exit_code == 0
    assert (conversions / "again" / "bom.cdx.json").read_bytes() == (out / "bom.cdx.json").read_bytes()
    section = card_of(out).split("\n## Bill of materials\n")[1].split("\n## ")[0]
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(section)
    assert not [tag for tag in ("<script", "<a ", "<h") if tag in html]


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def test_an_invalid_one_is_not_written() -> None:
    """What a family says of itself may not fit: told before anything is on the disk."""
    ledger = {"sha256": "a" * 64, "converter": "1", "table": {}, "source": {}, "tensors": {}, "lossless": True}
    facts = Facts({}, None, None, {"model": "m", "variant": "v"}, ledger, None, (), 1, (), ())
    assert bill_of_materials(facts, {"model.safetensors": "b" * 64}).content
    with pytest.raises(ModelError, match=r"bom\.cdx\.json: would not be valid CycloneDX 1\.6: .*no hash"):
        bill_of_materials(facts, {"model.safetensors": "no hash"})


def test_the_library_is_named_where_it_is_missing(conversions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "cyclonedx" else found(name))
    result = run(conversions, "glip", conversions / "out")
    said = "package needs cyclonedx-python-lib, which is not installed: pip install 'converter[package]'"
    assert (result.exit_code, said in result.stderr) == (8, True), result.output
    assert not (conversions / "out").exists()


def test_versions_are_of_the_record_and_not_of_this_machine(conversions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = packaged(conversions, "glip")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    monkeypatch.setattr(recorded, "__version__", "99")
    assert run(conversions, "glip", conversions / "again").exit_code == 0
    old, new = (
        {tool["name"]: tool["version"] for tool in bill_of(out)["metadata"]["tools"]["components"]}
        for out in (before, conversions / "again")
    )
    assert {name for name in new if new[name] != old.get(name)} <= {"converter"}


def test_the_commands_of_the_document_check_it(conversions: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    packaged(conversions, "glip").rename(conversions / "to-publish")
    text = (ROOT / "docs" / "package.md").read_text(encoding="utf-8")
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "jq" in block)

    def typed() -> subprocess.CompletedProcess[str]:
        command = ["bash", "-o", "pipefail", "-e", "-c", script]
        return subprocess.run(command, cwd=conversions, capture_output=True, text=True, check=False)

    done = typed()
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, len(list((conversions / "to-publish").iterdir())) - 2)
    assert "converter:certified true\n" in done.stdout
    (conversions / "to-publish" / "report.html").write_text("other")
    assert typed().returncode == 1
