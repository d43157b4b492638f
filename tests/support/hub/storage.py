"""What the test server keeps: repositories with their history, and blobs on disk by the hash of their content."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.pth filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".pth")
LFS_SIZE = 10 * 2**20  # bytes from which any file is stored as LFS


def is_lfs(path: str, size: int) -> bool:
    """Whether a file is to be stored as LFS; an empty one cannot be."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size >= LFS_SIZE)


def blob_sha1(content: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One file of a commit: git's blob id (of the pointer for LFS), size in bytes, and the LFS sha256."""

    oid: str
    size: int
    lfs: str | None = None

    @property
    def etag(self) -> str:
        return self.lfs or self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    title: str
    message: str
    author: str
    files: dict[str, Entry]


@dataclass
class Repository:
    """Commits by id, `refs` by full name (`refs/heads/main`, `refs/pr/1`), titles of pull requests by number."""

    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def find(self, revision: str) -> Commit | None:
        """By branch, tag, full ref or commit id."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        return self.commits.get(revision)

    def branch(self, revision: str) -> str | None:
        """The full name of the branch or pull request, which alone a commit can be added to."""
        names = (revision, f"refs/heads/{revision}")
        return next((ref for ref in names if ref in self.refs and not ref.startswith("refs/tags/")), None)

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["refs/heads/main"]]

    def history(self, commit: Commit) -> list[Commit]:
        """Newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found


class Storage:
    """All repositories, and their blobs under `folder`: LFS objects by sha256, git's by sha1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.offered: dict[str, int] = {}  # sizes of LFS objects that a batch has announced
        self.verified: set[str] = set()  # LFS objects that a client has asked to be verified
        self.lock = threading.Lock()
        for part in ("lfs", "git", "incoming"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def create(self, name: str, private: bool, author: str) -> Repository:
        """With the first commit that the Hub makes itself: `.gitattributes`."""
        repository = self.repositories[name] = Repository(name, private)
        files = {".gitattributes": self.add(GITATTRIBUTES)}
        self.commit(repository, "refs/heads/main", None, "initial commit", "", author, files)
        return repository

    def add(self, content: bytes) -> Entry:
        oid = blob_sha1(content)
        (self.folder / "git" / oid).write_bytes(content)
        return Entry(oid, len(content))

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def lfs_entry(self, sha256: str, size: int) -> Entry:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Entry(blob_sha1(pointer), size, sha256)

    def path_of(self, entry: Entry) -> Path:
        return self.lfs_path(entry.lfs) if entry.lfs else self.folder / "git" / entry.oid

    def commit(
        self,
        repository: Repository,
        ref: str,
        parent: str | None,
        title: str,
        message: str,
        author: str,
        files: dict[str, Entry],
    ) -> Commit:
        listing = "".join(f"{name} {entry.oid}\n" for name, entry in sorted(files.items()))
        text = f"{repository.id} {parent} {title} {message} {len(repository.commits)}\n{listing}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, message, author, files)
        repository.commits[commit.id] = commit
        repository.refs[ref] = commit.id
        return commit
