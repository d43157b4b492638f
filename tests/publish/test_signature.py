"""Whether a signature holds: what was changed is named, and who is not trusted is refused, in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from converter.errors import CaptureError
from converter.publish.bundle import bundle_beside
from converter.publish.signature import Trust, check_signature, claimed
from converter.publish.signing import Signer, make_signature
from tests.support.signing import (
    MAIL,
    PEM,
    PKCS8,
    Authority,
    Pair,
    authority,
    certificate,
    change_byte,
    check,
    edit_bundle,
    pair,
    refused,
    signed,
)


@pytest.fixture(scope="module")
def certified_by(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


# With a key


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_key_signs_and_its_public_half_verifies(curve: Any, model: Path, tmp_path: Path) -> None:
    keys = pair(tmp_path, curve=curve)
    who, problems = check(signed(model, keys.signer), Trust(key=keys.public))
    assert problems == []
    assert who is not None
    assert who.startswith("the key in signer.pub, SHA-256 ")


def test_the_own_tool_of_the_library_verifies_it_too(keys: Pair, model: Path) -> None:
    from model_signing import verifying

    signed(model, keys.signer)
    config = verifying.Config().use_elliptic_key_verifier(public_key=keys.public)  # type: ignore[no-untyped-call]
    config.verify(model, model / "model.sig")
    change_byte(model / "vocab.txt")
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        config.verify(model, model / "model.sig")


def test_what_the_library_signed_itself_is_verified(keys: Pair, model: Path) -> None:
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys.private)  # type: ignore[no-untyped-call]
    ignoring = hashing.Config().set_ignored_paths(paths=["model.sig"])  # type: ignore[no-untyped-call]
    config.set_hashing_config(ignoring).sign(model, model / "model.sig")
    assert check(model, Trust(key=keys.public))[1] == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt", "parity.json", "README.md"])
@pytest.mark.parametrize("position", [0, 7, -1])
def test_a_changed_byte_is_named(name: str, position: int, keys: Pair, model: Path) -> None:
    signed(model, keys.signer)
    change_byte(model / name, position)
    assert refused(model, Trust(key=keys.public)) == f"{name}: other content than signed"


def test_any_changed_byte_of_the_bundle_is_noticed(keys: Pair, model: Path) -> None:
    """Each leaves no bundle, or one that names other files, or one that does not hold."""
    path = signed(model, keys.signer) / "model.sig"
    before = path.read_bytes()
    for position in range(0, len(before), 11):
        change_byte(path, position)
        try:
            who, _ = check(model, Trust(key=keys.public))
        except CaptureError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            who = None
        assert who is None, before[position - 20 : position + 20]
        path.write_bytes(before)


def test_what_is_added_renamed_or_missing_is_named(keys: Pair, model: Path) -> None:
    signed(model, keys.signer)
    (model / "deep").mkdir()
    (model / "deep" / "tokenizer.json").write_text("{}")
    (model / ".hidden").touch()
    (model / "vocab.txt").rename(model / "words.txt")
    assert refused(model, Trust(key=keys.public)).splitlines() == [
        "vocab.txt: signed, and not here",
        ".hidden: not signed",
        "deep/tokenizer.json: not signed",
        "words.txt: not signed",
    ]


def test_what_git_keeps_is_not_of_the_model(keys: Pair, model: Path) -> None:
    """A clone of a repository of the Hub is verified."""
    signed(model, keys.signer)
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (model / ".gitattributes").touch()
    assert check(model, Trust(key=keys.public))[1] == []


def test_a_link_out_of_the_folder_is_refused_whatever_is_there(keys: Pair, model: Path, tmp_path: Path) -> None:
    signed(model, keys.signer)
    (model / "vocab.txt").rename(tmp_path / "vocab.txt")
    (model / "vocab.txt").symlink_to(tmp_path / "vocab.txt")
    assert "vocab.txt: linked to a file elsewhere, and not signed" in refused(model, Trust(key=keys.public))
    (model / "vocab.txt").unlink()
    shutil.copy(tmp_path / "vocab.txt", model)
    (model / "more").symlink_to(tmp_path, target_is_directory=True)
    assert refused(model, Trust(key=keys.public)) == "more: is neither a file nor a folder, and not signed"


def test_another_key_is_refused(keys: Pair, model: Path, tmp_path: Path) -> None:
    """Also one that says in its bundle that it is the right one."""
    other = pair(tmp_path, "signer")
    right = signed(model, keys.signer).joinpath("model.sig").read_text()
    signed(model, other.signer)
    assert "it was made with another key, whose hash is " in refused(model, Trust(key=keys.public))
    hint = json.loads(right)["verificationMaterial"]["publicKey"]["hint"]
    edit_bundle(model / "model.sig", lambda b: b["verificationMaterial"]["publicKey"].update(hint=hint))
    assert "it is not by this key over what it states" in refused(model, Trust(key=keys.public))


def test_a_bundle_of_another_model_is_refused(keys: Pair, model: Path, tmp_path: Path) -> None:
    """Both have the same vocabulary."""
    other = Path(shutil.copytree(model, tmp_path / "other"))
    for name in ("model.safetensors", "conversion.json", "config.json"):
        change_byte(other / name)
    shutil.copy(signed(other, keys.signer) / "model.sig", model)
    said = refused(model, Trust(key=keys.public))
    assert said.splitlines()[0] == "model.sig: is of another model, which was called 'other'"
    assert "model.safetensors: other content than signed" in said


# With a certificate


def test_a_certificate_says_who(certified_by: Authority, model: Path) -> None:
    signed(model, certified_by.signer)
    for name in (None, MAIL):
        assert check(model, Trust(roots=(certified_by.root,), identity=name)) == (f"{MAIL}, as root.crt certified", [])
    for name in ("you@example.org", "me", "CN=me"):
        said = refused(model, Trust(roots=(certified_by.root,), identity=name))
        assert said == f"it is by {MAIL}, expected {name}"
    bundle = bundle_beside(model)
    assert bundle is not None
    assert claimed(bundle) == MAIL


def test_a_subject_that_was_asked_for_is_not_who_was_certified(model: Path, tmp_path: Path) -> None:
    """The subject is often as the request has it; e-mail and URI are what the issuer looked at."""
    made = authority(tmp_path, subject=MAIL, mail="mallory@example.org")
    said = refused(signed(model, made.signer), Trust(roots=(made.root,), identity=MAIL))
    assert said == f"it is by mallory@example.org, expected {MAIL}"


@pytest.mark.parametrize("subject", [MAIL, "https://example.org/me"])
def test_a_subject_is_no_address(subject: str, model: Path, tmp_path: Path) -> None:
    made = authority(tmp_path, subject=subject, mail=None)
    said = refused(signed(model, made.signer), Trust(roots=(made.root,), identity=subject))
    assert said == f"it is by {subject} (its certificate's subject), expected {subject}"


def test_without_an_address_the_common_name_counts(model: Path, tmp_path: Path) -> None:
    """And nothing else of the subject, which another's common name may spell."""
    made = authority(tmp_path, mail=None)
    trust = Trust(roots=(made.root,), identity="me")
    assert check(signed(model, made.signer), trust) == ("me, as root.crt certified", [])
    assert (
        refused(model, Trust(roots=(made.root,), identity="CN=me"))
        == "it is by me (its certificate's subject), expected CN=me"
    )


