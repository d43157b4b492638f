"""Models and files of the Hub as local paths, in huggingface_hub's cache, with every hash checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from converter.checkpoint.folders import weights_among
from converter.checkpoint.shards import INDEX_SUFFIX
from converter.checkpoint.shards import SHARD as NUMBERED
from converter.display import file_name, listed, plain, quoted
from converter.errors import HubError, missing_package
from converter.hub.hashes import hash_file
from converter.hub.reference import SCHEME, Reference, is_on_hub, parse_reference
from converter.hub.requests import Failure, Retry, attempt, first_answer, insist, quiet, reach

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors"
SIGNATURE = "model.sig"  # a bundle over all other files of the folder, which `converter sign` writes
# the files of a model that are downloaded; nothing here reads the card and the report, but a signature is of these, too
MODEL_FILES = (
    CONFIG, SINGLE, INDEX, SHARD, "conversion.json", "parity.json", "evaluation.json", "bom.cdx.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "preprocessor_config.json", "processor_config.json", SIGNATURE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resolved:
    """A local file (`file` is its name there), or a folder with a model; its commit, and the SHA-256 of each file.

    `others`: files of that commit that were not downloaded; of a model in the cache, without the Hub, none is known.
    """

    path: Path
    repo_id: str
    file: str | None
    commit: str
    files: Mapping[str, str]
    others: tuple[str, ...] = field(default=(), compare=False)

    @property
    def reference(self) -> str:
        """`hf://org/name@COMMIT` or `hf://org/name/file.pth@COMMIT`: the same bytes for ever."""
        inside = f"/{self.file}" if self.file else ""
        return f"{SCHEME}{self.repo_id}{inside}@{self.commit}"

    @property
    def origin(self) -> dict[str, Any]:
        """What a ledger and --json say of where it is from."""
        return {"reference": self.reference, "files": dict(self.files)}


@dataclass(frozen=True, slots=True)
class _Ways:
    """How to get something: what `resolve` was given."""

    cache_dir: Path | None
    retry: Retry
    also: Callable[[Path], Collection[str]]
    on_bytes: Callable[[int], object]
    say: Callable[[str], object]


def local_path(path: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """`path` if it is local, else the local path of what it names on the Hub, found by `resolve`. Raises HubError."""
    return located(path, revision=revision)[0]


def located(path: str | os.PathLike[str], *, revision: str | None = None) -> tuple[Path, str]:
    """`local_path`, and what to call it: the Hub's reference with its commit, or the name of the file or folder."""
    if isinstance(path, str) and is_on_hub(path):
        found = resolve(path, revision=revision)
        return found.path, found.reference
    if revision is not None:
        raise HubError(f"{quoted(os.fspath(path))}: is local, and only models of the Hub have revisions.")
    return Path(path), os.path.basename(os.path.abspath(path))


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    retry: Retry | None = None,
    also: Callable[[Path], Collection[str]] = lambda folder: (),
    on_bytes: Callable[[int], object] = lambda count: None,
    say: Callable[[str], object] = lambda line: None,
) -> Resolved:
    """A model or file of the Hub as a local path in huggingface_hub's cache, downloaded if it is not there.

    Every file is hashed and compared with what the Hub states for that commit; a damaged one is downloaded once more.
    With HF_HUB_OFFLINE the cache alone is asked, and hashes are compared with those that it names its files by.
    `also` says by the folder of a model which other files belong to it, and are to be there as well, if the Hub has
    them. `on_bytes` gets the number of bytes hashed, `say` lines about retries. Raises HubError.
    """
    parsed = parse_reference(reference)
    if parsed is None:
        raise HubError(
            f"{quoted(reference)}: names nothing on the Hub. Expected org/name, or hf://org/name/file.pth, each "
            "perhaps with @revision."
        )
    if revision is not None and parsed.revision not in (None, revision):
        raise HubError(
            f"{quoted(reference)}: names revision {quoted(str(parsed.revision))}, but {quoted(revision)} was asked "
            "for. Give one of them."
        )
    wanted = Reference(parsed.repo_id, parsed.file, revision or parsed.revision)
    ways = _Ways(cache_dir, retry or Retry(), also, on_bytes, say)
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        raise HubError(f"{quoted(reference)}: {missing_package('the Hub', 'hub')}") from None
    with quiet():
        if constants.HF_HUB_OFFLINE:
            return _from_cache(wanted, ways)
        if wanted.file and re.fullmatch("[0-9a-f]{40}", wanted.revision or ""):  # it cannot have changed
            with suppress(HubError):  # not there, or damaged
                return _from_cache(wanted, ways)
        return _downloaded(wanted, ways, is_path=not reference.startswith(SCHEME))


