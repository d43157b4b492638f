"""One commit on the Hub: compared before, made once, read back after.

Large files go first, where nobody sees them; then one commit adds, replaces and deletes everything at once, on the
parent that the comparison was made with, so that it can neither be made twice nor overwrite what somebody else pushed
meanwhile. Where the answer to a commit is lost, the history of the repository says whether it was made.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from converter import __version__
from converter.display import file_name, plain, quoted
from converter.errors import HubError
from converter.hub import Failure, Retry, attempt, has_token, insist, parse_reference, pause, quiet
from converter.publish.folder import GIT_ATTRIBUTES, LocalFile, is_written, read_folder

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
MAIN = "main"
_NOT_DONE = (429, 503)  # answers that say that a request was not even begun
_RECENT = 20  # pull requests looked at for one that proposes the same


@dataclass(frozen=True, slots=True)
class Publication:
    """What was, or would be, published.

    `commit` is None if nothing was done, or was to be done; `head` is what was compared with (None: no such repository
    yet). `is_new` and `private` are None where only a token could tell. `other`: files that are there, too, and no
    business of ours. `verified`: files whose hashes the Hub stated as they are here.
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
    *,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    private: bool | None = None,
    unverified: bool = False,
    dry_run: bool = False,
    retry: Retry | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
    say: Callable[[str], object] = lambda line: None,
) -> Publication:
    """Make the repository hold what `folder` holds, by one commit on `revision` or as a pull request.

    private: of a repository that is created now (default: yes). unverified: publish without a certificate; the card is
    marked so. dry_run: only compare. `on_bytes` gets the bytes hashed before anything is sent, `say` lines for people.
    Raises HubError, CaptureError for a certificate that is none or not of the weights, ModelError for documents that
    are not, CheckpointError for weights that cannot be read. An interruption says what is known to be published.
    """
    _check_repository_name(repo_id)
    if revision is not None and not revision.strip():
        raise HubError(f"--revision: {quoted(revision)} names no branch. Leave it out for {MAIN}.")
    for option, value in (("--revision", revision), ("--message", message)):
        if not _is_text(value or ""):
            raise HubError(f"{option}: {quoted(value or '')} is not UTF-8. Write it anew.")
    if create_pr and revision not in (None, MAIN):
        raise HubError(f"--create-pr proposes a change to {MAIN}; leave out --revision {plain(str(revision))}.")
    files = read_folder(folder, unverified=unverified, on_bytes=on_bytes)
    with quiet():
        publisher = _Publisher(
            folder,
            files,
            repo_id,
            revision or MAIN,
            create_pr,
            (message or "").strip(),
            private,
            unverified,
            retry or Retry(),
            say,
        )
        try:
            return publisher.run(dry_run)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(publisher.outcome) from None


def _check_repository_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    parsed = parse_reference(repo_id)
    problem = ""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = f" ({plain(str(error), 400).rstrip('.')})"
    if problem or parsed is None or parsed.file or parsed.revision or parsed.repo_id != repo_id:
        raise HubError(f"{quoted(repo_id)}: names no repository{problem}. Expected org/name.")


