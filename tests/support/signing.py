"""Keys, certificates and signatures for tests, by the real libraries."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from converter.publish.bundle import bundle_beside, hash_folder, read_bundle
from converter.publish.signature import Trust, check_signature
from converter.publish.signing import Signer, make_signature

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
MAIL = "me@example.org"


@dataclass(frozen=True)
class Pair:
    """A key pair in PEM files."""

    private: Path
    public: Path
    key: Any

    @property
    def signer(self) -> Signer:
        return Signer(key=self.private)


def pair(folder: Path, name: str = "signer", password: str | None = None, curve: Any = ec.SECP256R1) -> Pair:
    key = ec.generate_private_key(curve())
    hidden: Any = serialization.NoEncryption()
    if password is not None:
        hidden = serialization.BestAvailableEncryption(password.encode())
    made = Pair(folder / f"{name}.pem", folder / f"{name}.pub", key)
    made.private.write_bytes(key.private_bytes(PEM, PKCS8, hidden))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    made.public.write_bytes(key.public_key().public_bytes(PEM, kind))
    return made


def certificate(
    path: Path, subject: str, key: Any, issuer: Path | None = None, issuer_key: Any = None, **options: Any
) -> Path:
    """A certificate in PEM of `subject`'s key; without an issuer it is a root's own. Options: `days` (from, to) of its
    validity, `signs` (default: True) whether it may sign, `extended` usages, `mail` of the subject."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    above = x509.load_pem_x509_certificate(issuer.read_bytes()) if issuer else None
    days, is_authority = options.get("days", (-1, 30)), options.get("is_authority", issuer is None)
    signs = options.get("signs", True) and not is_authority
    usage = x509.KeyUsage(signs, False, not signs and not is_authority, False, False, is_authority, False, False, False)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above.subject if above else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if extended := options.get("extended"):
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    if mail := options.get("mail"):
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(mail)]), critical=False)
    if above:
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(known, critical=False)
    path.write_bytes(builder.sign(issuer_key or key, hashes.SHA256()).public_bytes(PEM))
    return path


@dataclass(frozen=True)
class Authority:
    """A root with one below it, which certifies a signer."""

    root: Path
    below: Path
    signer: Signer


def authority(folder: Path, name: str = "root", **options: Any) -> Authority:
    """`options` are those of the signer's certificate, and its `subject`."""
    above, between, own = (pair(folder, f"{name}-{part}") for part in ("root", "between", "own"))
    root = certificate(folder / f"{name}.crt", name, above.key)
    below = certificate(folder / f"{name}-between.crt", "between", between.key, root, above.key, is_authority=True)
    subject = options.pop("subject", "me")
    leaf = certificate(folder / f"{name}-own.crt", subject, own.key, below, between.key, **({"mail": MAIL} | options))
    return Authority(root, below, Signer(key=own.private, certificate=leaf, chain=(below,)))


def signed(folder: Path, signer: Signer) -> Path:
    """The folder with its bundle in it; nothing else is checked."""
    content = make_signature(folder, signer).content
    (folder / "model.sig").write_bytes(content)
    return folder


def change_byte(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def edit_bundle(path: Path, change: Callable[[Any], object], statement: Callable[[Any], object] | None = None) -> None:
    """Change the JSON of a bundle, and of the statement that it signs, and sign neither again."""
    document = json.loads(path.read_text())
    if statement is not None:
        stated = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        statement(stated)
        document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(stated).encode()).decode()
    change(document)
    path.write_text(json.dumps(document))


def sign_statement(path: Path, key: Any, change: Callable[[Any], object]) -> None:
    """Sign a changed statement with the signer's own key: what an honest library never writes."""
    from model_signing._signing.sign_sigstore_pb import pae

    document = json.loads(path.read_text())
    stated = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(stated)
    payload = json.dumps(stated).encode()
    signature = key.sign(pae(payload), ec.ECDSA(hashes.SHA256()))
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    path.write_text(json.dumps(document))
    read_bundle(path)


def check(folder: Path, trust: Trust) -> tuple[str | None, list[str]]:
    """Who signed, and all problems, as `verify` finds them."""
    bundle = bundle_beside(folder)
    assert bundle is not None
    hashes, problems = hash_folder(folder)
    problems += bundle.differences(hashes)
    if problems:
        return None, problems
    who, why = check_signature(folder, bundle, trust)
    return who, [why] if why else []


def refused(folder: Path, trust: Trust) -> str:
    who, problems = check(folder, trust)
    assert who is None
    return "\n".join(problems)
