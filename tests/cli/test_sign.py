"""`converter sign`, and what `verify` says of a signature."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.x509.oid import ExtendedKeyUsageOID

from converter.cli import main
from converter.publish.card import mark_unverified
from tests.support.signing import MAIL, Pair, authority, change_byte, pair


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(folder: Path, keys: Pair) -> Path:
    run("sign", folder, "--key", keys.private)
    return folder


def run(*arguments: object, code: int = 0, **options: Any) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)), **options)
    assert done.exit_code == code, done.output
    return str(done.output)


def verify(folder: Path, *arguments: object, code: int = 0) -> Any:
    """What `verify --json` prints."""
    return json.loads(run("verify", folder, *arguments, "--json", code=code))


def test_what_was_signed_and_by_whom_is_said(folder: Path, keys: Pair) -> None:
    said = run("sign", folder, "--key", keys.private)
    assert "  model.safetensors\n" in said
    assert "signed: 6 files, by a key with hash " in said
    assert f"written: {folder / 'model.sig'}" in said
    hidden = {path.name for path in folder.iterdir()} - {"model.sig"}
    document = json.loads(run("sign", folder, "--key", keys.private, "--force", "--json"))
    assert {file["name"] for file in document["files"]} == hidden
    assert (document["written"], document["method"]) == (True, "key")


def test_verify_says_by_whom(signed: Path, keys: Pair) -> None:
    said = run("verify", signed, "--signature-key", keys.public)
    first, *_, last = said.splitlines()
    assert first.startswith("signature: by the key in signer.pub, SHA-256 ")
    assert first.endswith(", of 6 files")
    assert last == "pass"
    document = verify(signed, "--signature-key", keys.public)
    assert document["verdict"] == document["signature"]["verdict"] == "pass"
    assert document["signature"]["signer"] in said


def test_without_trust_nobody_is_named_as_the_signer(signed: Path) -> None:
    said = run("verify", signed)
    assert "signature: of 6 files by a key with hash " in said
    assert "it says: not checked; to check it, give the signer's public key, --signature-key PEM" in said
    document = verify(signed)
    assert document["verdict"] == "pass"
    assert (document["signature"]["verdict"], document["signature"]["signer"]) == ("not checked", None)


def test_a_folder_without_a_signature_has_none(folder: Path) -> None:
    assert verify(folder)["signature"] is None
    assert "signature" not in run("verify", folder)


@pytest.mark.parametrize("name", ["model.safetensors", "parity.json", "config.json", "conversion.json", "README.md"])
@pytest.mark.parametrize("asks", [True, False])
def test_a_changed_byte_is_named(name: str, asks: bool, signed: Path, keys: Pair, tmp_path: Path) -> None:
    """Whoever is trusted, and where nobody is: no signature can be of other files than it names."""
    change_byte(signed / name)
    options = ["--signature-key", keys.public] if asks else []
    said = run("verify", signed, *options, "--summary", tmp_path / "summary.md", code=1)
    assert f"\n  {name}: other content than signed\n" in said
    assert said.endswith("\nFAIL\n")
    assert "FAIL" in (tmp_path / "summary.md").read_text().splitlines()[0]
    document = verify(signed, *options, code=1)
    assert document["problems"] == document["signature"]["problems"] == [f"{name}: other content than signed"]


def test_a_changed_bundle_is_named(signed: Path, keys: Pair) -> None:
    change_byte(signed / "model.sig", 0)
    assert f"error: {signed / 'model.sig'}: is not a signature that can be read: " in run("verify", signed, code=8)
    change_byte(signed / "model.sig", 0)
    document = json.loads((signed / "model.sig").read_text())
    entry = document["dsseEnvelope"]["signatures"][0]
    entry["sig"] = entry["sig"][:20] + ("A" if entry["sig"][20] != "A" else "B") + entry["sig"][21:]
    (signed / "model.sig").write_text(json.dumps(document))
    said = run("verify", signed, "--signature-key", keys.public, code=1)
    assert "  model.sig: it is not by this key over what it states: model.sig was changed" in said


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    document = verify(signed, "--signature-key", pair(tmp_path).public, code=1)
    assert document["problems"][0].startswith("model.sig: it was made with another key, whose hash is ")
    assert document["signature"]["signer"] is None


@pytest.mark.parametrize(
    "options", [["--signature-key", "KEY"], ["--require-signature", MAIL, "--signature-issuer", "x"]]
)
def test_a_signature_that_is_asked_for_has_to_be_there(options: list[str], folder: Path, keys: Pair) -> None:
    options = [str(keys.public) if option == "KEY" else option for option in options]
    said = run("verify", folder, *options, code=8)
    assert f"error: {folder}: is not signed: it has no model.sig, and a signature was asked for." in said
    said = run("verify", folder / "model.safetensors", *options, code=8)
    assert "is one file; a signature is of a folder" in said


def test_a_certificate_elsewhere_is_of_no_signature(signed: Path, keys: Pair) -> None:
    options = ["--certificate", signed / "parity.json", "--signature-key", keys.public]
    assert "--certificate: a signature is of the certificate beside the weights" in run(
        "verify", signed, *options, code=2
    )


def test_one_file_of_a_signed_folder_says_so(signed: Path) -> None:
    said = run("verify", signed / "model.safetensors")
    assert f"of its folder there is a signature, which was not looked at: converter verify {signed}" in said


def test_a_certificate_names_the_signer(folder: Path, tmp_path: Path) -> None:
    made = authority(tmp_path)
    given = ["--key", made.signer.key, "--certificate", made.signer.certificate, "--chain", made.below]
    assert f"signed: 6 files, by {MAIL}" in run("sign", folder, *given)
    assert f"signature: by {MAIL}, as root.crt certified" in run("verify", folder, "--signature-certificate", made.root)
    trusting = ["--signature-certificate", made.root, "--require-signature"]
    assert verify(folder, *trusting, MAIL)["signature"]["signer"] == f"{MAIL}, as root.crt certified"
    document = verify(folder, *trusting, "you@example.org", code=1)
    assert document["problems"] == [f"model.sig: it is by {MAIL}, expected you@example.org"]
    assert f"{MAIL}, it says: not checked" in run("verify", folder)


def test_a_bundle_may_lie_elsewhere(signed: Path, keys: Pair, tmp_path: Path) -> None:
    (signed / "model.sig").rename(tmp_path / "elsewhere.sig")
    options = ["--signature-key", keys.public, "--signature", tmp_path / "elsewhere.sig"]
    assert verify(signed, *options)["signature"]["verdict"] == "pass"
    said = run("verify", signed, "--signature", tmp_path / "none.sig", code=8)
    assert "none.sig: cannot be read: No such file or directory" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--require-signature me", "it needs --signature-issuer URL"),
        ("--signature-issuer https://example.org", "give --require-signature IDENTITY"),
        ("--signature-key a.pub --require-signature me", "--signature-key says whose signature it is"),
        ("--signature-certificate a.crt --signature-issuer x", "is of a signature without Sigstore"),
    ],
)
def test_what_contradicts_itself_is_a_wrong_command_line(options: str, said: str, folder: Path) -> None:
    assert said in run("verify", folder, *options.split(), code=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "say with what to sign: --key PEM, or --sigstore"),
        ("--key a.pem --sigstore", "say with what to sign"),
        ("--sigstore --certificate a.crt", "belong to --key"),
        ("--key a.pem --sigstore-config a.json", "belongs to --sigstore"),
        ("--key a.pem --chain a.crt", "--chain belongs to --certificate"),
        ("--key a.pem --password-env NOT_THERE", "there is no environment variable NOT_THERE"),
        ("--key a.pem --certificate a.crt --password-env HOME", "decrypt the key"),
    ],
)
def test_what_cannot_be_signed_with_is_a_wrong_command_line(options: str, said: str, folder: Path) -> None:
    assert said in run("sign", folder, *options.split(), code=2)
    assert not (folder / "model.sig").exists()


def test_an_encrypted_key_needs_its_password(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = pair(tmp_path, password="secret").private
    assert "is encrypted: give --password-env NAME" in run("sign", folder, "--key", key, code=2)
    monkeypatch.setenv("PASSWORD", "wrong")
    said = run("sign", folder, "--key", key, "--password-env", "PASSWORD", code=8)
    assert f"error: {key}: is not as needed: " in said
    monkeypatch.setenv("PASSWORD", "secret")
    assert "written: " in run("sign", folder, "--key", key, "--password-env", "PASSWORD")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"days": (-30, -1)},
            "own.crt: nobody could verify what is signed with it: the certificate of CN=me expired on ",
        ),
        ({"days": (1, 30)}, "the certificate of CN=me is valid from "),
        ({"signs": False}, "it has neither of the usages digitalSignature and codeSigning"),
        ({"extended": [ExtendedKeyUsageOID.SERVER_AUTH]}, "it is for other things only"),
    ],
)
def test_nothing_is_signed_that_nobody_could_verify(
    options: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    made = authority(tmp_path, **options).signer
    given = ["--key", made.key, "--certificate", made.certificate, "--chain", *made.chain]
    for dry in ([], ["--dry-run"]):
        assert said in run("sign", folder, *given, *dry, code=8)
    assert not (folder / "model.sig").exists()


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "other weights": (lambda f: change_byte(f / "model.safetensors", -1), "differ from what conversion.json says in 1"),
    "another file": (lambda f: (f / "notes.txt").touch(), "holds what is not published: notes.txt"),
    "no certificate": (lambda f: (f / "parity.json").unlink(), "has no parity.json, so nothing shows that these"),
    "no ledger": (lambda f: (f / "conversion.json").unlink(), "has no conversion.json"),
    "a link": (lambda f: (f / "LICENSE").symlink_to("/etc/hostname"), "LICENSE: linked to files elsewhere"),
}


@pytest.mark.parametrize("what", WRONG)
def test_nobody_signs_what_does_not_hold(what: str, folder: Path, keys: Pair) -> None:
    change, expected = WRONG[what]
    change(folder)
    for dry in ([], ["--dry-run"]):
        assert expected in run("sign", folder, "--key", keys.private, *dry, code=8)
    assert not (folder / "model.sig").exists()


def test_a_dry_run_writes_nothing(folder: Path, keys: Pair) -> None:
    assert "Expected a private key" in run("sign", folder, "--key", keys.public, "--dry-run", code=8)
    assert "dry run: 6 files would be signed; nothing was written" in run(
        "sign", folder, "--key", keys.private, "--dry-run"
    )
    assert not (folder / "model.sig").exists()


def test_a_signature_is_replaced_only_if_that_is_said(signed: Path, keys: Pair, tmp_path: Path) -> None:
    before = (signed / "model.sig").read_bytes()
    assert "model.sig exists; --force replaces it" in run("sign", signed, "--key", keys.private, code=6)
    assert (signed / "model.sig").read_bytes() == before
    other = pair(tmp_path)
    run("sign", signed, "--key", other.private, "--force")
    assert verify(signed, "--signature-key", other.public)["signature"]["verdict"] == "pass"


def test_without_a_certificate_it_has_to_be_said(folder: Path, keys: Pair) -> None:
    """And the card has to say UNVERIFIED already: `publish` would write it into what is signed."""
    (folder / "parity.json").unlink()
    said = run("sign", folder, "--key", keys.private, "--unverified", code=8)
    assert "README.md does not say UNVERIFIED, as it will when it is published" in said
    card = folder / "README.md"
    card.write_text(mark_unverified(card.read_text()))
    run("sign", folder, "--key", keys.private, "--unverified")
    document = verify(folder, "--signature-key", keys.public)
    assert (document["verdict"], document["signature"]["verdict"]) == ("as recorded", "pass")
    assert "\nno certificate: " in (said := run("verify", folder, "--signature-key", keys.public))
    assert said.startswith("signature: by the key in signer.pub")


def test_a_bundle_of_another_model_is_refused(signed: Path, keys: Pair, tmp_path: Path) -> None:
    other = Path(shutil.copytree(signed, tmp_path / "other"))
    for name in ("model.safetensors", "conversion.json"):
        change_byte(other / name)
    assert "  model.sig: is of another model, which was called 'glip-small'" in run("verify", other, code=1)


def test_without_the_package_it_is_said_what_to_install(
    signed: Path, keys: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature that nobody asked for fails nothing; one that is asked for does, and so does signing."""
    for module in ("model_signing", "OpenSSL", "cryptography"):
        monkeypatch.setitem(sys.modules, module, None)
    how = "which are not installed: pip install 'converter[sign]'"
    assert how in verify(signed)["signature"]["unchecked"]
    for arguments in (["verify", signed, "--signature-key", keys.public], ["sign", signed, "--key", keys.private]):
        assert how in run(*arguments, code=8)
