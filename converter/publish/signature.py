"""Whether the signature of a folder holds, and by whom: by model-signing, Sigstore and OpenSSL, no cryptography here.

Who signed is said only where trust was given for it: a public key, a certificate that issues others, or Sigstore's.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from converter.display import file_name, plain
from converter.errors import CaptureError, require
from converter.hub.resolve import SIGNATURE
from converter.publish.bundle import Bundle

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

PATIENCE = 60.0  # seconds for all that is asked of Sigstore's servers at once
_PUBLIC = "openssl pkey -in KEY.pem -pubout"
MODULES = ("model_signing", "OpenSSL")
FOREIGN = "its certificate is not of this Sigstore"
METHODS = {
    "key": "with a key",
    "certificate": "with a key that has a certificate",
    "sigstore": "with an identity, by Sigstore",
}


@dataclass(frozen=True, slots=True)
class Trust:
    """What a signature is held against.

    A public `key`; or certificates, `roots`, that issue those of signers, of whom `identity` is wanted; or else
    Sigstore: `identity` as `issuer` vouches for it, by what the file `sigstore` names instead of its public servers.
    Without `identity` it may be anybody.
    """

    key: Path | None = None
    roots: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None
    sigstore: Path | None = None

    @property
    def method(self) -> str:
        """Of the bundles that it is for."""
        return "key" if self.key else "certificate" if self.roots else "sigstore"

    @property
    def identity_shown(self) -> str:
        return f"{plain(str(self.identity))}, as {plain(str(self.issuer))} told Sigstore"

    @property
    def roots_shown(self) -> str:
        return " or ".join(plain(root.name) for root in self.roots)


def claimed(bundle: Bundle) -> str:
    """Who a bundle says that it is by, which nothing has shown."""
    if bundle.method == "key":
        return f"a key with hash {bundle.key}"
    if bundle.method == "certificate":
        return _shown(bundle)
    identity, issuer = identity_of(bundle)
    return f"{plain(identity or 'nobody')}, as {plain(issuer or 'nobody')} told Sigstore"


def names_of(bundle: Bundle) -> list[str]:
    """By which the signer may be required: the certificate's e-mails and URIs, or else common names. CaptureError.

    Beside an address the subject counts for nothing, and it is never one: many issuers take it as the request has it.
    """
    certificate = _certificate(bundle, bundle.certificates[0])
    names = [name for name in _common_names(certificate) if "@" not in name and "://" not in name]
    return _alternative_names(certificate) or names


def identity_of(bundle: Bundle) -> tuple[str | None, str | None]:
    """Of a bundle by Sigstore, the identity in its certificate and who vouched for it. CaptureError."""
    from cryptography import x509

    certificate = _certificate(bundle, bundle.certificates[0])
    issuers = [
        extension.value.value.decode(errors="replace")
        for extension in certificate.extensions
        if extension.oid == x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # Fulcio's, of the OIDC issuer
        and isinstance(extension.value, x509.UnrecognizedExtension)
    ]
    return next(iter(_alternative_names(certificate)), None), next(iter(issuers), None)


def _certificate(bundle: Bundle, der: bytes) -> Certificate:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
        list(certificate.extensions)  # those are parsed when they are asked for
        certificate.subject.rfc4514_string()
        return certificate
    except Exception as error:  # whatever a stranger's bytes lead to there
        why = text_of(error)
        raise CaptureError(f"{file_name(bundle.path)}: holds a certificate that cannot be read: {why}.") from None


def _common_names(certificate: Certificate) -> list[str]:
    from cryptography import x509

    return [str(part.value) for part in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


def _alternative_names(certificate: Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier)
    return [str(name) for kind in kinds for name in names.get_values_for_type(kind)]


def check_signature(folder: Path, bundle: Bundle, trust: Trust) -> tuple[str | None, str]:
    """Who signed the folder as it is, or None and why that cannot be said of it.

    Files are hashed. Raises CaptureError where the signature cannot be checked: what to trust is not readable, Sigstore
    is not reached, MissingPackageError.
    """
    require("a signature", "sign", MODULES)
    if bundle.method != trust.method:
        return None, f"it was made {METHODS[bundle.method]}, expected one {METHODS[trust.method]}"
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]
    try:
        who = _trusting(config, bundle, trust)
    except _Refused as refused:
        return None, str(refused)
    logging.getLogger("model_signing").setLevel(logging.ERROR)  # it warns of usages, which were checked here
    with TemporaryDirectory() as private:
        copy = Path(private) / SIGNATURE  # what was read, whatever becomes of the file
        copy.write_bytes(bundle.content)
        try:
            with warnings.catch_warnings():  # about the library's own code
                warnings.simplefilter("ignore")
                config.set_hashing_config(whole_folder()).verify(folder, copy)
        except Exception as error:  # three libraries, and what a crafted bundle leads to in them
            return None, _why(error, bundle, trust)
    return who, ""


def whole_folder() -> Any:
    """How model-signing is to hash a folder: every file but the bundle, by SHA-256.

    Links, too: huggingface_hub's cache has nothing else. Where they lead to is for `hash_folder` to refuse.
    """
    from model_signing import hashing

    return hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=[SIGNATURE])  # type: ignore[no-untyped-call]


class _Refused(Exception):
    """The signature does not hold, which is known before it is verified."""


def _trusting(config: Any, bundle: Bundle, trust: Trust) -> str:
    """Let `config` verify by `trust`; who signed, if that finds no fault. CaptureError, _Refused."""
    if trust.key is not None:
        with reading(trust.key, f"a public key on the curve P-256, P-384 or P-521, in PEM, as {_PUBLIC} writes it"):
            config.use_elliptic_key_verifier(public_key=trust.key)
            return f"the key in {plain(trust.key.name)}, SHA-256 {bundle.key}"  # that of the file, or it is refused
    if trust.roots:
        _check_certificates(bundle, trust)
        config.use_certificate_verifier(certificate_chain=trust.roots)
        if trust.identity is not None and trust.identity not in names_of(bundle):
            raise _Refused(f"it is by {_shown(bundle)}, expected {plain(trust.identity)}")
        who = _shown(bundle) if trust.identity is None else plain(trust.identity)
        return f"{who}, as {trust.roots_shown} certified"
    identity, issuer = identity_of(bundle)
    if trust.identity is not None:
        if trust.identity not in names_of(bundle) or issuer != trust.issuer:
            raise _Refused(f"it says it is by {claimed(bundle)}, expected {trust.identity_shown}")
        identity, issuer = trust.identity, trust.issuer
    if not identity or not issuer:
        raise _Refused("its certificate does not say who signed, or not who vouches for it")
    wanted: Any = {"identity": identity, "oidc_issuer": issuer, "trust_config": trust.sigstore}
    with reaching(trust.sigstore):
        within(PATIENCE, lambda: config.use_sigstore_verifier(**wanted))
    return f"{plain(identity)}, as {plain(issuer)} told Sigstore"


def _shown(bundle: Bundle) -> str:
    """Whom the signer's certificate is for. CaptureError."""
    certificate = _certificate(bundle, bundle.certificates[0])
    if names := _alternative_names(certificate):
        return plain(names[0])
    subject = next(iter(_common_names(certificate)), None)
    return f"{plain(subject)} (its certificate's subject)" if subject else "nobody that its certificate names"


