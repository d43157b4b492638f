"""What is refused before anything is sent, and who may not send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.cli.families import family_of
from converter.errors import CaptureError, ConverterError
from converter.publish.card import mark_unverified
from converter.publish.commit import publish
from tests.support.hub.faults import status
from tests.support.hub.server import HubServer
from tests.support.packaging import edit
from tests.support.publishing import CANARY, REPO, Clock, change_card, files_at, go, is_published, refused


def link_to_blobs(folder: Path) -> None:
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    (blobs / "key").write_text("secret")
    (folder / "LICENSE").symlink_to(blobs / "key")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no certificate": (lambda folder: (folder / "parity.json").unlink(), "converter certify"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no ledger": (lambda folder: (folder / "conversion.json").unlink(), "has no conversion.json. `converter package"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "has no README.md. `converter package CONVERSION OUT`"),
    "a card of other weights": (lambda folder: (folder / "README.md").write_text("# GLIP"), "is not of these weights"),
    "a card that says UNVERIFIED": (
        lambda folder: change_card(folder, "\n> **UNVERIFIED.** Nothing shows"),
        "says UNVERIFIED, but there is parity",
    ),
    "a card that is not text": (lambda folder: (folder / "README.md").write_bytes(b"\xff"), "is not UTF-8 text"),
    "a link": (
        lambda folder: (folder / "LICENSE").symlink_to(Path(__file__).resolve()),
        "LICENSE: linked to files elsewhere",
    ),
    "a link to somebody's blobs": (lambda folder: link_to_blobs(folder), "LICENSE: linked to files elsewhere"),
    "the token": (lambda folder: (folder / "NOTICE").write_text(f"login {CANARY}"), "NOTICE holds the token"),
    "a foreign file": (lambda folder: (folder / "optimizer.pt").touch(), "optimizer.pt"),
    "a hidden file": (lambda folder: (folder / ".env").touch(), ".env"),
    "a folder": (lambda folder: (folder / "logs").mkdir(), "logs"),
    "weights of no index": (
        lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b""),
        "is not of this model",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_not_right_is_refused(what: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    change, expected = WRONG[what]
    change(folder)
    assert expected in refused(lambda: go(folder, clock))
    assert hub.requests == []


def test_weights_that_are_not_the_certified_ones_are_refused(folder: Path, hub: HubServer, clock: Clock) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        go(folder, clock)
    said = str(caught.value)
    assert "differ from what conversion.json says in 1 tensor" in said
    assert hub.requests == []


CONTRADICTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no certificate": ("parity.json", lambda c: c.clear(), "is not a certificate"),
    "a certificate of another tensor": (
        "parity.json", lambda c: c["weights"]["tensors"].update({"head.bias": "0" * 64}), "the certificate says in 1"
    ),
    "a certificate of another hash": ("parity.json", lambda c: c["weights"].update(sha256="0" * 64), "says 000"),
    "a fingerprint of no base64": ("parity.json", lambda c: c.update(fingerprint="!!!!"), "fingerprint is damaged"),
    "a fingerprint of nothing": ("parity.json", lambda c: c.update(fingerprint="AAAA"), "fingerprint is damaged"),
    "no ledger": ("conversion.json", lambda c: c.clear(), "its record 'conversion' is invalid"),
    "a ledger of another tensor": (
        "conversion.json", lambda c: c["tensors"].update({"head.bias": "0" * 64}), "conversion.json says in 1 tensor"
    ),
    "a ledger of another hash": ("conversion.json", lambda c: c.update(sha256="0" * 64), "conversion.json says 000"),
    "no configuration": ("config.json", lambda c: c.clear(), "its record 'config' is invalid"),
    "another architecture": ("config.json", lambda c: c["config"].update(embed_dim=16), "not that of its weights"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_documents_that_are_not_of_the_weights_are_refused(
    what: str, folder: Path, hub: HubServer, clock: Clock
) -> None:
    file, change, expected = CONTRADICTIONS[what]
    edit(folder / file, change)
    with pytest.raises(ConverterError) as caught:
        go(folder, clock)
    assert expected in str(caught.value)
    if file != "parity.json":
        (folder / "parity.json").unlink()
        with pytest.raises(ConverterError):
            go(folder, clock, unverified=True)
    assert hub.requests == []


def test_a_file_that_is_exchanged_between_two_looks_is_refused(folder: Path, hub: HubServer, clock: Clock) -> None:
    weights, other = folder / "model.safetensors", folder.with_name("other")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    said = refused(lambda: go(folder, clock, on_bytes=lambda count: other.exists() and other.replace(weights)))
    assert "model.safetensors changed while it was read" in said
    assert hub.requests == []


def test_a_snapshot_of_the_cache_is_published(folder: Path, hub: HubServer, clock: Clock) -> None:
    """As huggingface_hub lays it out: links into `blobs`, and the Hub's own `.gitattributes`."""
    (folder / ".gitattributes").write_text("*.png filter=lfs\n")
    repository = folder.with_name("models--somebody--glip-small")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    folder.rename(repository / "blobs")
    for path in (repository / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    go(snapshot, clock)
    assert b"*.png" not in hub.content(REPO, ".gitattributes")
    (snapshot / ".gitattributes").unlink()
    assert is_published(hub, snapshot)


def test_a_link_inside_the_folder_is_published(folder: Path, hub: HubServer, clock: Clock) -> None:
    (folder / "LICENSE").write_text("MIT")
    (folder / "NOTICE").symlink_to("LICENSE")
    go(folder, clock)
    assert hub.content(REPO, "NOTICE") == b"MIT"


@pytest.mark.parametrize(
    "says", ["# GLIP\n", "These weights are not unverified at all.\n", "<!-- > **UNVERIFIED.** -->\n"]
)
def test_without_a_certificate_the_card_is_marked(says: str, folder: Path, hub: HubServer, clock: Clock) -> None:
    assert "Leave out --unverified" in refused(lambda: go(folder, clock, unverified=True))
    (folder / "parity.json").unlink()
    (folder / "README.md").write_text(says)
    go(folder, clock, unverified=True)
    assert (folder / "README.md").read_text() == says
    there = hub.content(REPO, "README.md").decode()
    assert there == mark_unverified(says) != says
    assert go(folder, clock, unverified=True).commit is None
    (folder / "README.md").write_text(there)
    assert is_published(hub, folder)
    assert go(folder, clock, unverified=True).commit is None


@pytest.mark.parametrize(
    "name",
    ["glip", "a/b/c", "hf://somebody/x", "somebody/x@main", "../x", "", "a/b--c", "a/b.git", "a/b."],
)
def test_a_name_that_is_none_is_refused(name: str, folder: Path, hub: HubServer) -> None:
    (folder / "config.json").unlink()  # it is the first thing looked at
    assert "Expected org/name" in refused(lambda: publish(folder, name, family_of))


def test_a_public_repository_is_not_taken_for_a_private_one(folder: Path, hub: HubServer, clock: Clock) -> None:
    hub.storage.create(REPO, False, "somebody")
    assert "is public, and was to be published as private" in refused(lambda: go(folder, clock, private=True))
    assert hub.writes == []


def test_a_card_that_the_hub_refuses(folder: Path, hub: HubServer, clock: Clock) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("\n---\n", "\n"))
    said = refused(lambda: go(folder, clock))
    assert "does not end" in said
    assert f"Change what it names, then run: converter publish {folder} {REPO}" in said
    assert set(files_at(hub)) == {".gitattributes"}


