"""One commit on the Hub: compared before, made once, read back after.

Large files go first, where nobody sees them; then one commit adds, replaces and deletes everything at once, on the
parent that the comparison was made with, so that it can neither be made twice nor overwrite what somebody else pushed
meanwhile. Where the answer to a commit is lost, the history of the repository says whether it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import __version__
from converter.display import listed, plain, quoted
from converter.errors import HubError
from converter.hub.requests import Failure, Retry, attempt, pause, quiet
from converter.hub.resolve import SIGNATURE
from converter.parity.family import Family
from converter.publish.folder import GIT_ATTRIBUTES, LocalFile, check_signed, is_written, read_folder
from converter.publish.repository import MAIN, Repository, check_repository_name, command_line
from converter.publish.upload import upload

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

_NOT_DONE = (429, 503)  # answers to a request that the Hub did not begin to carry out
_RECENT = 20  # pull requests looked at for one that proposes the same


@dataclass(frozen=True, slots=True)
class Publication:
    """What was, or would be, published.

    `commit` is None if nothing was done, or was to be done; `head` is what was compared with (None: no such repository
    yet). `is_new` and `private` are None where only a token could tell. `other`: files there that `publish` leaves
    alone. `verified`: files whose hashes the Hub stated as they are here.
    """

    repo_id: str
    revision: str
    url: str
    is_new: bool | None
    private: bool | None
    head: str | None
    commit: str | None
    pull_request: str | None
    uploaded: tuple[LocalFile, ...]
    unchanged: tuple[LocalFile, ...]
    deleted: tuple[str, ...]
    other: tuple[str, ...]
    verified: int


def publish(
    folder: Path,
    repo_id: str,
    family_of: Callable[[str], Family[Any]],
    *,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    private: bool | None = None,
    unverified: bool = False,
    accepted_tables: Collection[str] = (),
    dry_run: bool = False,
    retry: Retry | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
    on_done: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda line: None,
) -> Publication:
    """Make the repository hold what `folder` holds, by one commit on `revision` or as a pull request.

    family_of: the family of a model by its name. private: of a repository that is created now (default: yes).
    unverified: publish without a certificate; the card is marked so. accepted_tables: hashes of tables that were never
    released, and may have made the weights. dry_run: only compare. `on_bytes` gets the bytes hashed before anything is
    sent, `say` lines for people; `on_done` is called once every file was read back.
    Raises HubError; CaptureError for a certificate that is invalid or of other weights; ModelError for documents of
    other weights; CheckpointError for weights that cannot be read. An interruption says what is known to be published.
    """
    check_repository_name(repo_id)
    _check_options(revision, message, create_pr)
    files = read_folder(folder, family_of, unverified=unverified, accepted_tables=accepted_tables, on_bytes=on_bytes)
    check_signed(folder, files)
    with quiet():
        repository = Repository(
            repo_id=repo_id,
            revision=revision or MAIN,
            private=private,
            create_pr=create_pr,
            again=command_line(
                folder, repo_id, revision or MAIN, create_pr, message, private, unverified, accepted_tables
            ),
            retry=retry or Retry(),
            say=say,
        )
        publisher = _Publisher(repository, files, message)
        try:
            done = publisher.run(dry_run)
            on_done()
            return done
        except KeyboardInterrupt:
            raise KeyboardInterrupt(publisher.outcome) from None


def _check_options(revision: str | None, message: str | None, create_pr: bool) -> None:
    """HubError for those that nothing can be published with."""
    if revision is not None and not revision.strip():
        raise HubError(f"--revision: {quoted(revision)} is not the name of a branch. Leave it out for {MAIN}.")
    for option, value in (("--revision", revision), ("--message", message)):
        if not _is_text(value or ""):
            raise HubError(f"{option}: {quoted(value or '')} is not UTF-8. Write it anew.")
    if create_pr and revision not in (None, MAIN):
        raise HubError(f"--create-pr proposes a change to {MAIN}; leave out --revision {plain(str(revision))}.")


def _is_text(value: str) -> bool:
    """Whether it can be sent: bytes of a command line that are not UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Change:
    """What one commit on `head` does: files added or replaced, and names deleted."""

    head: str
    uploads: tuple[LocalFile, ...]
    deleted: tuple[str, ...]


