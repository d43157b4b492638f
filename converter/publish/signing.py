"""Signing a folder by model-signing: only one of which everything that `publish` asks for holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from converter.display import file_name, plain
from converter.errors import CaptureError, DestinationError, HubError, require
from converter.hub.resolve import SIGNATURE
from converter.parity.family import Family
from converter.publish.bundle import Bundle, read_bundle
from converter.publish.folder import LocalFile, read_folder
from converter.publish.signature import (
    MODULES,
    PATIENCE,
    not_for_signing,
    outdated,
    reaching,
    reading,
    whole_folder,
    within,
)
from converter.writing.staging import write_whole

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_SLOWEST = 5e6  # bytes that are read in a second, at least
_BROWSER = 600.0  # seconds for somebody to log in


@dataclass(frozen=True, slots=True)
class Signer:
    """What a folder is signed with: a private `key`, with its `password`; also its `certificate` and those between it
    and the root, `chain`; or, without a key, Sigstore, which asks who is there unless it gets an identity's `token`.

    `sigstore`: a file that names other servers than the public ones.
    """

    key: Path | None = None
    password: str | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    token: str | None = None
    sigstore: Path | None = None


def check_to_sign(
    folder: Path,
    family_of: Callable[[str], Family[Any]],
    *,
    unverified: bool = False,
    accepted_tables: Collection[str] = (),
    force: bool = False,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> list[LocalFile]:
    """The files of a folder that may be signed: what `publish` would take, as it would publish them.

    Raises CaptureError for what is not right, DestinationError for a signature that is there, unless `force`.
    """
    if (folder / SIGNATURE).exists() and not force:
        raise DestinationError(f"{file_name(folder / SIGNATURE)} exists; --force replaces it")
    try:
        files = read_folder(
            folder, family_of, unverified=unverified, accepted_tables=accepted_tables, on_bytes=on_bytes
        )
    except HubError as error:
        raise CaptureError(str(error)) from None
    # as published a card without a certificate is marked, which would leave it as nobody signed it
    if changed := [file.name for file in files if file.content not in (None, file.path.read_bytes())]:
        raise CaptureError(
            f"{file_name(folder)}: {plain(changed[0])} does not say UNVERIFIED, as it will when it is published, which "
            "changes what was signed. Package it again without a certificate, and sign that."
        )
    return [file for file in files if file.name != SIGNATURE]


def sign_folder(
    folder: Path,
    files: Collection[LocalFile],
    signer: Signer,
    *,
    force: bool = False,
    on_done: Callable[[], object] = lambda: None,
) -> Bundle:
    """Write the bundle over `files`, which are all of the folder, into it, whole or not at all.

    CaptureError where it cannot be signed, or if a file is not what it was; DestinationError; MissingPackageError.
    """
    check_certificates(signer)
    bundle = make_signature(folder, signer)
    if differing := bundle.differences({file.name: file.hashes.sha256 for file in files}):
        raise CaptureError(
            f"{file_name(folder)}: changed while it was signed, so nothing was written. Sign it again", differing
        )
    path = folder / SIGNATURE
    write_whole(path, bundle.content, force=force, on_done=on_done)
    return replace(bundle, path=path)


def make_signature(folder: Path, signer: Signer) -> Bundle:
    """The bundle of a folder as it is, not yet in it. CaptureError where it cannot be signed, MissingPackageError."""
    config, patience = _signing_by(signer)
    with TemporaryDirectory() as private:
        path = Path(private) / SIGNATURE
        config.set_hashing_config(whole_folder())
        if signer.key is not None:
            config.sign(folder, path)
            return read_bundle(path)
        size = sum(file.stat().st_size for file in folder.iterdir())  # what the slowest disk takes to read
        with reaching(signer.sigstore):
            within(patience + size / _SLOWEST, lambda: config.sign(folder, path))
        return read_bundle(path)


def check_signer(signer: Signer) -> None:
    """CaptureError where nothing can be signed with it, or nobody could verify what was, MissingPackageError."""
    _signing_by(signer)
    check_certificates(signer)


def check_certificates(signer: Signer) -> None:
    """CaptureError where nobody could verify what is signed with the certificates, which all can be read."""
    for number, (path, certificate) in enumerate(_certificates(signer)):
        if why := outdated(certificate) or (number == 0 and not_for_signing(certificate)):
            raise CaptureError(f"{file_name(path)}: nobody could verify what is signed with it: {why}.")


def _certificates(signer: Signer) -> list[tuple[Path, Certificate]]:
    """Of the signer, and then those between it and the root. CaptureError."""
    require("sign", "sign", MODULES)
    from cryptography.x509 import load_pem_x509_certificates

    found = []
    for path in (signer.certificate, *signer.chain) if signer.certificate else ():
        with reading(path, "a certificate in PEM"):
            found += [(path, certificate) for certificate in load_pem_x509_certificates(path.read_bytes())]
    return found


def _signing_by(signer: Signer) -> tuple[Any, float]:
    """The library's configuration, and the seconds to wait for a signature of Sigstore."""
    require("sign", "sign", MODULES)
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]
    if signer.key is None:
        return config, _use_sigstore(config, signer)
    _use_key(config, signer, signer.key)
    return config, 0.0


def _use_sigstore(config: Any, signer: Signer) -> float:
    """By the token of an identity, the one that a CI job has, or a browser where somebody is there to use it.

    The seconds to wait for a signature.
    """
    from sigstore.oidc import detect_credential

    with reaching(signer.sigstore):
        token = signer.token or detect_credential()
        if token is None and not sys.stdin.isatty():
            raise CaptureError(
                "no identity to sign with by Sigstore: no token is given, this is no CI job that has one, and nobody "
                "is at a terminal to use a browser. Set SIGSTORE_ID_TOKEN, or sign with a key."
            )
        given: Any = {"identity_token": token, "trust_config": signer.sigstore}
        within(PATIENCE, lambda: config.use_sigstore_signer(**given))
    return PATIENCE if token else _BROWSER


def _use_key(config: Any, signer: Signer, key: Path) -> None:
    if signer.certificate is None:
        with reading(key, "a private key on the curve P-256, P-384 or P-521, in PEM, and its password if it has one"):
            password = None if signer.password is None else signer.password.encode()
            config.use_elliptic_key_signer(private_key=key, password=password)
        return
    _certificates(signer)
    with reading(key, f"the key of {plain(signer.certificate.name)}, not encrypted, on P-256, P-384 or P-521"):
        # the library reads no certificate at all as a damaged one; the signer's own, once more, changes nothing
        chain = signer.chain or (signer.certificate,)
        config.use_certificate_signer(private_key=key, signing_certificate=signer.certificate, certificate_chain=chain)
