"""Sigstore on this machine: an authority for certificates and its log, the log of signatures, and who logs in.

The real client signs and verifies with it: tokens, certificates with the log's promise, entries with proofs. In place
of public servers it has one process, keys of its own, and a log in which every entry is the only one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER = "https://login.example.org"
_FULCIO_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_PROMISES = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")  # RFC 6962, section 3.3


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def token(identity: str, issuer: str = ISSUER, lasts: int = 600) -> str:
    """An identity's token, as a browser or a CI job would get it; nobody signs it, as nobody here asks."""
    claims = {
        "iss": issuer,
        "sub": identity,
        "aud": "sigstore",
        "iat": int(time.time()),
        "exp": int(time.time()) + lasts,
    }
    parts = [json.dumps({"alg": "none", "typ": "JWT"}).encode(), json.dumps(claims).encode(), b"signature"]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


class SigstoreStandin:
    """One Sigstore with its own keys. `url` is where it answers; `silent`: it takes requests and never does."""

    def __init__(self) -> None:
        self.root_key, self.promise_key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.url = ""
        self.silent = threading.Event()
        self.root = self._root()

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stand-in of Sigstore")])
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.root_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.root_key.public_key()), critical=False)
            .sign(self.root_key, hashes.SHA256())
        )

    def certificate(self, public: Any, identity: str, issuer: str) -> x509.Certificate:
        """Of somebody who logged in: ten minutes, with the log's promise in it."""
        now = datetime.now(UTC).replace(microsecond=0)
        kind = x509.RFC822Name if "@" in identity else x509.UniformResourceIdentifier
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=5))
            .not_valid_after(now + timedelta(minutes=10))
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([kind(identity)]), critical=True)
            .add_extension(authority, critical=False)
            .add_extension(x509.UnrecognizedExtension(_FULCIO_ISSUER, issuer.encode()), critical=False)
        )
        draft = builder.sign(self.root_key, hashes.SHA256()).tbs_certificate_bytes
        promise = x509.UnrecognizedExtension(_PROMISES, self._promise(draft, int(now.timestamp() * 1000)))
        return builder.add_extension(promise, critical=False).sign(self.root_key, hashes.SHA256())

    def _promise(self, draft: bytes, when: int) -> bytes:
        """A list of one signed certificate timestamp (RFC 6962, section 3.2) in DER."""
        authority = hashlib.sha256(_public(self.root_key)).digest()
        signed = struct.pack("!BBQH", 0, 0, when, 1) + authority + len(draft).to_bytes(3, "big") + draft + b"\0\0"
        signature = _sign(self.promise_key, signed)
        log = hashlib.sha256(_public(self.promise_key)).digest()
        one = b"\0" + log + struct.pack("!QHBBH", when, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return bytes([4, 0x81, len(listed)]) + listed if len(listed) > 127 else bytes([4, len(listed)]) + listed

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """The log's entry for a signature: its time, the promise of it, and the proof that it is there."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        spec = {
            "envelopeHash": _hash(content["envelope"].encode()),
            "payloadHash": _hash(base64.b64decode(envelope["payload"])),
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}, separators=(",", ":")).encode()
        log, now = hashlib.sha256(_public(self.log_key)), int(time.time())
        promised = {"body": _b64(body), "integratedTime": now, "logID": log.hexdigest(), "logIndex": 0}
        root = hashlib.sha256(b"\0" + body).digest()
        note = f"stand-in\n1\n{_b64(root)}\n"
        signature = log.digest()[:4] + _sign(self.log_key, note.encode())
        proof = {
            "logIndex": 0,
            "rootHash": root.hex(),
            "treeSize": 1,
            "hashes": [],
            "checkpoint": f"{note}\n\u2014 stand-in {_b64(signature)}\n",
        }
        canonical = json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()
        verification = {"signedEntryTimestamp": _b64(_sign(self.log_key, canonical)), "inclusionProof": proof}
        return {"0" * 64: promised | {"verification": verification}}

    def config(self, path: Path) -> Path:
        """The trust configuration, as `--sigstore-config` takes it."""
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": _b64(_public(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            key_id = _b64(hashlib.sha256(_public(key)).digest())
            return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": {"keyId": key_id}}

        authority = {
            "subject": {"organization": "stand-in", "commonName": "stand-in of Sigstore"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": _b64(self.root.public_bytes(serialization.Encoding.DER))}]},
            "validFor": since,
        }
        trusted = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log_key)],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.promise_key)],
            "timestampAuthorities": [],
        }
        service = [{"url": self.url, "majorApiVersion": 1, "validFor": since, "operator": "stand-in"}]
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service,
            "oidcUrls": service,
            "rekorTlogUrls": service,
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
            "tsaConfig": {"selector": "ANY"},
        }
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        path.write_text(json.dumps({"mediaType": kind, "trustedRoot": trusted, "signingConfig": signing}))
        return path


def _hash(content: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}


def _usage(**given: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


@contextmanager
def answering(sigstore: SigstoreStandin) -> Iterator[SigstoreStandin]:
    """Let it answer, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"authorization_endpoint": sigstore.url, "token_endpoint": sigstore.url})

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if sigstore.silent.is_set():
                time.sleep(30)
            elif self.path == "/api/v2/signingCert":
                self._answer(self._certified(content))
            else:
                self._answer(sigstore.entry(content))

        def _certified(self, content: Any) -> Any:
            claims = self.headers["Authorization"].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
            request = x509.load_pem_x509_csr(base64.b64decode(content["certificateSigningRequest"]))
            leaf = sigstore.certificate(request.public_key(), claims["sub"], claims["iss"])
            chain = [each.public_bytes(serialization.Encoding.PEM).decode() for each in (leaf, sigstore.root)]
            return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

        def _answer(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sigstore.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield sigstore
    finally:
        server.shutdown()
        server.server_close()