def _is_text(value: str) -> bool:
    """Whether it can be sent: bytes of a command line that are no UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Publisher:
    """One publication: what is there, what is to be sent, and the commit."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[LocalFile],
        repo_id: str,
        revision: str,
        create_pr: bool,
        message: str,
        private: bool | None,
        unverified: bool,
        retry: Retry,
        say: Callable[[str], object],
    ) -> None:
        from huggingface_hub import HfApi

        self._api: HfApi = HfApi(library_name="converter", library_version=__version__)
        self._files = files
        self._repo_id = repo_id
        self._revision = revision
        self._create_pr = create_pr
        self._message = message or f"Publish with converter {__version__}"
        self._title = self._message.splitlines()[0].strip()  # as the history states it
        self._private = private
        self._retry = retry
        self._say = say
        self._exists = False
        self.outcome = "nothing was published"
        options = [] if revision == MAIN else ["--revision", revision]
        options += ["--create-pr"] if create_pr else []
        options += ["--message", message] if message else []
        options += [] if private is None else ["--private" if private else "--public"]
        options += ["--unverified"] if unverified else []
        self._command = shlex.join(["converter", "publish", str(folder), repo_id, *options])

    def run(self, dry_run: bool) -> Publication:
        if not dry_run:
            self._check_user()
        is_new, is_private, head = self._repository(dry_run)
        remote = {} if head is None else self._tree(head)
        uploads = [file for file in self._files if not _is_there(file, remote)]
        unchanged = [file for file in self._files if _is_there(file, remote)]
        more = sorted(remote.keys() - {file.name for file in self._files} - {GIT_ATTRIBUTES})
        deleted = [name for name in more if is_written(name)]
        other = [name for name in more if not is_written(name)]

        def publication(commit: str | None, pull_request: str | None, verified: int) -> Publication:
            url = f"{self._api.endpoint}/{self._repo_id}"
            return Publication(
                self._repo_id, self._revision, url, is_new, is_private, head, commit, pull_request,
                tuple(uploads), tuple(unchanged), tuple(deleted), tuple(other), verified,
            )  # fmt: skip

        if dry_run:
            return publication(None, None, 0)
        if not uploads and not deleted:
            return publication(None, None, len(unchanged))
        assert head is not None  # the repository was created
        commit, pull_request = self._proposed(head, deleted) if self._create_pr else (None, None)
        if commit is not None:
            self._say(f"{pull_request} proposes this already")
        else:
            commit, pull_request = self._commit(head, uploads, deleted)
            self.outcome = f"commit {commit} was made, but not read back; run it again for that: {self._command}"
        self._read_back(commit, deleted)
        return publication(commit, pull_request, len(self._files))

    # before

    def _check_user(self) -> None:
        user = self._ask(self._api.whoami, "who is signed in")
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"{self._repo_id}: the token in use may only read. Make one that may write, sign in with it "
                f"(hf auth login), and run: {self._command}"
            )

    def _repository(self, dry_run: bool) -> tuple[bool | None, bool | None, str | None]:
        """Whether it is new, whether it is private, and the commit that its revision is at."""
        info = insist(lambda: self._api.model_info(self._repo_id), self._retry, self._say)
        is_new = isinstance(info, Failure) and info.kind == "repository"
        if is_new:
            if self._revision != MAIN:
                private = "" if self._private is False else " --private"
                raise HubError(
                    f"{self._repo_id}: no such repository, or none that this token may see, so no branch "
                    f"{plain(self._revision)} to commit to. Leave out --revision, or make both first "
                    f"(hf repos create {self._repo_id}{private}, {self._make_branch}), then run: {self._command}"
                )
            if dry_run:
                return (True, self._private is not False, None) if has_token() else (None, None, None)
            self._ask(
                lambda: self._api.create_repo(self._repo_id, private=self._private is not False, exist_ok=True),
                "creating the repository",
            )
            info = self._ask(lambda: self._api.model_info(self._repo_id), "looking at the new repository")
        if isinstance(info, Failure):
            self._refuse(info, "looking at the repository")
        self._exists = True
        if self._private is not None and bool(info.private) != self._private:
            there, wanted = ("private", "public") if info.private else ("public", "private")
            raise HubError(
                f"{self._repo_id}: is {there}, and was to be published as {wanted}. Change it in its settings, "
                f"{self._api.endpoint}/{self._repo_id}/settings, or leave out --{wanted}."
            )
        if self._revision != MAIN:
            refs = self._ask(lambda: self._api.list_repo_refs(self._repo_id), "listing its branches")
            if any(self._revision in (tag.name, tag.ref) for tag in refs.tags) and all(
                self._revision != branch.name for branch in refs.branches
            ):
                raise HubError(
                    f"{self._repo_id}: {plain(self._revision)} is a tag, and stays at its commit. Name a branch with "
                    "--revision."
                )
            info = self._ask(
                lambda: self._api.model_info(self._repo_id, revision=self._revision), f"looking at {self._revision}"
            )
        if self._revision == info.sha:
            raise HubError(
                f"{self._repo_id}: {self._revision} is a commit, and a commit cannot be changed. Name a branch with "
                "--revision."
            )
        return is_new, bool(info.private), str(info.sha)

    def _tree(self, commit: str) -> dict[str, RepoFile]:
        from huggingface_hub.hf_api import RepoFile

        entries = self._ask(
            lambda: list(self._api.list_repo_tree(self._repo_id, recursive=True, revision=commit)), "listing its files"
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    @property
    def _make_branch(self) -> str:
        return shlex.join(["hf", "repos", "branch", "create", self._repo_id, self._revision])

    # the commit

    def _commit(self, head: str, uploads: Sequence[LocalFile], deleted: Sequence[str]) -> tuple[str, str | None]:
        """The commit's id and the pull request's address."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = [CommitOperationAdd(file.name, file.content or str(file.path)) for file in uploads]
        # by content: what was received whole is not sent again, by another attempt or another run
        self._ask(
            lambda: self._api.preupload_lfs_files(
                self._repo_id,
                additions,
                revision=self._revision,
                create_pr=self._create_pr,
                free_memory=False,
            ),
            "uploading; nothing was published",
        )
        for file, addition in zip(uploads, additions, strict=True):
            if addition.upload_info.sha256.hex() != file.hashes.sha256:
                raise HubError(
                    f"{file_name(file.path)}: changed while it was uploaded; nothing was published. Wait until it is "
                    f"written, and run: {self._command}"
                )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *additions,
            *(CommitOperationDelete(name, is_folder=False) for name in deleted),
        ]
        answer: CommitInfo | Failure
        self.outcome = (
            "whether the commit was made is not known; running the same command again looks, and makes it if it was "
            f"not: {self._command}"
        )
        for number in range(self._retry.attempts):
            answer = attempt(
                lambda: self._api.create_commit(
                    self._repo_id,
                    operations,
                    commit_message=self._message,
                    revision=self._revision,
                    create_pr=self._create_pr,
                    parent_commit=head,
                )
            )
            if not isinstance(answer, Failure):
                return answer.oid, answer.pr_url
            if answer.kind != "stale" and not answer.passes:
                self._refuse(answer, "committing; nothing was published")
            self._say(f"committing: {answer.text}; looking whether the commit was made")
            commit, pull_request = self._made(head, deleted)
            goes_on = commit is None and answer.passes and pause(number, answer, self._retry, self._say)
            if goes_on and self._create_pr:  # time for it to show: nothing prevents a second pull request
                commit, pull_request = self._made(head, deleted)
            if commit is not None:
                self._say(f"it was: {commit}")
                return commit, pull_request
            if answer.kind == "stale":
                raise HubError(self._moved(head))
            if self._create_pr and answer.status not in _NOT_DONE:
                raise HubError(
                    f"{self._repo_id}: {answer.text}, and no pull request with these files is to be seen. Look at "
                    f"{self._api.endpoint}/{self._repo_id}/discussions in a while; {self._command} looks, too, before "
                    "it opens another."
                )
            if not goes_on:
                break
        assert isinstance(answer, Failure)
        self._refuse(answer, "committing; nothing was published")

    def _made(self, head: str, deleted: Sequence[str]) -> tuple[str | None, str | None]:
        """The commit, and pull request, whose answer was lost: on `head`, with our message and our files."""
        if self._create_pr:
            return self._proposed(head, deleted)
        history = self._ask(
            lambda: self._api.list_repo_commits(self._repo_id, revision=self._revision),
            "looking whether the commit was made",
        )
        ids = [commit.commit_id for commit in history]
        if head not in ids[1:]:
            return None, None
        child = history[ids.index(head) - 1]
        if child.title.strip() != self._title or self._differences(child.commit_id, deleted):
            return None, None
        return child.commit_id, None

    def _proposed(self, head: str, deleted: Sequence[str]) -> tuple[str | None, str | None]:
        """The open pull request that proposes the same on the same commit, if there is one."""
        refs = self._ask(
            lambda: self._api.list_repo_refs(self._repo_id, include_pull_requests=True), "listing pull requests"
        )
        names = [ref.ref.rpartition("/")[2] for ref in refs.pull_requests or ()]
        numbers = [int(name) for name in names if name.isdecimal()]
        for number in sorted(numbers, reverse=True)[:_RECENT]:
            history = self._ask(
                partial(self._api.list_repo_commits, self._repo_id, revision=f"refs/pr/{number}"),
                f"looking at pull request {number}",
            )
            if len(history) < 2 or history[0].title.strip() != self._title or history[1].commit_id != head:
                continue
            details = self._ask(
                partial(self._api.get_discussion_details, self._repo_id, number),
                f"looking at pull request {number}",
            )
            if details.status in ("open", "draft") and not self._differences(history[0].commit_id, deleted):
                return history[0].commit_id, f"{self._api.endpoint}/{self._repo_id}/discussions/{number}"
        return None, None

    def _moved(self, head: str) -> str:
        info = attempt(lambda: self._api.model_info(self._repo_id, revision=self._revision))
        now = "moved on" if isinstance(info, Failure) else f"is now at {info.sha}"
        return (
            f"{self._repo_id}: somebody else changed {plain(self._revision)} meanwhile: it {now}, expected {head}. "
            f"Nothing was published. Look at {self._api.endpoint}/{self._repo_id}/commits/{plain(self._revision)}, "
            f"then publish on top of it: {self._command}"
        )

    # after

    def _differences(self, commit: str, deleted: Iterable[str]) -> list[str]:
        """How the files of a commit differ from ours."""
        remote = self._tree(commit)
        problems = []
        for file in self._files:
            there = remote.get(file.name)
            if there is None:
                problems.append(f"{file.name} is missing")
            elif not file.hashes.match(there):
                own, stated = file.hashes.beside(there)
                problems.append(f"{file.name} has {stated}, expected {own}")
        return problems + [f"{name} is still there" for name in deleted if name in remote]

    def _read_back(self, commit: str, deleted: Iterable[str]) -> None:
        problems = self._differences(commit, deleted)
        if problems:
            raise HubError(
                f"{self._repo_id}: commit {commit} was made, but does not hold what was sent: "
                f"{'; '.join(map(plain, problems[:5]))}{'; ...' if problems[5:] else ''}. Do not use it; run again: "
                f"{self._command}"
            )

    def _ask(self, request: Callable[[], T], doing: str) -> T:
        answer = insist(request, self._retry, self._say)
        if isinstance(answer, Failure):
            self._refuse(answer, doing)
        return answer

    def _refuse(self, failure: Failure, doing: str) -> NoReturn:
        may_propose = self._exists and not self._create_pr and self._revision == MAIN
        hints = {
            "token": "Sign in (hf auth login) or set HF_TOKEN, and run",
            "access": "Sign in with a token that may write there (hf auth login)"
            f"{', or propose it with --create-pr' if may_propose else ''}, and run",
            "repository": "Check the name, or sign in with a token that may see it (hf auth login), and run",
            "revision": f"Make that branch first ({self._make_branch}), then run",
            "offline": "Unset HF_HUB_OFFLINE, and run",
            "busy": "What was received is kept; run again",
            "lost": "What was received is kept; run again",
        }
        if failure.status == 401:
            hints["access"] = "Sign in again (hf auth login) or set HF_TOKEN, and run"
        hint = hints.get(failure.kind, "Change what it names, then run")
        raise HubError(f"{self._repo_id}: {doing}: {failure.text}. {hint}: {self._command}")


def _is_there(file: LocalFile, remote: dict[str, RepoFile]) -> bool:
    return file.name in remote and file.hashes.match(remote[file.name])