@pytest.mark.parametrize("days", [(-30, -1), (1, 30)])
def test_a_certificate_is_held_against_today(days: tuple[int, int], model: Path, tmp_path: Path) -> None:
    made = authority(tmp_path, days=days)
    said = refused(signed(model, made.signer), Trust(roots=(made.root,)))
    expected = "the certificate of CN=me expired on " if days[1] < 0 else "the certificate of CN=me is valid from "
    assert said.startswith(expected)


def test_one_that_expired_on_the_way_is_refused(model: Path, tmp_path: Path) -> None:
    """The library asks whether it was valid on the day on which the signer's certificate began."""
    root, between, own = (pair(tmp_path, name) for name in ("root", "between", "own"))
    top = certificate(tmp_path / "root.crt", "root", root.key, days=(-100, 100))
    middle = certificate(
        tmp_path / "between.crt", "between", between.key, top, root.key, is_authority=True, days=(-90, -2)
    )
    leaf = certificate(tmp_path / "own.crt", "me", own.key, middle, between.key, days=(-80, 80))
    signed(model, Signer(key=own.private, certificate=leaf, chain=(middle,)))
    assert refused(model, Trust(roots=(top,))).startswith("the certificate of CN=between expired on ")


def test_a_certificate_of_another_root_is_refused(certified_by: Authority, model: Path, tmp_path: Path) -> None:
    """The same names in all of it."""
    other = authority(tmp_path)
    signed(model, other.signer)
    said = refused(model, Trust(roots=(certified_by.root,), identity=MAIL))
    assert "does not lead to root.crt" in said


