"""The Hugging Face Hub: requests that are made again when they may be, and models and files of it as local paths.

Every request goes through huggingface_hub, which is imported only here and in `publish`, when it is needed. So are its
settings: `HF_TOKEN` or `hf auth login`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`. The token is never in a variable of
this package; texts of errors are cleaned of it, and errors of the client are not chained to ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from converter.display import file_name, plain, quoted
from converter.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
SCHEME = "hf://"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors"
# what is downloaded of a model: without the card and the report, which nothing here reads
MODEL_FILES = (
    CONFIG, SINGLE, INDEX, SHARD, "conversion.json", "parity.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
)  # fmt: skip
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFERENCE = re.compile(rf"({_NAME}/{_NAME})(?:/([^@]+))?(?:@(.+))?")
_CHUNK = 1 << 20
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is made, and the seconds between: `first`, doubled each time up to `longest`.

    A Hub that asks for more than `patience` seconds is not waited for.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 30.0
    patience: float = 300.0
    sleep: Callable[[float], object] = time.sleep

    def delay(self, attempt: int, failure: Failure) -> float | None:
        """Seconds to wait after attempt 0, 1, ...; None if there is to be no other."""
        if attempt + 1 >= self.attempts:
            return None
        if failure.wait is not None:
            return failure.wait if failure.wait <= self.patience else None
        return min(self.first * 2.0**attempt, self.longest)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gave no answer. `wait`: seconds that the Hub asks to wait; `text`: one line, without secrets."""

    kind: Literal["repository", "revision", "file", "access", "token", "stale", "busy", "lost", "offline", "other"]
    text: str
    status: int | None = None
    wait: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.kind in ("busy", "lost")


@dataclass(frozen=True, slots=True)
class Reference:
    """`org/name`, and of it perhaps one file and a revision: branch, tag, `refs/pr/1` or commit."""

    repo_id: str
    file: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A local file, or a folder with a model, and the commit that it is of."""

    path: Path
    repo_id: str
    commit: str


@dataclass(frozen=True, slots=True)
class Hashes:
    """A file's size in bytes, and its hashes as the Hub states them: of LFS files and of git blobs."""

    size: int
    sha256: str
    blob: str

    def beside(self, remote: RepoFile) -> tuple[str, str]:
        """Our hash and the Hub's, of the kind that the Hub states."""
        if remote.lfs is not None:
            return self.sha256, remote.lfs.sha256
        return self.blob, remote.blob_id

    def match(self, remote: RepoFile) -> bool:
        """Whether `remote` is this content."""
        own, stated = self.beside(remote)
        return own == stated


def hash_file(path: Path, on_bytes: Callable[[int], object] = lambda count: None) -> Hashes:
    """Read a file once. Raises HubError if it cannot be read or changes meanwhile."""
    sha256 = hashlib.sha256()
    try:
        size = path.stat().st_size
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        read = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                blob.update(chunk)
                read += len(chunk)
                on_bytes(len(chunk))
    except OSError as error:
        raise HubError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    if read != size:
        raise HubError(f"{file_name(path)}: changed while it was read. Wait until it is written, and try again.")
    return Hashes(size, sha256.hexdigest(), blob.hexdigest())


def parse_reference(text: str) -> Reference | None:
    """What `org/name[@revision]` or `hf://org/name[/file.pth][@revision]` names; None if it is of neither form."""
    match = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
    if match is None or (match[2] is not None and not text.startswith(SCHEME)):
        return None
    if match[2] is not None and any(part in ("", ".", "..") for part in match[2].split("/")):
        return None
    return Reference(match[1], match[2], match[3])


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    retry: Retry | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
    say: Callable[[str], object] = lambda line: None,
) -> Resolved:
    """A model or file of the Hub as a local path in huggingface_hub's cache, downloaded if it is not there.

    Every file is hashed and compared with what the Hub states for that commit; a damaged one is downloaded once more.
    With HF_HUB_OFFLINE the cache alone is asked, and hashes are compared with those that it names its files by.
    `on_bytes` gets the number of bytes hashed, `say` lines about retries. Raises HubError.
    """
    parsed = parse_reference(reference)
    if parsed is None:
        raise HubError(
            f"{quoted(reference)}: names nothing on the Hub. Expected org/name, or hf://org/name/file.pth, each perhaps "
            "with @revision."
        )
    if revision is not None and parsed.revision not in (None, revision):
        raise HubError(
            f"{quoted(reference)}: names revision {quoted(str(parsed.revision))}, but {quoted(revision)} was asked for. "
            "Give one of them."
        )
    wanted = Reference(parsed.repo_id, parsed.file, revision or parsed.revision)
    retry = retry or Retry()
    with quiet():
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return _from_cache(wanted, cache_dir, on_bytes)
        return _downloaded(wanted, cache_dir, retry, on_bytes, say)


