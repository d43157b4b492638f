"""A small stand-in for the Hub, for tests only: what huggingface_hub's client calls to publish and to download models.

It listens on 127.0.0.1 and nowhere else. `HubServer.fail` puts faults before the next requests of an endpoint.

Where it differs from the real Hub:
- Commit and tree ids are hashes, but not git's: there is no git behind it. Blob ids and LFS pointers are git's.
- Models only: no datasets, Spaces, Xet, gated repositories, organisations' rights, quotas, webhooks or malware scans.
- LFS objects are served from `http://localhost:PORT/cdn`: to the client another origin, to which it must not send its
  token (a token sent there, or with an upload, is answered by 400). The CDN's and S3's signatures are not imitated.
- Over http the client does not take a bare 401 for a missing repository, as it does over https; the server says
  `RepoNotFound` where the Hub leaves that to be guessed.
- Multipart uploads are offered for files larger than `chunk_size`, not from some size in gigabytes.
- An LFS object is there once it was verified, for all repositories; the Hub may be less strict.
- Which files are LFS is decided by name and size, not by `.gitattributes`. `.gitignore` is ignored.
- Of a card's metadata only the YAML is checked, not licenses and other values. A card whose front matter does not end
  is refused; the Hub takes it for one without metadata. Of those the Hub warns, the server does not.
- A commit without operations is refused: the client makes none, though the Hub may. Operations that change nothing make
  a commit, as on the Hub.
- A commit adds files in base64 and LFS files by hash and size, and deletes files. It deletes no folders and copies
  nothing.
- Of a commit's refusals the Hub's status is known, from the client's sources and reports of its users, of a card (400)
  and of a branch that is not there or a pull request on a commit or tag (404). Others, and most wordings, are ours.
- S3's errors are XML, these are JSON.
- A pull request is a ref, a title and whether it is open: no discussion events, no merging.
- Only the tree of the root can be asked for; listings are paginated by position.
- Everything is consistent at once; the real Hub may show a commit a little later in some answers.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.support.hub.faults import Fault
from tests.support.hub.reading import Reading
from tests.support.hub.storage import Commit, Repository, Storage, is_lfs
from tests.support.hub.writing import Writing

WRITES = {"create", "batch", "upload", "part", "complete", "verify", "commit"}


class _Handler(Reading, Writing):
    """All endpoints."""


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: object, address: object) -> None:
        """A client that was killed needs no traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)  # type: ignore[arg-type]


class HubServer:
    """`url` is the endpoint. `tokens` maps a token to (user, role); `requests` lists (endpoint, method, path).

    `watch` is called with each request's number, from 1, when it is `received` and nothing was done yet, `done` and not
    answered yet, `half` sent (of a download), `answered`, and `over`. Where it returns False the connection is cut.
    """

    def __init__(self) -> None:
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def reset(self, folder: Path) -> None:
        """Forget everything; blobs go to `folder` from now on."""
        self.storage = Storage(folder)
        self.tokens: dict[str, tuple[str, str]] = {}
        self.faults: dict[str, deque[Fault | Callable[[], None]]] = defaultdict(deque)
        self.restart()
        self.chunk_size: int | None = None  # multipart above it
        self.page = 1000  # entries per page of a listing

    def restart(self) -> None:
        """Forget who asked for what, and who watches; keep what is stored."""
        self.requests: list[tuple[str, str, str]] = []
        self.watch: Callable[[str, int], bool] = lambda moment, number: True
        self._numbers = itertools.count(1)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def fail(self, endpoint: str, *faults: Fault | Callable[[], None]) -> None:
        """Before the next requests of `endpoint`, one each; a function is called and the request goes on."""
        self.faults[endpoint].extend(faults)

    def next_number(self) -> int:
        """Of the request that has just come."""
        return next(self._numbers)

    def count(self, endpoint: str) -> int:
        return sum(name == endpoint for name, _, _ in self.requests)

    @property
    def writes(self) -> list[str]:
        return [name for name, _, _ in self.requests if name in WRITES]

    def repository(self, name: str) -> Repository:
        return self.storage.repositories[name]

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        commit = self.repository(name).find(revision)
        assert commit is not None
        return self.storage.path_of(commit.files[path]).read_bytes()

    def push(
        self, name: str, files: Mapping[str, bytes | None], title: str = "by somebody else", ref: str = "main"
    ) -> Commit:
        """A commit of another client; `None` deletes."""
        repository = self.repository(name)
        parent = repository.find(ref)
        assert parent is not None
        entries = dict(parent.files)
        for path, content in files.items():
            if content is None:
                del entries[path]
            elif is_lfs(path, len(content)):
                sha256 = hashlib.sha256(content).hexdigest()
                self.storage.lfs_path(sha256).write_bytes(content)
                entries[path] = self.storage.lfs_entry(sha256, len(content))
            else:
                entries[path] = self.storage.add(content)
        full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
        return self.storage.commit(repository, full, parent.id, title, "", "somebody", entries)


def clear(folder: Path) -> None:
    """Remove what a test left on disk, full-size files above all."""
    shutil.rmtree(folder, ignore_errors=True)