def test_a_chain_of_somebody_else_is_refused(certified_by: Authority, model: Path, tmp_path: Path) -> None:
    """A bundle by one's own key that shows the certificates of another signer."""
    signed(model, certified_by.signer)
    chain = json.loads((model / "model.sig").read_text())["verificationMaterial"]
    signed(model, authority(tmp_path, "mine").signer)
    edit_bundle(model / "model.sig", lambda b: b.update(verificationMaterial=chain))
    assert "it is not by its certificate's key over" in refused(model, Trust(roots=(certified_by.root,), identity=MAIL))


def test_a_certificate_that_may_not_sign_is_refused(model: Path, tmp_path: Path) -> None:
    made = authority(tmp_path, signs=False)
    said = refused(signed(model, made.signer), Trust(roots=(made.root,)))
    assert said.startswith("its certificate is not one for signing")


def test_a_certificate_of_a_server_signs_no_model(model: Path, tmp_path: Path) -> None:
    made = authority(tmp_path, extended=[Usage.SERVER_AUTH, Usage.CLIENT_AUTH])
    said = refused(signed(model, made.signer), Trust(roots=(made.root,)))
    assert said.startswith("its certificate is not one for signing: it is for other things only")
    for number, usage in enumerate((Usage.CODE_SIGNING, Usage.EMAIL_PROTECTION)):
        fit = authority(tmp_path, f"fit{number}", extended=[Usage.CLIENT_AUTH, usage])
        assert check(signed(model, fit.signer), Trust(roots=(fit.root,)))[1] == []


def test_roots_of_the_web_certify_nobody(certified_by: Authority, model: Path) -> None:
    """Without a root of one's own nothing is checked: those that ship with Python vouch for names of servers."""
    signed(model, certified_by.signer)
    said = refused(model, Trust(identity=MAIL, issuer="https://example.org"))
    assert said == "it was made with a key that has a certificate, expected one with an identity, by Sigstore"


def test_one_way_is_not_taken_for_another(keys: Pair, certified_by: Authority, model: Path, tmp_path: Path) -> None:
    signed(model, keys.signer)
    assert "it was made with a key, expected one with a key that has a" in refused(
        model, Trust(roots=(certified_by.root,))
    )
    signed(model, certified_by.signer)
    assert "expected one with a key" in refused(model, Trust(key=keys.public))


# What is given


def write_rsa(folder: Path) -> Path:
    key = rsa.generate_private_key(65537, 2048)
    from cryptography.hazmat.primitives.serialization import NoEncryption

    (folder / "rsa.pem").write_bytes(key.private_bytes(PEM, PKCS8, NoEncryption()))
    return folder / "rsa.pem"


def test_keys_that_cannot_sign_are_told(model: Path, tmp_path: Path) -> None:
    hidden = pair(tmp_path, "hidden", password="secret")
    curve = pair(tmp_path, "curve", curve=ec.SECP256K1)
    for signer in (
        Signer(key=tmp_path / "none.pem"),
        Signer(key=model / "vocab.txt"),
        Signer(key=write_rsa(tmp_path)),
        Signer(key=curve.private),
        Signer(key=hidden.private),
        Signer(key=hidden.private, password="wrong"),
        Signer(key=pair(tmp_path).private, certificate=authority(tmp_path).root),
        Signer(key=pair(tmp_path).private, certificate=model / "vocab.txt"),
    ):
        with pytest.raises(CaptureError) as caught:
            make_signature(model, signer)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path}/")
        assert "\n" not in said
        assert "cannot be read" in said or "Expected " in said
    assert make_signature(model, Signer(key=hidden.private, password="secret")).method == "key"


def test_what_to_trust_has_to_be_readable(keys: Pair, certified_by: Authority, model: Path, tmp_path: Path) -> None:
    bundle = make_signature(model, keys.signer)
    for path in (tmp_path / "none.pub", model / "vocab.txt", keys.private):
        with pytest.raises(CaptureError, match=r"cannot be read|Expected a public key on the curve"):
            check_signature(model, bundle, Trust(key=path))
    with pytest.raises(CaptureError, match="Expected a certificate in PEM"):
        check_signature(model, make_signature(model, certified_by.signer), Trust(roots=(keys.public,)))


def test_a_certificate_that_cannot_be_read_is_told(certified_by: Authority, model: Path) -> None:
    signed(model, certified_by.signer)
    certificates = "verificationMaterial", "x509CertificateChain", "certificates"
    edit_bundle(
        model / "model.sig", lambda b: b[certificates[0]][certificates[1]][certificates[2]][0].update(rawBytes="AAAA")
    )
    with pytest.raises(CaptureError, match="holds a certificate that cannot be read"):
        check(model, Trust(roots=(certified_by.root,)))