def _downloaded(
    wanted: Reference,
    cache_dir: Path | None,
    retry: Retry,
    on_bytes: Callable[[int], object],
    say: Callable[[str], object],
) -> Resolved:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="converter")
    at = f"{wanted.repo_id}@{wanted.revision}" if wanted.revision else wanted.repo_id

    def ask(request: Callable[[], T]) -> T:
        answer = insist(request, retry, say)
        if isinstance(answer, Failure):
            raise HubError(f"{plain(at)}: {_not_downloaded(answer, wanted)}")
        return answer

    local = ask(lambda: _fetch(api, wanted, cache_dir, offline=False))
    commit = _commit_of(local)
    tree = ask(lambda: list(api.list_repo_tree(wanted.repo_id, recursive=True, revision=commit)))
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    if wanted.file is None:
        _check_model(local, at, tuple(remote))
    names = [wanted.file] if wanted.file else [name for name in remote if is_model_file(name)]
    folder = local if wanted.file is None else _snapshot(local)
    for name in names:
        if hash_file(folder / name, on_bytes).match(remote[name]):
            continue
        say(f"{plain(name)}: damaged in the cache; downloading it again")
        ask(
            partial(
                api.hf_hub_download, wanted.repo_id, name, revision=commit, cache_dir=cache_dir, force_download=True
            )
        )
        found = hash_file(folder / name)
        if not found.match(remote[name]):
            own, stated = found.beside(remote[name])
            raise HubError(
                f"{plain(at)}: {plain(name)} is damaged, and was again when downloaded once more: "
                f"{own} is its hash, the Hub states {stated}. "
                f"Remove {file_name((folder / name).resolve())} and try again later."
            )
    return Resolved(local, wanted.repo_id, commit)


def _from_cache(wanted: Reference, cache_dir: Path | None, on_bytes: Callable[[int], object]) -> Resolved:
    from huggingface_hub import HfApi

    at = f"{wanted.repo_id}@{wanted.revision}" if wanted.revision else wanted.repo_id
    found = attempt(lambda: _fetch(HfApi(), wanted, cache_dir, offline=True))
    if isinstance(found, Failure):
        raise HubError(
            f"{plain(at)}: {plain(wanted.file or 'the model')} is not in the cache, and HF_HUB_OFFLINE is set, so that "
            "the Hub is not asked. Unset it, or download once with it unset."
        )
    if wanted.file is None:
        _check_model(found, at, tuple(path.name for path in found.iterdir()))
    files = [found] if wanted.file else [path for path in found.iterdir() if is_model_file(path.name)]
    for path in files:
        stated = path.resolve().name  # the cache's own: sha256 of LFS files, git's sha1 of others
        if path.is_symlink() and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated):
            hashes = hash_file(path, on_bytes)
            if stated not in (hashes.sha256, hashes.blob):
                raise HubError(
                    f"{plain(at)}: {plain(path.name)} is damaged in the cache. Remove {file_name(path.resolve())}, unset "
                    "HF_HUB_OFFLINE and try again."
                )
    return Resolved(found, wanted.repo_id, _commit_of(found))


def _fetch(api: HfApi, wanted: Reference, cache_dir: Path | None, *, offline: bool) -> Path:
    if wanted.file is not None:
        return Path(
            api.hf_hub_download(
                wanted.repo_id, wanted.file, revision=wanted.revision, cache_dir=cache_dir, local_files_only=offline
            )
        )
    return Path(
        api.snapshot_download(
            wanted.repo_id,
            revision=wanted.revision,
            cache_dir=cache_dir,
            allow_patterns=list(MODEL_FILES),
            local_files_only=offline,
        )
    )


def _snapshot(path: Path) -> Path:
    """The folder of a commit in the cache, `snapshots/COMMIT`, that a path is in, or is."""
    return next(folder for folder in (path, *path.parents) if folder.parent.name == "snapshots")


def _commit_of(path: Path) -> str:
    return _snapshot(path).name


def _check_model(folder: Path, at: str, names: Sequence[str]) -> None:
    """Refuse a repository without a converted model, and one whose index names shards that are not there."""
    there = set(names)
    missing = {CONFIG} - there
    if not {SINGLE, INDEX} & there:
        missing |= {SINGLE}
    elif INDEX in there:
        try:
            weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            missing |= {str(name) for name in weight_map.values()} - there
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise HubError(f"{plain(at)}: {INDEX} is no index of shards. Publish the model again.") from None
    if missing:
        checkpoint = next((name for name in sorted(there) if name.endswith((".pth", ".pt", ".bin"))), None)
        hint = (
            f"It has {plain(checkpoint)}: convert --src hf://{at.split('@')[0]}/{plain(checkpoint)}"
            if checkpoint
            else "Check the name and the revision"
        )
        raise HubError(f"{plain(at)}: holds no converted model: no {', '.join(map(plain, sorted(missing)))}. {hint}.")


