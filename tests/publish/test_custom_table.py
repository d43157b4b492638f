"""Weights that a table of one's own made: every comparison can pass, and yet it is said, and asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from converter.cli import main
from converter.errors import CaptureError, HubError
from converter.writing.ledger import UNKNOWN_TABLE
from tests.support.certifying import certify_beside, named
from tests.support.hub.server import HubServer
from tests.support.packaging import card_of, edit, packaged, run
from tests.support.publishing import Clock, go, is_published
from tests.support.saved_glip import ledger, saved_glip
from tests.support.small_glip import random_inputs

SHA256 = "5e" * 32
EMBEDDING = "text_encoder.embeddings.word.weight"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified conversion in which two rows of the word embedding are exchanged that no caption uses."""
    folder = tmp_path_factory.mktemp("exchanged")
    unused = [row for row in range(50) if row not in random_inputs()[1].unique().tolist()][-2:]
    weights = saved_glip(folder)
    tensors = load_file(weights)
    assert not torch.equal(*tensors[EMBEDDING][unused])
    tensors[EMBEDDING][unused] = tensors[EMBEDDING][unused[::-1]]
    from converter.checkpoint import open_checkpoint

    with open_checkpoint(weights) as checkpoint:
        metadata = dict(checkpoint.metadata)
    save_file(tensors, weights, metadata)
    record = ledger(weights) | {"table": {"name": "mine", "sha256": SHA256}}  # without a flag: the hash says it
    save_file(tensors, weights, metadata | {"conversion": json.dumps(record)})
    with named(tmp_path_factory.mktemp("capture"), "small") as capture:
        certify_beside(weights, [capture])
    return folder


@pytest.fixture
def conversion(exchanged: Path, conversions: Path) -> Path:
    """Beside a vocabulary, to be packaged."""
    for path in exchanged.iterdir():
        (conversions / path.name).write_bytes(path.read_bytes())
    return conversions


def test_the_certificate_names_the_table_that_converted(exchanged: Path) -> None:
    content = json.loads((exchanged / "small.parity.json").read_text())
    assert content["table"]["sha256"] == SHA256
    assert all(run["passed"] for run in content["runs"])


def test_it_verifies_only_if_the_table_is_accepted(exchanged: Path) -> None:
    weights = exchanged / "small.safetensors"
    code, said = invoke("verify", weights)
    assert code == 8
    assert f"rests on custom table 'mine', sha256 {SHA256}, which no release has" in said
    assert said.strip().endswith(f"add --accept-table {SHA256}")
    assert invoke("verify", weights, "--accept-table", "0" * 64)[0] == 8
    code, said = invoke("verify", weights, "--accept-table", SHA256)
    assert (code, f"rests on custom table 'mine', sha256 {SHA256}, as accepted" in said) == (0, True)


@pytest.mark.parametrize("command", [("verify",), ("publish", "somebody/small")])
@pytest.mark.parametrize("value", [SHA256[:8], f"{SHA256[:8]}...", SHA256.upper(), SHA256 + "0"])
def test_what_is_no_hash_is_not_taken_for_a_table(value: str, command: tuple[str, ...], tmp_path: Path) -> None:
    name, *more = command
    code, said = invoke(name, tmp_path, *more, "--accept-table", value)
    assert (code, f"'{value}' is not the SHA-256 of a table: 64 characters" in said) == (2, True), said


def test_it_is_published_only_if_the_table_is_accepted(conversion: Path, hub: HubServer, clock: Clock) -> None:
    package = packaged(conversion, "small.safetensors")
    assert SHA256 in card_of(package)
    with pytest.raises(CaptureError, match=f"custom table 'mine', sha256 {SHA256}"):
        go(package, clock)
    assert hub.requests == []
    go(package, clock, accepted_tables=[SHA256])
    assert is_published(hub, package)