def _downloaded(wanted: Reference, ways: _Ways, *, is_path: bool) -> Resolved:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(library_name="converter")
    at = _shown(wanted)

    def ask(request: Callable[[], T], first: bool = False) -> T:
        answer = (reach if first else insist)(request, ways.retry, ways.say)
        if isinstance(answer, Failure):
            raise HubError(f"{plain(at)}: {_not_downloaded(answer, wanted, is_path=is_path)}")
        return answer

    def files_of(commit: str) -> dict[str, RepoFile]:
        tree = ask(lambda: list(api.list_repo_tree(wanted.repo_id, recursive=True, revision=commit)))
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    # what follows is repeated by the client, too, for up to 23 seconds each time: first, whether the Hub answers at all
    info = ask(lambda: api.model_info(wanted.repo_id, revision=wanted.revision, timeout=first_answer()), first=True)
    remote: dict[str, RepoFile] = {}
    if wanted.file is None:
        remote = files_of(str(info.sha))
        _check_model(at, set(remote))
        # Ctrl-C ends a download of this thread at once; for those that snapshot_download makes in others it would wait
        for name in filter(is_model_file, remote):
            ask(partial(_fetch, api, Reference(wanted.repo_id, name, info.sha), ways.cache_dir))
    local = ask(lambda: _fetch(api, wanted, ways.cache_dir))  # of a model: nothing but which commit its revision is now
    folder = _snapshot(local, wanted)
    commit = folder.name
    if commit != info.sha or not remote:
        remote = files_of(commit)
    if wanted.file is None:
        _check_model(at, set(remote))

    def fetch(name: str, again: bool = False) -> None:
        if again:
            ways.say(f"{plain(name)}: damaged in the cache; downloading it again")
        ask(lambda: _fetch(api, Reference(wanted.repo_id, name, commit), ways.cache_dir, again=again))

    names = [wanted.file] if wanted.file else list(filter(is_model_file, remote))
    more = [] if wanted.file else sorted(remote.keys() & set(ways.also(folder)) - set(names))
    for name in more:
        fetch(name)
    names += more
    again = {name: partial(fetch, name, True) for name in names}
    sums = {name: _checked(at, folder / name, remote[name], again[name], ways.on_bytes) for name in names}
    others = () if wanted.file else tuple(sorted(remote.keys() - sums.keys()))
    return Resolved(local, wanted.repo_id, wanted.file, commit, sums, others)


def _checked(
    at: str, path: Path, remote: RepoFile, again: Callable[[], object], on_bytes: Callable[[int], object]
) -> str:
    """SHA-256 of a file in the cache, which is downloaded `again` once if it is damaged."""
    found = hash_file(path, on_bytes)
    if not found.match(remote):
        again()
        found = hash_file(path)
    if not found.match(remote):
        own, stated = found.beside(remote)
        raise HubError(
            f"{plain(at)}: {plain(remote.path)} is damaged, and was again after a second download: its hash is {own}, "
            f"the Hub states {stated}. Remove {file_name(path.resolve())} and try again later."
        )
    _remove_leftovers(path.resolve())
    return found.sha256


def _from_cache(wanted: Reference, ways: _Ways) -> Resolved:
    from huggingface_hub import HfApi

    at = _shown(wanted)
    found = attempt(lambda: _fetch(HfApi(), wanted, ways.cache_dir, offline=True))
    if isinstance(found, Failure):
        raise HubError(
            f"{plain(at)}: {plain(wanted.file or 'the model')} is not in the cache, and HF_HUB_OFFLINE is set, so "
            "nothing is downloaded. Unset it and try again."
        )
    folder = _snapshot(found, wanted)
    if wanted.file is None:
        _check_model(at, {path.name for path in folder.iterdir()})
    names = [wanted.file] if wanted.file else [path.name for path in folder.iterdir() if is_model_file(path.name)]
    if wanted.file is None:
        names += (more := [name for name in ways.also(folder) if name not in names])
        if absent := [name for name in more if not (folder / name).is_file()]:
            raise HubError(
                f"{plain(at)}: {listed(map(plain, absent))} belongs to it and is not in the cache, and HF_HUB_OFFLINE "
                "is set, so nothing is downloaded. Unset it and try again."
            )
    sums: dict[str, str] = {}
    for name in names:
        path = folder / name
        hashes = hash_file(path, ways.on_bytes)
        sums[name] = hashes.sha256
        stated = path.resolve().name  # the cache's own: sha256 of LFS files, git's sha1 of others
        is_named_by_hash = path.is_symlink() and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated)
        if is_named_by_hash and stated not in (hashes.sha256, hashes.blob):
            raise HubError(
                f"{plain(at)}: {plain(path.name)} is damaged in the cache. Remove {file_name(path.resolve())}, "
                "unset HF_HUB_OFFLINE and try again."
            )
    return Resolved(found, wanted.repo_id, wanted.file, folder.name, sums)


