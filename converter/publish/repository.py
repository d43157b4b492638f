"""The repository that is published to: whether it may be written, whether it is there, and what it holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from converter import __version__
from converter.display import plain, quoted
from converter.errors import HubError
from converter.hub.reference import parse_reference
from converter.hub.requests import Failure, Retry, has_token, insist, reach

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import GitCommitInfo, RepoFile

T = TypeVar("T")
MAIN = "main"


@dataclass(kw_only=True, eq=False)
class Repository:
    """A repository of the Hub, asked patiently, at one revision.

    `private` and `create_pr` are what was asked for. Whatever is refused is a HubError that ends in `again`, the
    command that tries once more.
    """

    repo_id: str
    revision: str
    private: bool | None
    create_pr: bool
    again: str
    retry: Retry
    say: Callable[[str], object]

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi

        self.api: HfApi = HfApi(library_name="converter", library_version=__version__)
        self.url = f"{self.api.endpoint}/{self.repo_id}"
        self._exists = False
        self._is_reached = False

    def check_user(self) -> None:
        """HubError where the token in use may not write."""
        user = self.ask(self.api.whoami, "who is signed in")
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"{self.repo_id}: the token in use may only read. Make one that may write, sign in with it "
                f"(hf auth login), and run: {self.again}"
            )

    def look(self, *, create: bool) -> tuple[bool | None, bool | None, str | None]:
        """Whether it is new, whether it is private, and the commit that its revision is at.

        `create`: make it if it is new. Otherwise a new one has no commit, and without a token all three are None.
        """
        info = self._answer(lambda: self.api.model_info(self.repo_id))
        is_new = isinstance(info, Failure) and info.kind == "repository"
        if is_new:
            self._check_branch_of_new()
            if not create:
                return (True, self.private is not False, None) if has_token() else (None, None, None)
            self.ask(
                lambda: self.api.create_repo(self.repo_id, private=self.private is not False, exist_ok=True),
                "creating the repository",
            )
            info = self.ask(lambda: self.api.model_info(self.repo_id), "looking at the new repository")
        if isinstance(info, Failure):
            self.refuse(info, "looking at the repository")
        self._exists = True
        if self.private is not None and bool(info.private) != self.private:
            there, wanted = ("private", "public") if info.private else ("public", "private")
            raise HubError(
                f"{self.repo_id}: is {there}, and was to be published as {wanted}. Change it in its settings, "
                f"{self.url}/settings, or leave out --{wanted}."
            )
        if self.revision != MAIN:
            info = self._branch()
        if self.revision == info.sha:
            raise HubError(
                f"{self.repo_id}: {self.revision} is a commit, and a commit cannot be changed. Name a branch with "
                "--revision."
            )
        return is_new, bool(info.private), str(info.sha)

    def _check_branch_of_new(self) -> None:
        if self.revision != MAIN:
            private = "" if self.private is False else " --private"
            raise HubError(
                f"{self.repo_id}: no such repository, or none that this token may see, so no branch "
                f"{plain(self.revision)} to commit to. Leave out --revision, or make both first "
                f"(hf repos create {self.repo_id}{private}, {self._make_branch}), then run: {self.again}"
            )

    def _branch(self) -> Any:
        """What the Hub tells of the branch; HubError for a tag."""
        refs = self.ask(lambda: self.api.list_repo_refs(self.repo_id), "listing its branches")
        if any(self.revision in (tag.name, tag.ref) for tag in refs.tags) and all(
            self.revision != branch.name for branch in refs.branches
        ):
            raise HubError(
                f"{self.repo_id}: {plain(self.revision)} is a tag, and stays at its commit. Name a branch with "
                "--revision."
            )
        return self.ask(
            lambda: self.api.model_info(self.repo_id, revision=self.revision), f"looking at {self.revision}"
        )

    @property
    def _make_branch(self) -> str:
        return shlex.join(["hf", "repos", "branch", "create", self.repo_id, self.revision])

    def tree(self, commit: str) -> dict[str, RepoFile]:
        """The files of a commit by their paths."""
        from huggingface_hub.hf_api import RepoFile

        entries = self.ask(
            lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)), "listing its files"
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def history(self, revision: str, doing: str) -> list[GitCommitInfo]:
        """The commits of a revision, newest first."""
        return self.ask(lambda: self.api.list_repo_commits(self.repo_id, revision=revision), doing)

    def pull_requests(self) -> list[int]:
        """Numbers of the pull requests, newest first."""
        refs = self.ask(
            lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True), "listing pull requests"
        )
        names = [ref.ref.rpartition("/")[2] for ref in refs.pull_requests or ()]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def ask(self, request: Callable[[], T], doing: str) -> T:
        """The answer to an idempotent request."""
        answer = self._answer(request)
        if isinstance(answer, Failure):
            self.refuse(answer, doing)
        return answer

    def _answer(self, request: Callable[[], T]) -> T | Failure:
        answer = (insist if self._is_reached else reach)(request, self.retry, self.say)
        self._is_reached = True
        return answer

    def refuse(self, failure: Failure, doing: str) -> NoReturn:
        """Raise the HubError that says what failed and what to do about it."""
        may_propose = self._exists and not self.create_pr and self.revision == MAIN
        hints = {
            "token": "Sign in (hf auth login) or set HF_TOKEN, and run",
            "access": "Sign in with a token that may write there (hf auth login)"
            f"{', or propose it with --create-pr' if may_propose else ''}, and run",
            "repository": "Check the name, or sign in with a token that may see it (hf auth login), and run",
            "revision": f"Make that branch first ({self._make_branch}), then run",
            "offline": "Unset HF_HUB_OFFLINE, and run",
            "busy": "What was received is kept; run again",
            "lost": "What was received is kept; run again",
            "refused": "Check the connection, and run",
            "unreachable": "Check the connection, and run",
        }
        if failure.status == 401:
            hints["access"] = "Sign in again (hf auth login) or set HF_TOKEN, and run"
        hint = hints.get(failure.kind, "Change what it names, then run")
        raise HubError(f"{self.repo_id}: {doing}: {failure.text}. {hint}: {self.again}")


def command_line(
    folder: Path,
    repo_id: str,
    revision: str,
    create_pr: bool,
    message: str | None,
    private: bool | None,
    unverified: bool,
    accepted_tables: Collection[str],
) -> str:
    """The command line that does the same again."""
    options = [] if revision == MAIN else ["--revision", revision]
    options += ["--create-pr"] if create_pr else []
    options += ["--message", message.strip()] if message and message.strip() else []
    options += [] if private is None else ["--private" if private else "--public"]
    options += ["--unverified"] if unverified else []
    options += [word for sha256 in accepted_tables for word in ("--accept-table", sha256)]
    return shlex.join(["converter", "publish", str(folder), repo_id, *options])


def check_repository_name(repo_id: str) -> None:
    """HubError unless it is `org/name`, of a repository that can be."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    parsed = parse_reference(repo_id)
    problem = ""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = f" ({plain(str(error), 400).rstrip('.')})"
    if problem or parsed is None or parsed.file or parsed.revision or parsed.repo_id != repo_id:
        raise HubError(f"{quoted(repo_id)}: is not the name of a repository{problem}. Expected org/name.")
