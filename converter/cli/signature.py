"""`converter verify` of a folder with a signature: whether it holds, and by whom, before anything else is looked at."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.job import as_table, page, prose, summarize
from converter.cli.output import PATH, cut, print_json, progress
from converter.display import counted, file_name, plain
from converter.errors import CaptureError, missing_package

if TYPE_CHECKING:
    from converter.cli.sources import Located
    from converter.publish.bundle import Bundle
    from converter.publish.signature import Trust

_OPTIONS = {
    "signature": click.option("--signature", type=PATH, help="Its bundle. Default: model.sig in MODEL's folder."),
    "signature_key": click.option(
        "--signature-key", metavar="PEM", type=PATH, help="The signer's public key: fail unless MODEL is signed by it."
    ),
    "signature_certificates": click.option(
        "--signature-certificate",
        "signature_certificates",
        metavar="PEM",
        multiple=True,
        type=PATH,
        help="Root certificate above those of signers: fail unless MODEL is signed by one. Repeatable.",
    ),
    "identity": click.option(
        "--require-signature",
        "identity",
        metavar="IDENTITY",
        help="Fail unless MODEL is signed by it: an e-mail or URI, by Sigstore; with --signature-certificate, one "
        "in the signer's certificate, or the common name of one without any.",
    ),
    "issuer": click.option(
        "--signature-issuer", "issuer", metavar="URL", help="Who vouches for IDENTITY to Sigstore, as its OIDC issuer."
    ),
    "sigstore_config": click.option(
        "--sigstore-config",
        metavar="JSON",
        type=PATH,
        help="Trust configuration of another Sigstore than the public one.",
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a signature. `trust` is None where nothing is: then it is looked at, and need not be there."""

    bundle: Path | None
    trust: Trust | None


@dataclass(frozen=True, slots=True)
class Signed:
    """What is said of a signature: who made it, if that was established, or else what the bundle says and what would
    have to be given; `problems`: why it does not hold."""

    path: Path
    method: str
    files: int
    signer: str | None
    claims: str | None
    unchecked: str | None
    problems: tuple[str, ...] = ()

    @property
    def line(self) -> tuple[str, str]:
        """A label and a sentence for people."""
        if self.problems:
            return "signature", "FAIL: it does not hold"
        if self.signer is not None:
            return "signature", f"by {self.signer}, of {counted(self.files, 'file')}"
        says = f" by {self.claims}, it says" if self.claims else ""
        return "signature", f"of {counted(self.files, 'file')}{says}: not checked; to check it, {self.unchecked}"

    @property
    def json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path),
            "method": self.method,
            "files": self.files,
            "verdict": "FAIL" if self.problems else "pass" if self.signer else "not checked",
            "signer": self.signer,
            "claims": self.claims,
            "unchecked": self.unchecked,
            "problems": list(self.problems),
        }