def _check_certificates(bundle: Bundle, trust: Trust) -> None:
    """_Refused unless the signer's certificate leads to one that is trusted, and none on the way has expired.

    model-signing asks this of the day on which the certificate began, which no signature proves; here it is today.
    """
    from cryptography import x509
    from OpenSSL import crypto

    store = crypto.X509Store()
    for root in trust.roots:
        with reading(root, "a certificate in PEM"):
            for certificate in x509.load_pem_x509_certificates(root.read_bytes()):
                store.add_cert(crypto.X509.from_cryptography(certificate))
    certificates = [_certificate(bundle, der) for der in bundle.certificates]
    own, *others = map(crypto.X509.from_cryptography, certificates)
    try:
        crypto.X509StoreContext(store, own, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise _Refused(_of_chain(error, trust)) from None
    if why := not_for_signing(certificates[0]):
        raise _Refused(f"its certificate is not one for signing: {why}")


def not_for_signing(certificate: Certificate) -> str | None:
    """Why the usages of a certificate forbid that models are signed with it, if they do."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

    usages: set[Any] = set()
    digital = False
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            usages = set(extension.value)
        elif isinstance(extension.value, x509.KeyUsage):
            digital = extension.value.digital_signature
    signing = {Usage.CODE_SIGNING, Usage.EMAIL_PROTECTION}
    if usages and not usages & signing:  # of a server of the web, say, whose administrator signs no models
        return "it is for other things only, by its extended usages, of which none is codeSigning or emailProtection"
    if not digital and Usage.CODE_SIGNING not in usages:
        return "it has neither of the usages digitalSignature and codeSigning"
    return None


def _of_chain(error: Any, trust: Trust) -> str:
    certificate = error.certificate.to_cryptography()
    subject = plain(certificate.subject.rfc4514_string())
    return outdated(certificate) or (
        f"the certificate of {subject} does not lead to {trust.roots_shown}: {plain(str(error))}"
    )


def outdated(certificate: Certificate) -> str | None:
    """Why a certificate does not count today, if that is for its dates."""
    subject = plain(certificate.subject.rfc4514_string())
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return (
            f"the certificate of {subject} expired on {certificate.not_valid_after_utc:%Y-%m-%d}, and nothing in the "
            "bundle proves that it was signed before; have it signed again"
        )
    if now < certificate.not_valid_before_utc:
        return f"the certificate of {subject} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} only"
    return None


def _why(error: Exception, bundle: Bundle, trust: Trust) -> str:
    """Why the libraries refuse a signature, in words."""
    if type(error).__name__ == "InvalidSignature" or str(error) == "DSSE: invalid signature":
        whose = "this key" if trust.key else "its certificate's key"
        return f"it is not by {whose} over what it states: {plain(bundle.path.name)} was changed, or made with another"
    if "Key mismatch" in str(error):
        return f"it was made with another key, whose hash is {bundle.key}"
    if "certificate chain" in str(error) or "not enough sources of verified time" in str(error):
        return f"{FOREIGN}: {text_of(error)}"
    return f"it does not hold: {text_of(error)}"


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Say of a file of the user that it is not what it should be, in one sentence."""
    try:
        yield
    except OSError as error:
        raise CaptureError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    except Exception as error:  # cryptography has many ways to say so
        raise CaptureError(f"{file_name(path)}: is not as needed: {text_of(error)}. Expected {expected}.") from None


@contextmanager
def reaching(sigstore: Path | None) -> Iterator[None]:
    """Say of Sigstore that it could not be asked, in one sentence."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:  # of its servers, their answers, the network, a browser that nobody has
        where = "Sigstore" if sigstore is None else f"Sigstore as {file_name(sigstore)} describes it"
        raise CaptureError(
            f"{where} could not be asked, so no signature was written or checked: {text_of(error)}. Check the "
            "connection; a key pair needs none."
        ) from None


def within(seconds: float, request: Callable[[], object]) -> None:
    """Do what asks servers, some of whose libraries would wait for an answer for ever. TimeoutError after `seconds`."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            request()
        except BaseException as error:  # for whoever waits
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    if failures:
        raise failures[0]


def text_of(error: BaseException) -> str:
    return plain(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")