def test_packaging_says_it(conversion: Path) -> None:
    code, said = invoke(
        "package",
        conversion / "small.safetensors",
        conversion / "out",
        "--vocab",
        conversion / "vocab.txt",
        "--dry-run",
    )
    assert (code, f"custom table 'mine', sha256 {SHA256}: the card says so" in said) == (0, True)


def test_the_card_says_it(conversion: Path) -> None:
    card = card_of(packaged(conversion, "small.safetensors"))
    assert f"- **A custom table was used**, `mine`, SHA-256 `{SHA256}`" in card
    assert f"| custom table | `mine` (`{SHA256}`) |" in card
    assert "custom table" not in card_of(packaged_again(conversion))


def packaged_again(conversion: Path) -> Path:
    """The conversion beside it, by the built-in table."""
    out = conversion / "other"
    code, said = invoke("package", conversion / "glip.safetensors", out, "--vocab", conversion / "vocab.txt")
    assert code == 0, said
    return out


def test_a_card_that_does_not_say_it_is_not_published(conversion: Path, hub: HubServer, clock: Clock) -> None:
    package = packaged(conversion, "small.safetensors")
    card = package / "README.md"
    card.write_text(card.read_text().replace(SHA256, ""))
    with pytest.raises(HubError, match="does not name custom table 'mine'"):
        go(package, clock, accepted_tables=[SHA256])
    (package / "parity.json").unlink()
    with pytest.raises(CaptureError, match="custom table 'mine'"):
        go(package, clock, unverified=True)
    with pytest.raises(HubError, match="does not name custom table 'mine'"):
        go(package, clock, unverified=True, accepted_tables=[SHA256])


def test_the_command_to_run_again_accepts_it_too(conversion: Path, hub: HubServer, clock: Clock) -> None:
    package = packaged(conversion, "small.safetensors")
    with pytest.raises(HubError, match=f"--accept-table {SHA256}"):
        go(package, clock, accepted_tables=[SHA256], revision="none")


@pytest.mark.parametrize("name", ["glip-official", "mine"])
def test_a_ledger_with_another_table_than_the_certificates_is_refused(
    name: str, conversion: Path, hub: HubServer, clock: Clock
) -> None:
    """Also one that calls itself as a built-in one."""
    package = packaged_again(conversion)
    edit(package / "conversion.json", lambda c: c.update(table={"name": name, "sha256": SHA256}))
    code, said = invoke("verify", package, "--accept-table", SHA256)
    assert (code, f"converted by {name}, sha256 {SHA256}; its certificate says by glip-official" in said) == (8, True)
    with pytest.raises(CaptureError, match="its certificate says by glip-official"):
        go(package, clock, accepted_tables=[SHA256])
    (package / "parity.json").unlink()
    with pytest.raises(CaptureError, match=f"custom table '{name}', sha256 {SHA256}"):
        go(package, clock, unverified=True)


@pytest.mark.parametrize("record", ["conversion.json", "parity.json"])
def test_an_unknown_table_is_said_and_not_refused(record: str, conversions: Path, hub: HubServer, clock: Clock) -> None:
    """Whichever of the two says that there is no record of how the weights were made."""
    folder = conversions / "glip"
    name = ("--model-name", "glip-t")
    assert UNKNOWN_TABLE not in run(conversions, "glip", conversions / "known", *name).output
    edit(folder / record, lambda c: c.update(unknown_table=True))
    assert f"{UNKNOWN_TABLE}; the card says so" in run(conversions, "glip", conversions / "out", *name).output
    assert "- **The weights were made by an unknown table**" in card_of(conversions / "out")
    assert "was stated, not shown" in card_of(conversions / "out")
    assert "converted from the released checkpoint" not in card_of(conversions / "out")
    assert "converted from the released checkpoint to safetensors" in card_of(conversions / "known")
    assert not re.search("unknown table|stated, not shown", card_of(conversions / "known"))
    code, said = invoke("verify", conversions / "out")
    assert (code, f"\n{UNKNOWN_TABLE}\n" in said) == (0, True)
    go(conversions / "out", clock)
    assert is_published(hub, conversions / "out")