def asks_for_signature(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of a signature, as one parameter `asked`. click.UsageError where they do not agree."""

    @functools.wraps(command)
    def asking(*args: Any, **kwargs: Any) -> None:
        asked = _asked(**{name: kwargs.pop(name) for name in _OPTIONS})
        if kwargs.get("certificate") and (asked.trust or asked.bundle):
            raise click.UsageError("--certificate: a signature is of the certificate beside the weights; ask for one")
        command(*args, asked=asked, **kwargs)

    taking: Callable[..., None] = asking
    for option in reversed(_OPTIONS.values()):
        taking = option(taking)
    return taking


def _asked(
    signature: Path | None,
    signature_key: Path | None,
    signature_certificates: tuple[Path, ...],
    identity: str | None,
    issuer: str | None,
    sigstore_config: Path | None,
) -> Asked:
    from converter.publish.signature import Trust

    if signature_key and (signature_certificates or identity or issuer or sigstore_config):
        raise click.UsageError("--signature-key says whose signature it is; leave out what else is asked of it")
    if signature_certificates and (issuer or sigstore_config):
        raise click.UsageError("--signature-certificate is of a signature without Sigstore; leave out what is of that")
    if identity and not signature_certificates and not issuer:
        raise click.UsageError(
            "--require-signature: by Sigstore it needs --signature-issuer URL, as anybody may vouch for a name; for a "
            "signer's certificate --signature-certificate; a key is given by --signature-key"
        )
    if issuer and not identity:
        raise click.UsageError("--signature-issuer vouches for somebody: give --require-signature IDENTITY, too")
    if not (signature_key or signature_certificates or identity or sigstore_config):
        return Asked(signature, None)
    return Asked(signature, Trust(signature_key, signature_certificates, identity, issuer, sigstore_config))


def signed_names(asked: Asked, folder: Path) -> Collection[str]:
    """The files that a signature of the folder names; none if it has none, or none that can be read: told later."""
    from converter.publish.bundle import bundle_beside, read_bundle

    try:
        bundle = read_bundle(asked.bundle) if asked.bundle else bundle_beside(folder)
    except CaptureError:
        return ()
    return bundle.files if bundle else ()


def check_signed(subject: str, located: Located, asked: Asked, as_json: bool) -> Signed | None:
    """What is to be said of the signature; None where there is none and none is asked for.

    Ends the program with 1, and tells why, if it does not hold: the rest is then not looked at. CaptureError where none
    is there that was asked for, or it cannot be read or checked.
    """
    from converter.hub.resolve import SIGNATURE
    from converter.publish.bundle import read_bundle

    model, wanted = located.path, asked.trust is not None or asked.bundle is not None
    if not model.is_dir():
        if wanted:
            raise CaptureError(f"{file_name(model)}: is one file; a signature is of a folder that `package` made.")
        if not located.origin and os.path.lexists(model.parent / SIGNATURE):
            said = "of its folder there is a signature, which was not looked at: converter verify"
            click.echo(f"{said} {file_name(model.parent)}", err=True)
        return None
    path = asked.bundle or model / SIGNATURE
    if not wanted and not os.path.lexists(path):
        return None
    if asked.bundle is None and not os.path.lexists(path):
        raise CaptureError(
            f"{plain(subject, 1024)}: is not signed: it has no {SIGNATURE}, and a signature was asked for."
        )
    bundle = read_bundle(path)
    signed = _checked(located, bundle, asked.trust)
    if signed.problems:
        summarize(lambda: _markdown(subject, signed))
        if as_json:
            print_json(_failed(signed) | {"origin": located.origin})
        else:
            _print(signed)
        sys.exit(1)
    return signed


def _checked(located: Located, bundle: Bundle, trust: Trust | None) -> Signed:
    from converter.publish.bundle import GIT, hash_folder
    from converter.publish.signature import FOREIGN, Trust, check_signature

    size = sum(path.stat().st_size for path in located.path.iterdir() if path.is_file())
    with progress(size, "hashing for the signature") as advance:
        hashes, problems = hash_folder(located.path, advance)
    problems += bundle.differences(hashes)
    others = [name for name in located.others if name.split("/")[0] not in GIT]
    problems += [f"{plain(name)}: not signed" for name in others if name not in bundle.files]
    claims = _claims(bundle)
    about = (bundle.path, bundle.method, len(bundle.files))
    if problems:
        return Signed(*about, None, claims, None, tuple(problems))
    if trust is not None:
        who, why = check_signature(located.path, bundle, trust)
        return Signed(*about, who, claims, None, () if who else (f"{plain(bundle.path.name)}: {why}",))
    unchecked = _how_to_check(bundle)
    if located.origin and bundle.method == "sigstore":  # which needs no key to say by whom
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return Signed(*about, None, claims, f"{unchecked} (HF_HUB_OFFLINE is set: Sigstore was not asked)")
        try:
            who, why = check_signature(located.path, bundle, Trust())
            if not why.startswith(FOREIGN):
                return Signed(*about, who, claims, None, () if who else (f"{plain(bundle.path.name)}: {why}",))
            unchecked = f"{unchecked} ({why})"
        except (CaptureError, ModuleNotFoundError) as error:
            unchecked = f"{unchecked} ({plain(str(error), 1024)})"
    return Signed(*about, None, claims, unchecked)


def _claims(bundle: Bundle) -> str | None:
    """What the bundle says of its signer; None where that is in a certificate, and nothing here reads one."""
    from converter.publish.signature import claimed

    try:
        return claimed(bundle)
    except ModuleNotFoundError:
        return None


def _how_to_check(bundle: Bundle) -> str:
    options = {
        "key": "give the signer's public key, --signature-key PEM",
        "certificate": "give the root certificate above the signer's, --signature-certificate PEM",
        "sigstore": "say who it is to be by, --require-signature IDENTITY --signature-issuer URL",
    }
    missing = "" if find_spec("model_signing") and find_spec("OpenSSL") else f"; {missing_package('that', 'sign')}"
    return options[bundle.method] + missing


def _failed(signed: Signed) -> dict[str, Any]:
    """The document of a model of which nothing but the signature was looked at."""
    return {
        "certificate": None,
        "record": None,
        "signature": signed.json,
        "verdict": "FAIL",
        "problems": list(signed.problems),
        "custom_tables": [],
        "unknown_table": False,
        "evaluations": [],
        "device": None,
        "dtype": None,
        "largest_relative_error": None,
    }


def _markdown(subject: str, signed: Signed) -> str:
    rows = [[prose(problem)] for problem in signed.problems]
    return page(f"converter verify {subject}", "FAIL", [signed.line], as_table(["difference"], rows, "differences"))


def _print(signed: Signed) -> None:
    click.echo(f"{signed.line[0]}: {signed.line[1]}")
    for line in cut([f"  {problem}" for problem in signed.problems]):
        click.echo(line)
    click.echo("Nothing else was looked at. Get the files again from whoever signed them.")
    click.echo("FAIL")
