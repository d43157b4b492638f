"""`converter sign`: a signature over a folder that `package` made."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, accept_table, done_with, print_json, progress, reports
from converter.cli.places import places, source
from converter.display import counted, file_name, gigabytes, plain
from converter.errors import CaptureError

if TYPE_CHECKING:
    from converter.publish.bundle import Bundle
    from converter.publish.folder import LocalFile
    from converter.publish.signing import Signer

_EPILOG = """\b
Examples:
  openssl ecparam -name prime256v1 -genkey -noout -out signer.pem
  openssl ec -in signer.pem -pubout -out signer.pub
  converter sign glip-t/ --key signer.pem
  converter verify glip-t/ --signature-key signer.pub
\b
  converter sign glip-t/ --key signer.pem --certificate signer.crt --chain issuer.crt
  converter verify glip-t/ --signature-certificate root.crt --require-signature me@example.org
\b
  converter sign glip-t/ --sigstore
  converter verify glip-t/ --require-signature me@example.org --signature-issuer https://accounts.google.com
\b
Exit codes: see 'converter --help'; 8 what `publish` would refuse, a key or certificate
that cannot be used or has expired, Sigstore was not reached."""


@click.command(epilog=_EPILOG)
@places(source("What `converter package` made.", "DIR", "folder", PATH))
@click.option("--key", metavar="PEM", type=PATH, help="Private key: on the curve P-256, P-384 or P-521.")
@click.option(
    "--password-env", metavar="NAME", help="Environment variable with the key's password. Default: asked for."
)
@click.option("--certificate", metavar="PEM", type=PATH, help="The key's certificate, which goes into the signature.")
@click.option(
    "--chain", metavar="PEM", type=PATH, multiple=True, help="Certificate between it and the root. Repeatable."
)
@click.option(
    "--sigstore", "is_sigstore", is_flag=True, help="Sign as a person or CI job, by Sigstore: public, for ever."
)
@click.option(
    "--identity-token",
    metavar="TOKEN",
    envvar="SIGSTORE_ID_TOKEN",
    show_envvar=True,
    help="Whose signature it is to be. Default: the CI job's, or by a browser.",
)
@click.option("--sigstore-config", metavar="JSON", type=PATH, help="Trust configuration of another Sigstore.")
@click.option("--unverified", is_flag=True, help="Sign without a certificate (parity.json); the card says UNVERIFIED.")
@accept_table
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
@click.option("--dry-run", is_flag=True, help="Check everything, sign nothing.")
@reports
def sign(folder: Path, unverified: bool, accepted_tables: tuple[str, ...], force: bool, dry_run: bool, as_json: bool,
         **given: Any) -> None:  # fmt: skip
    """Sign all files of DIR, which `converter package` made, and write the signature into it: model.sig.

    First all is checked that `publish` checks: nobody signs weights that are not what their certificate says. The
    signature is a Sigstore bundle by model-signing, whose own tool can verify it, too.
    """
    from converter.cli.families import family_of
    from converter.publish.folder import weights_size
    from converter.publish.signing import check_signer, check_to_sign, sign_folder

    signer = _signer(**given)
    with progress(2 * weights_size(folder), "hashing") as advance:
        checked: Any = {"unverified": unverified, "accepted_tables": accepted_tables, "force": force}
        files = check_to_sign(folder, family_of, **checked, on_bytes=advance)
        bundle = None
        if dry_run:
            check_signer(signer)
        else:
            bundle = sign_folder(folder, files, signer, force=force, on_done=done_with("the signature"))
    if as_json:
        print_json(_json(folder, files, bundle))
    else:
        _print(folder, files, bundle)


def _signer(
    key: Path | None,
    password_env: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    is_sigstore: bool,
    identity_token: str | None,
    sigstore_config: Path | None,
) -> Signer:
    """What the options say. click.UsageError where they do not agree."""
    from converter.publish.signing import Signer

    if (key is None) != is_sigstore:
        raise click.UsageError("say with what to sign: --key PEM, or --sigstore")
    if is_sigstore and (password_env or certificate or chain):
        raise click.UsageError("--password-env, --certificate and --chain belong to --key")
    if not is_sigstore and sigstore_config:
        raise click.UsageError("--sigstore-config belongs to --sigstore")
    if chain and not certificate:
        raise click.UsageError("--chain belongs to --certificate")
    if certificate and password_env:
        raise click.UsageError("with --certificate model-signing takes no password; decrypt the key to sign with it")
    if key is None:
        return Signer(token=identity_token, sigstore=sigstore_config)
    return Signer(key, None if certificate else _password(key, password_env), certificate, chain)


def _password(key: Path, variable: str | None) -> str | None:
    """From the environment variable; of an encrypted key, asked for where somebody is there to answer."""
    if variable is not None:
        if variable not in os.environ:
            raise click.UsageError(f"--password-env: there is no environment variable {plain(variable)}")
        return os.environ[variable]
    try:
        with key.open("rb") as file:
            is_encrypted = b"ENCRYPTED" in file.read(1 << 16)
    except OSError as error:
        raise CaptureError(f"{file_name(key)}: cannot be read: {error.strerror}. Check the path.") from None
    if not is_encrypted:
        return None
    if not sys.stdin.isatty():
        raise click.UsageError(f"{file_name(key)} is encrypted: give --password-env NAME, or decrypt it")
    return str(click.prompt(f"password of {file_name(key)}", hide_input=True, err=True))


def _json(folder: Path, files: list[LocalFile], bundle: Bundle | None) -> dict[str, Any]:
    from converter.publish.signature import claimed

    return {
        "folder": str(folder),
        "written": bundle is not None,
        "bundle": None if bundle is None else str(bundle.path),
        "method": bundle and bundle.method,
        "signer": None if bundle is None else claimed(bundle),
        "files": [{"name": file.name, "size": file.hashes.size, "sha256": file.hashes.sha256} for file in files],
    }


def _print(folder: Path, files: list[LocalFile], bundle: Bundle | None) -> None:
    from converter.publish.signature import claimed

    for file in files:
        click.echo(f"  {gigabytes(file.hashes.size):>10}  {plain(file.name)}")
    if bundle is None:
        click.echo(f"dry run: {counted(len(files), 'file')} would be signed; nothing was written")
    else:
        click.echo(f"signed: {counted(len(files), 'file')}, by {claimed(bundle)}")
        click.echo(f"written: {bundle.path}")
