"""`converter publish`: a converted model on the Hugging Face Hub, as one commit that is read back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import PATH, accept_table, done_with, note, print_json, progress, reports, told
from converter.cli.places import SOURCE, destination, places, source
from converter.display import counted, gigabytes, plain

if TYPE_CHECKING:
    from converter.publish.commit import Publication
    from converter.publish.folder import LocalFile

_EPILOG = """\b
Examples:
  converter publish glip-t/ org/glip-t --dry-run
  converter publish glip-t/ org/glip-t
  converter publish glip-t/ org/glip-t --create-pr --message "Convert again"
  converter publish glip-t/ org/glip-t --revision fp16 --json
  converter publish mine/ org/mine --accept-table HASH
\b
Needs a token that may write: hf auth login, or HF_TOKEN.
A run that was interrupted is completed by running it again.
\b
Exit codes: 0 published, or already so; 7 config.json or conversion.json describes no such model;
8 something is not as it was certified or recorded, or was made by a table that was never released; 9 not published."""


@click.command(epilog=_EPILOG)
@places(
    source("What `converter package` made.", "DIR", "folder", PATH),
    destination("Repository of the Hub: org/name.", "REPO_ID", "repo_id", SOURCE),
)
@click.option("--revision", help="Branch to commit to.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of changing main.")
@click.option("--message", help="First line of the commit.")
@click.option(
    "--public/--private",
    "public",
    default=None,
    help="Visibility of a repository that this run creates.  [default: private]",
)
@click.option("--unverified", is_flag=True, help="Publish without a certificate; the card is marked UNVERIFIED.")
@accept_table
@click.option("--dry-run", is_flag=True, help="List what would be uploaded and deleted; change nothing.")
@reports
def publish(
    folder: Path,
    repo_id: str,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    public: bool | None,
    unverified: bool,
    accepted_tables: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the Hub's repository REPO_ID (org/name) hold what DIR holds.

    DIR is what `converter package` makes. First its weights, configuration, ledger, card and certificate are checked
    against one another. Then one commit uploads files that changed and deletes shards and documents that DIR no longer
    has. At the end every file's hash is compared with the Hub's.
    """
    from converter.cli.families import family_of
    from converter.hub.requests import show_progress
    from converter.publish.commit import publish as publish_folder
    from converter.publish.folder import weights_size

    show_progress(sys.stderr.isatty() and not as_json and not told().is_quiet)
    with progress(weights_size(folder), "hashing") as advance:
        done = publish_folder(
            folder,
            repo_id,
            family_of,
            revision=revision,
            create_pr=create_pr,
            message=message,
            private=None if public is None else not public,
            unverified=unverified,
            accepted_tables=accepted_tables,
            dry_run=dry_run,
            on_bytes=advance,
            on_done=done_with(f"{repo_id} on the Hub") if not dry_run else lambda: None,
            say=note,
        )
    if as_json:
        print_json(_json(done, dry_run))
    else:
        click.echo("\n".join(_text(done, dry_run)))


def _text(done: Publication, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    about = "private" if done.private else "public"
    about += f", {would}made now" if done.is_new else ""
    if done.is_new is None:
        about = "no such repository, or one that is not visible without a token"
    lines = [f"{done.url} ({about}), {plain(done.revision)}"]
    lines += [f"  {would}uploaded   {_file(file)}" for file in done.uploaded]
    lines += [f"  {would}deleted    {plain(name)}" for name in done.deleted]
    lines += [f"  unchanged  {_file(file)}" for file in done.unchanged]
    if done.other:
        lines.append(f"  also there, left alone: {', '.join(map(plain, done.other))}")
    if dry_run:
        size = gigabytes(sum(file.hashes.size for file in done.uploaded))
        return [*lines, f"dry run: {counted(len(done.uploaded), 'file')}, {size} to upload; nothing was changed"]
    if done.commit is None:
        lines.append("nothing to do: the Hub has these files; no commit was made")
    else:
        lines.append(f"pull request: {done.pull_request}" if done.pull_request else f"commit: {done.commit}")
    return [*lines, f"checked on the Hub: {counted(done.verified, 'file')}, the same hashes as here"]


def _file(file: LocalFile) -> str:
    return f"{plain(file.name)}, {gigabytes(file.hashes.size)}"


def _json(done: Publication, dry_run: bool) -> dict[str, Any]:
    def of(files: tuple[LocalFile, ...]) -> list[dict[str, Any]]:
        return [{"name": file.name, "size": file.hashes.size, "sha256": file.hashes.sha256} for file in files]

    return {
        "repository": done.repo_id,
        "revision": done.revision,
        "url": done.url,
        "dry_run": dry_run,
        "new": done.is_new,
        "private": done.private,
        "parent": done.head,
        "commit": done.commit,
        "pull_request": done.pull_request,
        "uploaded": of(done.uploaded),
        "unchanged": of(done.unchanged),
        "deleted": list(done.deleted),
        "other": list(done.other),
        "verified": done.verified,
    }
