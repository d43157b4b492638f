"""A package with its signature: published whole, verified from the Hub, and what was exchanged there is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter.cli import main
from tests.support.hub.server import HubServer
from tests.support.packaging import packaged
from tests.support.publishing import REPO, Clock, files_at, go, is_published, refused
from tests.support.signing import Pair, change_byte, signed


def verify(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["verify", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def there(folder: Path, keys: Pair, hub: HubServer, clock: Clock) -> Path:
    """A signed folder, as it was published."""
    go(signed(folder, keys.signer), clock)
    return folder


def test_the_bundle_goes_with_the_folder_in_one_commit(there: Path, hub: HubServer, keys: Pair) -> None:
    assert is_published(hub, there)
    assert "model.sig" in files_at(hub)
    assert hub.count("commit") == 1


def test_what_is_on_the_hub_is_verified_with_all_that_was_signed(there: Path, keys: Pair) -> None:
    """In the cache all files are links, and card and report are there for no other reason."""
    document = verify(REPO, "--signature-key", keys.public)
    assert document["verdict"] == document["signature"]["verdict"] == "pass"
    assert {"README.md", "report.html", "model.sig"} <= document["origin"]["files"].keys()
    assert all(
        (Path(document["signature"]["bundle"]).parent / name).is_symlink() for name in document["origin"]["files"]
    )
    assert verify(REPO)["signature"]["verdict"] == "not checked"


def test_without_the_hub_the_cache_is_enough(there: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(REPO, "--signature-key", keys.public)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert verify(REPO, "--signature-key", keys.public)["signature"]["verdict"] == "pass"


def test_what_is_signed_and_not_in_the_cache_is_told(there: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that was downloaded to be used, which needs no card."""
    from converter.hub.resolve import resolve

    resolve(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = verify(REPO, "--signature-key", keys.public, code=9)["error"]["message"]
    assert f"{REPO}: README.md, report.html belongs to it and is not in the cache" in said


@pytest.mark.parametrize("name", ["model.safetensors", "parity.json", "README.md"])
def test_what_was_exchanged_on_the_hub_is_named(name: str, there: Path, hub: HubServer, keys: Pair) -> None:
    content = bytearray(hub.content(REPO, name))
    content[-2] ^= 1
    hub.push(REPO, {name: bytes(content)})
    for options in (["--signature-key", keys.public], []):
        assert verify(REPO, *options, code=1)["problems"] == [f"{name}: other content than signed"]


def test_what_was_added_on_the_hub_is_not_signed(there: Path, hub: HubServer, keys: Pair) -> None:
    """Whether it would be used or not: it is not downloaded to be told."""
    hub.push(REPO, {"pytorch_model.bin": b"pickle", "added_tokens.json": b"{}", "code/model.py": b"import os"})
    document = verify(REPO, "--signature-key", keys.public, code=1)
    unsigned = ["added_tokens.json", "code/model.py", "pytorch_model.bin"]
    assert document["problems"] == [f"{name}: not signed" for name in unsigned]
    assert "pytorch_model.bin" not in document["origin"]["files"]


def test_a_signature_that_was_taken_away_is_missed_by_who_asks(there: Path, hub: HubServer, keys: Pair) -> None:
    hub.push(REPO, {"model.sig": None})
    said = verify(REPO, "--signature-key", keys.public, code=8)["error"]["message"]
    assert said == f"{REPO}: is not signed: it has no model.sig, and a signature was asked for."
    assert verify(REPO)["signature"] is None


def test_a_stale_signature_is_not_published(folder: Path, keys: Pair, hub: HubServer, clock: Clock) -> None:
    signed(folder, keys.signer)
    (folder / "report.html").write_text("<p>another</p>")
    (folder / "NOTICE").write_text("new")
    said = refused(lambda: go(folder, clock))
    assert "model.sig is not the signature of what would be published. Sign it again, or remove model.sig" in said
    assert said.splitlines()[1:] == ["  - NOTICE: not signed", "  - report.html: other content than signed"]
    assert hub.requests == []


def test_what_publishing_would_change_is_not_signed_by_it(
    folder: Path, keys: Pair, hub: HubServer, clock: Clock
) -> None:
    """The card of a model without a certificate is marked on its way."""
    (folder / "parity.json").unlink()
    signed(folder, keys.signer)
    assert "README.md: other content than signed" in refused(lambda: go(folder, clock, unverified=True))
    assert hub.requests == []


def test_a_repository_with_other_files_gets_no_signature(there: Path, hub: HubServer, clock: Clock, keys: Pair) -> None:
    """It would be one that `verify` refuses."""
    hub.push(REPO, {"notes.md": b"", "pytorch_model.bin": b""})
    commit = hub.repository(REPO).head.id
    for dry_run in (True, False):
        said = refused(lambda dry=dry_run: go(there, clock, dry_run=dry))  # type: ignore[misc]
        assert "holds notes.md, pytorch_model.bin, of which model.sig is not" in said
    assert hub.repository(REPO).head.id == commit


def test_a_signature_goes_with_what_it_was_of(there: Path, hub: HubServer, clock: Clock) -> None:
    """A folder that is not signed any more takes it away."""
    (there / "model.sig").unlink()
    (there / "report.html").write_text("<p>another</p>")
    assert go(there, clock).deleted == ("model.sig",)
    assert "model.sig" not in files_at(hub)


def test_a_package_is_signed_with_its_tokenizer(conversions: Path, keys: Pair, hub: HubServer, clock: Clock) -> None:
    """From `package` by `sign` and `publish` to `verify`, and any byte of any file of it."""
    package = packaged(conversions, "glip.safetensors")
    done = CliRunner().invoke(main, ["sign", str(package), "--key", str(keys.private)])
    assert done.exit_code == 0, done.output
    go(package, clock)
    assert verify(REPO, "--signature-key", keys.public)["verdict"] == "pass"
    for path in sorted(package.iterdir()):
        if path.name != "model.sig":
            change_byte(path)
            document = verify(package, "--signature-key", keys.public, code=1)
            assert document["problems"] == [f"{path.name}: other content than signed"]
            change_byte(path)
    assert {"vocab.txt", "tokenizer.json", "tokenizer_config.json"} < {path.name for path in package.iterdir()}
    assert verify(package, "--signature-key", keys.public)["verdict"] == "pass"