STRANGERS: dict[str, tuple[str | None, str]] = {
    "no token": (None, "hf auth login"),
    "an unknown token": ("hf_UnknownTokenOfNobody00", "hf auth login"),
    "a token that may only read": ("hf_ReadOnlyTokenOfSomebody", "may only read"),
    "a token of somebody else": ("hf_TokenOfAStranger0000000", "hf auth login"),
    "a token that is not a header": ("hf_TokenWithAnÄccent000000", "hf auth login"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_who_may_not_write_is_told_so(
    who: str, folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens |= {"hf_ReadOnlyTokenOfSomebody": ("somebody", "read"), "hf_TokenOfAStranger0000000": ("else", "write")}
    token, expected = STRANGERS[who]
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    said = refused(lambda: go(folder, clock))
    assert expected in said
    assert token is None or token not in said
    assert hub.storage.repositories == {}


def test_a_pull_request_is_proposed_where_there_is_something_to_change(
    folder: Path, hub: HubServer, clock: Clock
) -> None:
    hub.fail("create", status(403))
    assert "--create-pr" not in refused(lambda: go(folder, clock))
    hub.storage.create(REPO, True, "somebody")
    hub.fail("preupload", status(403))
    assert "propose it with --create-pr" in refused(lambda: go(folder, clock))
    hub.fail("preupload", status(403))
    assert "propose it" not in refused(lambda: go(folder, clock, create_pr=True))


def test_a_dry_run_without_a_token_does_not_know_what_it_cannot_see(
    folder: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage.create(REPO, True, "somebody")
    monkeypatch.delenv("HF_TOKEN")
    done = go(folder, clock, dry_run=True)
    assert (done.is_new, done.private, done.head) == (None, None, None)