class _Publisher:
    """One publication: what is there, what is to be sent, and the commit. `outcome`: what is known of it meanwhile."""

    def __init__(self, repository: Repository, files: Sequence[LocalFile], message: str | None) -> None:
        self._repository = repository
        self._api = repository.api
        self._repo_id = repository.repo_id
        self._files = files
        self._message = (message or "").strip() or f"Publish with converter {__version__}"
        self._title = self._message.splitlines()[0].strip()  # as the history states it
        self.outcome = "nothing was published"

    def run(self, dry_run: bool) -> Publication:
        repository = self._repository
        if not dry_run:
            repository.check_user()
        is_new, is_private, head = repository.look(create=not dry_run)
        remote = {} if head is None else repository.tree(head)
        uploads = tuple(file for file in self._files if not _is_there(file, remote))
        unchanged = tuple(file for file in self._files if _is_there(file, remote))
        more = sorted(remote.keys() - {file.name for file in self._files} - {GIT_ATTRIBUTES})
        deleted = tuple(name for name in more if is_written(name))
        other = tuple(name for name in more if not is_written(name))
        if other and any(file.name == SIGNATURE for file in self._files):
            raise HubError(
                f"{self._repo_id}: holds {listed(map(plain, other))}, of which {SIGNATURE} is not, and `converter "
                f"verify` refuses what is not signed. Delete it there, or publish elsewhere: {repository.again}"
            )

        def publication(commit: str | None, pull_request: str | None, verified: int) -> Publication:
            return Publication(
                self._repo_id, repository.revision, repository.url, is_new, is_private, head, commit, pull_request,
                uploads, unchanged, deleted, other, verified,
            )  # fmt: skip

        if dry_run:
            return publication(None, None, 0)
        if not uploads and not deleted:
            return publication(None, None, len(unchanged))
        assert head is not None  # the repository was created
        change = _Change(head, uploads, deleted)
        commit, pull_request = self._proposed(change) if repository.create_pr else (None, None)
        if commit is not None:
            repository.say(f"{pull_request} proposes this already")
        else:
            commit, pull_request = self._commit(change)
            self.outcome = f"commit {commit} was made, but not read back; run it again for that: {repository.again}"
        self._read_back(commit, change)
        return publication(commit, pull_request, len(self._files))

    def _commit(self, change: _Change) -> tuple[str, str | None]:
        """The commit's id and the pull request's address."""
        from huggingface_hub import CommitOperationDelete

        repository = self._repository
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *upload(change.uploads, repository),
            *(CommitOperationDelete(name, is_folder=False) for name in change.deleted),
        ]
        self.outcome = (
            "whether the commit was made is not known; running the same command again looks for it, and commits only "
            f"if it is not there: {repository.again}"
        )
        answer: CommitInfo | Failure
        for number in range(repository.retry.attempts):
            answer = attempt(
                lambda: self._api.create_commit(
                    self._repo_id,
                    operations,
                    commit_message=self._message,
                    revision=repository.revision,
                    create_pr=repository.create_pr,
                    parent_commit=change.head,
                )
            )
            if not isinstance(answer, Failure):
                return answer.oid, answer.pr_url
            if answer.kind not in ("stale", "other") and not answer.passes:
                break
            commit, pull_request = self._found(change, answer, number)
            if commit is not None:
                repository.say(f"the commit was made: {commit}")
                return commit, pull_request
        assert isinstance(answer, Failure)
        repository.refuse(answer, "committing; nothing was published")

    def _found(self, change: _Change, failure: Failure, number: int) -> tuple[str | None, str | None]:
        """The commit whose answer was lost; (None, None), after a pause, if none is found and it may be tried again.

        HubError if somebody else committed first, if a second pull request could result, or after the last attempt.
        """
        repository = self._repository
        repository.say(f"committing: {failure.text}; checking whether the commit was made")
        commit, pull_request = self._made(change)
        goes_on = commit is None and failure.passes and pause(number, failure, repository.retry, repository.say)
        if goes_on and repository.create_pr:  # time for it to show: nothing prevents a second pull request
            commit, pull_request = self._made(change)
        if commit is not None:
            return commit, pull_request
        if failure.kind == "stale":
            raise HubError(self._moved(change.head))
        if repository.create_pr and failure.status not in _NOT_DONE:
            raise HubError(
                f"{self._repo_id}: {failure.text}, and no pull request with these files is to be seen. Look at "
                f"{self._api.endpoint}/{self._repo_id}/discussions in a while. Running {repository.again} looks there "
                "first, too, and opens another only if there is none."
            )
        if not goes_on:
            repository.refuse(failure, "committing; nothing was published")
        return None, None

    def _made(self, change: _Change) -> tuple[str | None, str | None]:
        """The commit, and pull request, whose answer was lost: on the same head, with our message and our files."""
        repository = self._repository
        if repository.create_pr:
            return self._proposed(change)
        history = repository.history(repository.revision, "checking whether the commit was made")
        ids = [commit.commit_id for commit in history]
        if change.head not in ids[1:]:
            return None, None
        child = history[ids.index(change.head) - 1]
        if child.title.strip() != self._title or self._differences(child.commit_id, change):
            return None, None
        return child.commit_id, None

    def _proposed(self, change: _Change) -> tuple[str | None, str | None]:
        """The open pull request that proposes the same on the same commit, if there is one."""
        repository = self._repository
        for number in repository.pull_requests()[:_RECENT]:
            history = repository.history(f"refs/pr/{number}", f"looking at pull request {number}")
            if len(history) < 2 or history[0].title.strip() != self._title or history[1].commit_id != change.head:
                continue
            details = repository.ask(
                partial(self._api.get_discussion_details, self._repo_id, number), f"looking at pull request {number}"
            )
            if details.status in ("open", "draft") and not self._differences(history[0].commit_id, change):
                return history[0].commit_id, f"{self._api.endpoint}/{self._repo_id}/discussions/{number}"
        return None, None

    def _moved(self, head: str) -> str:
        revision = self._repository.revision
        info = attempt(lambda: self._api.model_info(self._repo_id, revision=revision))
        now = "moved on" if isinstance(info, Failure) else f"is now at {info.sha}"
        return (
            f"{self._repo_id}: somebody else changed {plain(revision)} meanwhile: it {now}, expected {head}. "
            f"Nothing was published. Look at {self._api.endpoint}/{self._repo_id}/commits/{plain(revision)}, "
            f"then publish on top of it: {self._repository.again}"
        )

    def _differences(self, commit: str, change: _Change) -> list[str]:
        """How the files of a commit differ from ours."""
        remote = self._repository.tree(commit)
        problems = []
        for file in self._files:
            there = remote.get(file.name)
            if there is None:
                problems.append(f"{file.name} is missing")
            elif not file.hashes.match(there):
                own, stated = file.hashes.beside(there)
                problems.append(f"{file.name} has {stated}, expected {own}")
        return problems + [f"{name} is still there" for name in change.deleted if name in remote]

    def _read_back(self, commit: str, change: _Change) -> None:
        problems = self._differences(commit, change)
        if problems:
            raise HubError(
                f"{self._repo_id}: commit {commit} was made, but does not hold what was sent: "
                f"{'; '.join(map(plain, problems[:5]))}{'; ...' if problems[5:] else ''}. Do not use it; run again: "
                f"{self._repository.again}"
            )


def _is_there(file: LocalFile, remote: dict[str, RepoFile]) -> bool:
    return file.name in remote and file.hashes.match(remote[file.name])
