"""A bill of materials is of the folder that it lies in: `publish` and `verify` hold it against what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter import errors
from converter.cli import main
from converter.hub.resolve import resolve
from tests.support.hub.server import HubServer
from tests.support.packaging import card_of, edit, packaged
from tests.support.publishing import Clock, go, is_published

CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "of other weights": (
        lambda out: edit(out / "bom.cdx.json", lambda bill: claim(bill, "d" * 64)), f"of weights with sha256 {'d' * 64}"
    ),
    "a file that changed": (
        lambda out: (out / "report.html").write_text("<p>other</p>"), "report.html: other content than listed in bom"
    ),
    "a file that is not listed any more": (
        lambda out: edit(out / "bom.cdx.json", lambda bill: leave_out(bill, "vocab.txt")),
        "vocab.txt: not listed in bom.cdx.json",
    ),
    "a file that is gone": (lambda out: (out / "report.html").unlink(), "report.html: not here, but listed in bom"),
    "no bill": (lambda out: (out / "bom.cdx.json").write_text("[]"), "bom.cdx.json: is not a bill of materials"),
    "nothing of a bill": (
        lambda out: edit(out / "bom.cdx.json", lambda bill: bill.pop("components")), "is not a bill of materials of a"
    ),
    "a hash that is none": (
        lambda out: edit(out / "bom.cdx.json", lambda bill: claim(bill, "x")), "states a hash that is no SHA-256"
    ),
    "one that the card does not name": (
        lambda out: edit(out / "bom.cdx.json", lambda bill: bill.update(version=2)), "does not name bom.cdx.json"
    ),
    "none where the card names one": (
        lambda out: (out / "bom.cdx.json").unlink(), "names a bill of materials, and there is no bom.cdx.json"
    ),
}  # fmt: skip


def claim(bill: dict[str, Any], sha256: str) -> None:
    """Have it be of the weights with that hash of all tensors."""
    for entry in bill["metadata"]["component"]["properties"]:
        if entry["name"] == "converter:sha256":
            entry["value"] = sha256


def leave_out(bill: dict[str, Any], name: str) -> None:
    bill["components"] = [part for part in bill["components"] if part["name"] != name]


@pytest.mark.parametrize("what", CHANGES)
def test_publish_refuses_it(what: str, conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions, "glip")
    change, said = CHANGES[what]
    change(out)
    with pytest.raises(errors.ConverterError) as caught:
        go(out, clock)
    assert said in str(caught.value)
    assert hub.requests == []


def test_it_is_published_and_comes_back(conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions, "glip")
    (out / "LICENSE").write_text("MIT")  # texts of law may be added
    go(out, clock)
    assert is_published(hub, out)
    found = resolve("somebody/glip-small", cache_dir=conversions / "cache")
    assert (found.path / "bom.cdx.json").read_bytes() == (out / "bom.cdx.json").read_bytes()


def test_a_folder_of_an_earlier_version_is_published_without(conversions: Path, hub: HubServer, clock: Clock) -> None:
    out = packaged(conversions, "glip")
    (out / "bom.cdx.json").unlink()
    head, _, rest = card_of(out).partition("## Bill of materials")
    (out / "README.md").write_text(head + rest[rest.index("\n## ") :], encoding="utf-8")
    go(out, clock)
    assert is_published(hub, out)


@pytest.mark.parametrize("is_certified", [True, False])
def test_verify_notices_one_of_other_weights(is_certified: bool, conversions: Path) -> None:
    if not is_certified:
        (conversions / "glip" / "parity.json").unlink()
    out = packaged(conversions, "glip")
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0
    CHANGES["of other weights"][0](out)
    result = CliRunner().invoke(main, ["verify", str(out)])
    assert (result.exit_code, f"bom.cdx.json: of weights with sha256 {'d' * 64}" in result.stdout) == (1, True)
    (out / "bom.cdx.json").write_text("[]")
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 8


@pytest.mark.parametrize("is_certified", [True, False])
def test_verify_takes_that_of_another_tool_for_what_it_is(is_certified: bool, conversions: Path) -> None:
    """Beside what `convert` wrote, which says that it wrote none."""
    if not is_certified:
        (conversions / "glip" / "parity.json").unlink()
    (conversions / "glip" / "bom.cdx.json").write_text('{"bomFormat": "CycloneDX", "specVersion": "1.6"}')
    assert CliRunner().invoke(main, ["verify", str(conversions / "glip")]).exit_code == 0