def is_model_file(name: str) -> bool:
    """Whether a file of a repository belongs to a model, as this package writes them."""
    return any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def _not_downloaded(failure: Failure, wanted: Reference) -> str:
    hints = {
        "repository": "no such repository, or this token may not see it. Check the name, or sign in: hf auth login",
        "revision": "no such revision. Check its name",
        "file": f"no file {quoted(str(wanted.file))} there. Check its name",
        "access": "this token may not read it. Ask for access on its page, or sign in: hf auth login",
        "busy": f"{failure.text}. Try again later, or set HF_HUB_OFFLINE=1 to use what is in the cache",
        "lost": f"{failure.text}. Check the connection, or set HF_HUB_OFFLINE=1 to use what is in the cache",
    }
    return hints.get(failure.kind, failure.text) + "."


# Requests


@contextmanager
def quiet() -> Iterator[None]:
    """Keep huggingface_hub's own notes back: they name addresses with signatures in them."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


def show_progress(shown: bool) -> None:
    """Whether huggingface_hub draws its bars, for the rest of the process."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if shown else disable_progress_bars)()


def attempt(request: Callable[[], T]) -> T | Failure:
    """Make a request once. What the client raises becomes a value, so that no traceback can carry it further."""
    try:
        return request()
    except HubError:
        raise
    except Exception as error:
        return _failure(error)


def insist(request: Callable[[], T], retry: Retry, say: Callable[[str], object]) -> T | Failure:
    """Make a request that changes nothing when made twice, until it succeeds or cannot."""
    for number in range(retry.attempts):
        answer = attempt(request)
        if not isinstance(answer, Failure) or not answer.passes or not pause(number, answer, retry, say):
            break
    return answer


def pause(number: int, failure: Failure, retry: Retry, say: Callable[[str], object]) -> bool:
    """Wait before another attempt; False if there is to be none."""
    delay = retry.delay(number, failure)
    if delay is None:
        return False
    say(f"{failure.text}; again in {delay:g} s ({number + 2} of {retry.attempts})")
    retry.sleep(delay)
    return True


def _failure(error: Exception) -> Failure:
    from huggingface_hub import errors

    # an upload's own error is wrapped by a plain RuntimeError, one of a download by "not in the cache"
    while (
        isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) or type(error) is ValueError
    ) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    text = _clean(getattr(error, "server_message", None) or str(error) or type(error).__name__)
    text = f"the Hub answered {status}: {text}" if status and not text.startswith(str(status)) else text
    transport = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]  # httpx, or httpx2
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return Failure("offline", text)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Failure("token", "no token was found")
    if isinstance(error, errors.GatedRepoError):
        return Failure("access", text, status)
    if isinstance(error, errors.RepositoryNotFoundError):
        return Failure("repository", text, status)
    if isinstance(error, errors.RevisionNotFoundError):
        return Failure("revision", text, status)
    if isinstance(error, errors.EntryNotFoundError):
        return Failure("file", text, status)
    if status in (401, 403):
        return Failure("access", text, status)
    if status == 412:
        return Failure("stale", text, status)
    if status in _TRANSIENT_STATUS:
        return Failure("busy", text, status, _wait(response.headers) if response is not None else None)
    if isinstance(error, transport.TimeoutException | transport.NetworkError | transport.RemoteProtocolError):
        return Failure("lost", f"the connection was lost ({text})")
    if isinstance(error, UnicodeEncodeError):
        return Failure("token", "the token holds what no token has")
    if isinstance(error, json.JSONDecodeError):
        return Failure("busy", "the Hub's answer is no JSON")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return Failure("lost", "the download ended too early")
    return Failure("other", text, status)


def _wait(headers: Any) -> float | None:
    """Seconds asked for by Retry-After, as a number or a date, or by the rate limit's headers."""
    value = str(headers.get("retry-after") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    if value:
        try:
            return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
        except (TypeError, ValueError):
            return None
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})", str(headers.get("ratelimit") or ""))
    return float(limit[1]) if limit else None


def _clean(text: str) -> str:
    """One line without tokens and without what follows `?` in an address, where signatures are."""
    from huggingface_hub import get_token

    try:
        secret = get_token()
    except Exception:  # what the client says about it is not to be shown either
        secret = None
    if secret:
        text = text.replace(secret, "[token]")
    text = re.sub(r"\bhf_[A-Za-z0-9_]{8,}|(?<=Bearer )[^\s'\"]+", "[token]", text)
    text = re.sub(r"(https?://[^\s?]*)\?\S+", r"\1?...", text)
    return plain(" ".join(text.split()), limit=400).rstrip(".")
