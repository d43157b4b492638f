"""Signing as an identity, by the real client and a Sigstore on this machine; the public one was never asked here."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from converter.cli import main
from converter.errors import CaptureError
from converter.publish import signature, signing
from converter.publish.signature import Trust
from converter.publish.signing import Signer, make_signature
from tests.support.hub.offline import WAYS
from tests.support.hub.server import HubServer
from tests.support.publishing import REPO, Clock, go
from tests.support.signing import MAIL, Pair, check, edit_bundle, refused, signed
from tests.support.sigstore_standin import ISSUER, SigstoreStandin, answering, token

WORKFLOW = "https://github.com/org/repo/.github/workflows/release.yml@refs/tags/v1"


@pytest.fixture(scope="module")
def sigstore() -> Iterator[SigstoreStandin]:
    with answering(SigstoreStandin()) as running:
        yield running


@pytest.fixture
def config(sigstore: SigstoreStandin, tmp_path: Path) -> Path:
    return sigstore.config(tmp_path / "sigstore.json")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No identity that the machine has, and no public servers' metadata kept from elsewhere."""
    for name in [name for name in os.environ if name.startswith(("ACTIONS_ID_TOKEN", "GITHUB_", "SIGSTORE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def run(*arguments: object, code: int = 0, **options: Any) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)), **options)
    assert done.exit_code == code, done.output
    return str(done.output)


@pytest.mark.parametrize("identity", [MAIL, WORKFLOW])
def test_an_identity_signs_and_is_named(identity: str, model: Path, config: Path) -> None:
    signed(model, Signer(token=token(identity), sigstore=config))
    who = f"{identity}, as {ISSUER} told Sigstore"
    assert check(model, Trust(identity=identity, issuer=ISSUER, sigstore=config)) == (who, [])
    assert check(model, Trust(sigstore=config)) == (who, [])


def test_another_identity_or_issuer_is_refused(model: Path, config: Path) -> None:
    signed(model, Signer(token=token(MAIL), sigstore=config))
    for identity, issuer in (("you@example.org", ISSUER), (MAIL, "https://another.example.org")):
        said = refused(model, Trust(identity=identity, issuer=issuer, sigstore=config))
        assert (
            said
            == f"it says it is by {MAIL}, as {ISSUER} told Sigstore, expected {identity}, as {issuer} told Sigstore"
        )


def test_another_sigstore_vouches_for_nobody_here(model: Path, config: Path, tmp_path: Path) -> None:
    """The same names, and keys of its own."""
    signed(model, Signer(token=token(MAIL), sigstore=config))
    other = SigstoreStandin()
    other.url = "http://127.0.0.1:9"
    said = refused(model, Trust(identity=MAIL, issuer=ISSUER, sigstore=other.config(tmp_path / "other.json")))
    assert said.startswith("its certificate is not of this Sigstore: ")


def entry(bundle: Any) -> Any:
    return bundle["verificationMaterial"]["tlogEntries"][0]


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "the time": (lambda b: entry(b).update(integratedTime=str(int(time.time()) + 60)), "invalid inclusion promise"),
    "a time after the certificate": (
        lambda b: entry(b).update(integratedTime=str(int(time.time()) + 9000)), "is not of this Sigstore"
    ),
    "the entry": (lambda b: entry(b).update(canonicalizedBody="e30="), "invalid root hash"),
    "the promise": (
        lambda b: entry(b)["inclusionPromise"].update(signedEntryTimestamp="AAAA"), "invalid inclusion promise"
    ),
    "no promise": (lambda b: entry(b).pop("inclusionPromise"), "must contain an inclusion promise or signed"),
    "the proof": (lambda b: entry(b)["inclusionProof"].update(treeSize="2"), "inclusion proof has wrong size"),
    "the signature": (
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="MEUCIQ=="), "it is not by its certificate's key"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_part_of_the_bundle_is_refused(what: str, model: Path, config: Path) -> None:
    change, expected = CHANGES[what]
    signed(model, Signer(token=token(MAIL), sigstore=config))
    edit_bundle(model / "model.sig", change)
    assert expected in refused(model, Trust(identity=MAIL, issuer=ISSUER, sigstore=config))


def test_entries_of_the_log_are_not_borrowed(model: Path, config: Path) -> None:
    """Those of another signature by the same identity."""
    signed(model, Signer(token=token(MAIL), sigstore=config))
    borrowed = json.loads((model / "model.sig").read_text())["verificationMaterial"]
    (model / "vocab.txt").write_text("other words")
    signed(model, Signer(token=token(MAIL), sigstore=config))
    edit_bundle(model / "model.sig", lambda b: b.update(verificationMaterial=borrowed))
    assert refused(model, Trust(sigstore=config)) != ""
    borrow = {"tlogEntries": borrowed["tlogEntries"]}
    signed(model, Signer(token=token(MAIL), sigstore=config))
    edit_bundle(model / "model.sig", lambda b: b["verificationMaterial"].update(borrow))
    assert refused(model, Trust(sigstore=config)) != ""


def test_on_the_command_line(folder: Path, config: Path) -> None:
    options = ["--sigstore", "--sigstore-config", config]
    said = run("sign", folder, *options, env={"SIGSTORE_ID_TOKEN": (secret := token(MAIL))})
    assert f"signed: 6 files, by {MAIL}, as {ISSUER} told Sigstore" in said
    assert secret not in said
    asked = ["--require-signature", MAIL, "--signature-issuer", ISSUER, "--sigstore-config", config]
    assert f"signature: by {MAIL}, as {ISSUER} told Sigstore, of 6 files" in run("verify", folder, *asked)
    asked[1] = "you@example.org"
    assert "it says it is by me@example.org" in run("verify", folder, *asked, code=1)
    assert f"by {MAIL}, as {ISSUER} told Sigstore, it says: not checked" in run("verify", folder)


def test_from_the_hub_it_is_said_by_whom(
    folder: Path, config: Path, hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any option: the public Sigstore's trust is known to its client. Here it is the stand-in's."""
    from sigstore.models import ClientTrustConfig

    go(signed(folder, Signer(token=token(MAIL), sigstore=config)), clock)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    said = run("verify", REPO)
    assert "not checked; to check it, say who it is to be by" in said
    assert "Sigstore could not be asked" in said
    ours = ClientTrustConfig.from_json(config.read_text())
    monkeypatch.setattr(ClientTrustConfig, "production", lambda: ours)
    assert f"signature: by {MAIL}, as {ISSUER} told Sigstore, of 6 files" in run("verify", REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set: Sigstore was not asked)" in (said := run("verify", REPO))
    assert "it says: not checked" in said
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    other = SigstoreStandin()
    other.url = "http://127.0.0.1:9"
    other = ClientTrustConfig.from_json(other.config(config).read_text())  # type: ignore[assignment]
    monkeypatch.setattr(ClientTrustConfig, "production", lambda: other)
    said = run("verify", REPO)  # who signed by a Sigstore of their own fails nobody who did not ask
    assert "it says: not checked; to check it, say who it is to be by" in said
    assert "its certificate is not of this Sigstore" in said
    asked = ["--require-signature", MAIL, "--signature-issuer", ISSUER]
    assert "its certificate is not of this Sigstore" in run("verify", REPO, *asked, code=1)
    monkeypatch.setattr(ClientTrustConfig, "production", lambda: ours)
    hub.push(REPO, {"model.sig": _with_another_signature(hub.content(REPO, "model.sig"))})
    assert "it is not by its certificate's key" in run("verify", REPO, code=1)


def _with_another_signature(content: bytes) -> bytes:
    bundle = json.loads(content)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "MEUCIQ=="
    return json.dumps(bundle).encode()


@pytest.mark.parametrize("way", WAYS)
def test_no_network_is_one_sentence(way: str, folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the public servers, whose trust is fetched first: through a proxy that is as each way says."""
    signed(folder, Signer(token=token(MAIL), sigstore=config))
    asked = ["--require-signature", MAIL, "--signature-issuer", ISSUER]
    monkeypatch.setattr(signing, "PATIENCE", 2.0)
    monkeypatch.setattr(signature, "PATIENCE", 2.0)
    with WAYS[way]() as settings:
        monkeypatch.setenv("HTTPS_PROXY", settings.get("HTTPS_PROXY", settings["HF_ENDPOINT"]))
        begun = time.monotonic()
        said = run("verify", folder, *asked, code=8)
        assert said.startswith("error: Sigstore could not be asked, so no signature was written or checked: ")
        said = run("sign", folder, "--sigstore", "--force", "--identity-token", token(MAIL), code=8)
        assert said.startswith("error: Sigstore could not be asked, so no signature was written or checked: ")
        assert time.monotonic() - begun < 20
    assert said.count("\n") == 1


def test_servers_that_never_answer_are_not_waited_for(
    model: Path, config: Path, sigstore: SigstoreStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "PATIENCE", 1.0)
    sigstore.silent.set()
    try:
        with pytest.raises(CaptureError, match=r"could not be asked, .*: no answer within 1 seconds"):
            make_signature(model, Signer(token=token(MAIL), sigstore=config))
    finally:
        sigstore.silent.clear()


def test_nobody_to_sign_as_is_told(model: Path, config: Path) -> None:
    with pytest.raises(CaptureError, match="no identity to sign with by Sigstore: no token is given"):
        make_signature(model, Signer(sigstore=config))


@pytest.mark.parametrize("wrong", ["nonsense", token(MAIL, lasts=-600)])
def test_a_token_that_is_none_is_told_and_not_shown(wrong: str, model: Path, config: Path) -> None:
    with pytest.raises(CaptureError, match="could not be asked") as caught:
        make_signature(model, Signer(token=wrong, sigstore=config))
    assert "Identity token is malformed" in str(caught.value)
    assert wrong not in str(caught.value)


def test_a_configuration_that_is_none_is_told(model: Path, config: Path, keys: Pair) -> None:
    signed(model, Signer(token=token(MAIL), sigstore=config))
    for path in (model / "vocab.txt", model / "none.json", keys.public):
        with pytest.raises(CaptureError, match="could not be asked"):
            check(model, Trust(sigstore=path))