def _fetch(
    api: HfApi, wanted: Reference, cache_dir: Path | None, *, offline: bool = False, again: bool = False
) -> Path:
    """Where `wanted` is in the cache. `offline`: only if it is there already; `again`: the file is downloaded anew."""
    if wanted.file is not None:
        return Path(
            api.hf_hub_download(
                wanted.repo_id,
                wanted.file,
                revision=wanted.revision,
                cache_dir=cache_dir,
                local_files_only=offline,
                force_download=again,
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


def _remove_leftovers(blob: Path) -> None:
    """Remove what downloads of a file left that were killed; the client never looks at it again once the file is there.

    A download that is running holds the client's lock.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    # NAME.incomplete, or NAME.RANDOM.incomplete: huggingface_hub 2.4, file_download._download_to_tmp_and_move
    leftovers = [path for path in blob.parent.glob(f"{blob.name}.*") if path.suffix == ".incomplete"]
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"
    with suppress(OSError):  # a lock that is held raises one, too
        if leftovers:
            with WeakFileLock(lock, timeout=0.1):
                for path in leftovers:
                    path.unlink()


def _shown(wanted: Reference) -> str:
    return f"{wanted.repo_id}@{wanted.revision}" if wanted.revision else wanted.repo_id


def _snapshot(path: Path, wanted: Reference) -> Path:
    """The folder of a commit in the cache, `snapshots/COMMIT`, that `wanted` was found in or is."""
    return path if wanted.file is None else path.parents[wanted.file.count("/")]


def _check_model(at: str, there: set[str]) -> None:
    """Refuse a repository without a converted model. Whether its shards are all there is seen when it is opened."""
    missing = {CONFIG} - there
    if not {SINGLE, INDEX} & there:
        missing |= {SINGLE}
    if missing:
        names = ", ".join(map(plain, sorted(missing)))
        raise HubError(f"{plain(at)}: holds no converted model: no {names}. {_to_convert(at, there)}.")


def _to_convert(at: str, there: set[str]) -> str:
    """What can be converted of a repository: a file that is whole by its name, or all shards that an index lists."""
    repo_id, _, revision = at.partition("@")
    if whole := [name for name in weights_among(there) if not NUMBERED.fullmatch(name)]:
        name = plain(min(whole, key=lambda name: (name.endswith(".bin"), not name.endswith(".pth"), name)))
        return f"It has {name}: convert --src hf://{repo_id}/{name}" + (f"@{plain(revision)}" if revision else "")
    if any(name.endswith(INDEX_SUFFIX) for name in there):
        command = f"hf download {repo_id} --local-dir model" + (f" --revision {plain(revision)}" if revision else "")
        return f"It has shards: {command}, then convert --src model"
    return "Check the name and the revision"


def is_model_file(name: str) -> bool:
    """Whether a file of a repository belongs to a model, as this package writes them."""
    return any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def _not_downloaded(failure: Failure, wanted: Reference, *, is_path: bool) -> str:
    here = "no such file or folder here, and on the Hub " if is_path else ""
    hints = {
        "repository": f"{here}no such repository, or none that this token may see. Check the name, or sign in: "
        "hf auth login",
        "revision": "no such revision. Check its name",
        "file": f"no file {quoted(str(wanted.file))} there. Check its name",
        "access": "this token may not read it. Ask for access on its page, or sign in: hf auth login",
        "busy": f"{failure.text}. Try again later, or set HF_HUB_OFFLINE=1 to use what is in the cache",
        **dict.fromkeys(
            ("unreachable", "refused"),
            f"{'no such file or folder here, and ' if is_path else ''}{failure.text}. Check the connection, or set "
            "HF_HUB_OFFLINE=1 to use what is in the cache",
        ),
        "disk": f"the cache cannot be written: {failure.text}. Free some space, or let HF_HOME name another folder",
        "lost": f"{failure.text}. Check the connection, or set HF_HUB_OFFLINE=1 to use what is in the cache",
    }
    return hints.get(failure.kind, failure.text) + "."
