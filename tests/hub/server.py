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
  and of a branch that is not there or a pull request on what is no branch (404). Others, and most wordings, are ours.
- S3's errors are XML, these are JSON.
- A pull request is a ref, a title and whether it is open: no discussion events, no merging.
- Only the tree of the root can be asked for; listings are paginated by position.
- Everything is consistent at once; the real Hub may show a commit a little later in some answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import shutil
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # type: ignore[import-untyped]
from repository import Commit, Entry, Repository, Storage, is_lfs

CHUNK = 1 << 20
WRITES = {"create", "batch", "upload", "part", "complete", "verify", "commit"}


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer.

    `kind`: `status`, `drop-before` (connection closed, nothing done), `drop-after` (done, and then closed),
    `late` (closed at once, done after `seconds`), `flip` (one byte of the download), `truncate` (its second half),
    `slow`.
    """

    kind: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    body: str = ""


def status(code: int, **headers: str) -> Fault:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault("status", code, named)


class Refusal(Exception):
    """An error answer."""

    def __init__(self, code: int, message: str, error_code: str = "", **body: Any) -> None:
        self.code, self.message, self.error_code = code, message, error_code
        self.body = {"error": message, **body}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is given twice, as the Hub does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [str(key.value) for key, _ in node.value]
        if len(set(names)) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "duplicated mapping key", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


# huggingface_hub.repocard has the same, and says that it is the Hub's
_METADATA = re.compile(r"\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")


def check_card(card: str) -> None:
    """Refuse a README.md for its metadata, in the Hub's words where it does so, too."""
    problem = None
    if match := _METADATA.match(card):
        try:
            metadata = yaml.load(match[1], _Loader)
        except yaml.YAMLError as error:
            problem = f"Invalid YAML in README.md: {' '.join(str(error).split())}"
        else:
            if isinstance(metadata, list):
                problem = '"value" must be of type object'
            elif not isinstance(metadata, dict):
                problem = "The YAML metadata of your README.md is invalid."
    elif re.match(r"\s*---[\r\n]+(?!---)", card):
        problem = "the YAML front matter does not end"
    if problem:
        raise Refusal(400, problem, errors=[{"message": problem}], warnings=[])


class HubServer:
    """`url` is the endpoint. `tokens` maps a token to (user, role); `requests` lists (endpoint, method, path)."""

    def __init__(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
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
        self.requests: list[tuple[str, str, str]] = []
        self.chunk_size: int | None = None  # multipart above it
        self.page = 1000  # entries per page of a listing

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def fail(self, endpoint: str, *faults: Fault | Callable[[], None]) -> None:
        """Before the next requests of `endpoint`, one each; a function is called and the request goes on."""
        self.faults[endpoint].extend(faults)

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

    def push(self, name: str, files: dict[str, bytes], title: str = "by somebody else", ref: str = "main") -> Commit:
        """A commit of another client; `None` deletes."""
        repository = self.repository(name)
        parent = repository.find(ref)
        assert parent is not None
        entries = dict(parent.files)
        for path, content in files.items():
            if is_lfs(path, len(content)):
                sha256 = hashlib.sha256(content).hexdigest()
                self.storage.lfs_path(sha256).write_bytes(content)
                entries[path] = self.storage.lfs_entry(sha256, len(content))
            else:
                entries[path] = self.storage.add(content)
        full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
        return self.storage.commit(repository, full, parent.id, title, "", "somebody", entries)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REV = r"(?P<rev>[^/]+)"
ROUTES = [
    ("GET", "whoami", "/api/whoami-v2"),
    ("POST", "create", "/api/repos/create"),
    ("POST", "validate", "/api/validate-yaml"),
    ("POST", "preupload", f"/api/models/{_REPO}/preupload/{_REV}"),
    ("POST", "commit", f"/api/models/{_REPO}/commit/{_REV}"),
    ("GET", "info", f"/api/models/{_REPO}(?:/revision/{_REV})?"),
    ("GET", "tree", f"/api/models/{_REPO}/tree/{_REV}"),
    ("POST", "paths", f"/api/models/{_REPO}/paths-info/{_REV}"),
    ("GET", "commits", f"/api/models/{_REPO}/commits/{_REV}"),
    ("GET", "refs", f"/api/models/{_REPO}/refs"),
    ("GET", "discussion", f"/api/models/{_REPO}/discussions/(?P<number>[0-9]+)"),
    ("POST", "batch", rf"/{_REPO}\.git/info/lfs/objects/batch"),
    ("PUT", "upload", "/s3/(?P<oid>[0-9a-f]{64})"),
    ("PUT", "part", "/s3/(?P<oid>[0-9a-f]{64})/(?P<part>[0-9]+)"),
    ("POST", "complete", f"/api/complete/{_REPO}/(?P<oid>[0-9a-f]{{64}})"),
    ("POST", "verify", f"/api/verify/{_REPO}"),
    ("HEAD", "head", f"/{_REPO}/resolve/{_REV}/(?P<path>.+)"),
    ("GET", "resolve", f"/{_REPO}/resolve/{_REV}/(?P<path>.+)"),
    ("GET", "download", "/cdn/(?P<oid>[0-9a-f]{64})"),
]
_ROUTES = [(method, name, re.compile(pattern)) for method, name, pattern in ROUTES]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    # one request

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self._unread = self._body()
        for method, endpoint, pattern in _ROUTES:
            if method == self.command and (match := pattern.fullmatch(url.path)):
                name = endpoint
                break
        else:
            self.hub.requests.append(("unknown", self.command, self.path))
            self.fault = None
            self._refuse(Refusal(404, f"no such endpoint: {self.command} {url.path}"))
            return
        self.hub.requests.append((name, self.command, self.path))
        faults = self.hub.faults[name]
        fault = faults.popleft() if faults else None
        if callable(fault):
            fault()
            fault = None
        self.fault = fault
        try:
            if fault is not None and fault.kind == "drop-before":
                self._drop()
                return
            if fault is not None and fault.kind == "status":
                self._drain()
                self._answer(fault.status, fault.body.encode() or b'{"error": "told to fail"}', dict(fault.headers))
                return
            if fault is not None and fault.kind == "slow":
                time.sleep(fault.seconds)
            arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
            if fault is not None and fault.kind == "late":
                self._late(name, arguments, fault.seconds)
                return
            try:
                getattr(self, f"_{name}")(**arguments)
            except Refusal as refusal:
                self._drain()
                self._refuse(refusal)
            except (AttributeError, KeyError, TypeError, ValueError) as error:  # of what was sent
                self._drain()
                self._refuse(Refusal(400, f"malformed request: {error!r}"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _late(self, name: str, arguments: dict[str, str], seconds: float) -> None:
        content = b"".join(self._unread)
        self._unread = iter([content])
        self._drop()
        time.sleep(seconds)
        self.fault = Fault("drop-after")
        getattr(self, f"_{name}")(**arguments)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            chunk = self.rfile.read(min(CHUNK, left))
            if not chunk:
                raise ConnectionResetError
            left -= len(chunk)
            yield chunk

    def _drain(self) -> None:
        for _ in self._unread:
            pass

    def _json(self) -> Any:
        return json.loads(b"".join(self._unread) or b"{}")

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        if self.fault is not None and self.fault.kind == "drop-after":
            self._drop()
            return
        self.send_response(code)
        for key, value in {"X-Request-Id": secrets.token_hex(8), **(headers or {})}.items():
            self.send_header(key, value)
        if not any(key.lower() == "content-length" for key in headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _say(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _refuse(self, refusal: Refusal) -> None:
        line = " ".join(refusal.message.splitlines()).encode("ascii", "backslashreplace").decode()
        headers = {"Content-Type": "application/json", "X-Error-Message": line}
        if refusal.error_code:
            headers["X-Error-Code"] = refusal.error_code
        self._answer(refusal.code, json.dumps(refusal.body).encode(), headers)

    # who, and where

    def _user(self, *, write: bool = False) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            if write:
                raise Refusal(401, "Invalid username or password.")
            return None
        user, role = self.hub.tokens.get(header.removeprefix("Bearer "), (None, None))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if write and role != "write":
            raise Refusal(403, "you don't have the rights to do this: the token cannot write")
        return user

    def _repository(self, name: str, *, write: bool = False) -> Repository:
        user = self._user(write=write)
        repository = self.hub.storage.repositories.get(name)
        if repository is None or (repository.private and user != name.split("/")[0]):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != name.split("/")[0] and "create_pr" not in self.query:
            raise Refusal(403, "you don't have the rights to write to this repository")
        return repository

    def _at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _no_token(self) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "only one way of signing in is allowed")

    def _page(self, items: list[Any]) -> None:
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {}
        if end < len(items):
            path = urlsplit(self.path).path
            kept = "&".join(f"{key}={values[0]}" for key, values in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.hub.url}{path}?{kept}&cursor={end}>; rel="next"'
        self._say(items[start:end], headers)

    # endpoints

    def _whoami(self) -> None:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        role = self.hub.tokens[self.headers["Authorization"].removeprefix("Bearer ")][1]
        self._say({"type": "user", "name": user, "auth": {"type": "access_token", "accessToken": {"role": role}}})

    def _create(self) -> None:
        user = self._user(write=True)
        wanted = self._json()
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        if not name.startswith(f"{user}/"):
            raise Refusal(
                403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]!r}"
            )
        url = f"{self.hub.url}/{name}"
        with self.hub.storage.lock:
            if name in self.hub.storage.repositories:
                raise Refusal(409, "You already created this model repo", url=url)
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.hub.storage.create(name, private, str(user))
        self._say({"url": url, "name": name, "id": secrets.token_hex(12)})

    def _info(self, repo: str, rev: str = "main") -> None:
        repository = self._repository(repo)
        commit = self._at(repository, rev)
        self._say(
            {
                "_id": "0" * 24,
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": commit.id,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _entry(self, path: str, entry: Entry) -> dict[str, Any]:
        lfs = {"lfs": {"oid": entry.lfs, "size": entry.size, "pointerSize": 134}} if entry.lfs else {}
        return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **lfs}

    def _folder(self, path: str, files: dict[str, Entry]) -> dict[str, Any]:
        below = sorted((name, entry.oid) for name, entry in files.items() if name.startswith(f"{path}/"))
        return {"type": "directory", "oid": hashlib.sha1(repr(below).encode()).hexdigest(), "size": 0, "path": path}

    def _tree(self, repo: str, rev: str) -> None:
        files = self._at(self._repository(repo), rev).files
        folders = {str(folder) for path in files for folder in PurePosixPath(path).parents if folder.name}
        entries = [self._folder(path, files) for path in sorted(folders)]
        entries += [self._entry(path, files[path]) for path in sorted(files)]
        is_recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        self._page([entry for entry in entries if is_recursive or "/" not in entry["path"]])

    def _paths(self, repo: str, rev: str) -> None:
        files = self._at(self._repository(repo), rev).files
        wanted = parse_qs(b"".join(self._unread).decode())["paths"]
        self._say([self._entry(path, files[path]) for path in wanted if path in files])

    def _commits(self, repo: str, rev: str) -> None:
        repository = self._repository(repo)
        self._page(
            [
                {
                    "id": commit.id,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": "2026-01-01T00:00:00.000Z",
                }
                for commit in repository.history(self._at(repository, rev))
            ]
        )

    def _refs(self, repo: str) -> None:
        repository = self._repository(repo)

        def under(prefix: str) -> list[dict[str, str]]:
            return [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                for ref, oid in repository.refs.items()
                if ref.startswith(prefix)
            ]

        named = {"branches": under("refs/heads/"), "converts": [], "tags": under("refs/tags/")}
        self._say(named | ({"pullRequests": under("refs/pr/")} if "include_prs" in self.query else {}))

    def _discussion(self, repo: str, number: str) -> None:
        repository = self._repository(repo)
        if int(number) not in repository.pull_requests:
            raise Refusal(404, "Discussion not found")
        self._say(
            {
                "title": repository.pull_requests[int(number)],
                "num": int(number),
                "author": {"name": "user"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "closed" if int(number) in repository.closed else "open",
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
                "events": [],
                "changes": {"base": "refs/heads/main"},
                "filesWithConflicts": [],
            }
        )

    def _validate(self) -> None:
        check_card(self._json()["content"])
        self._say({"errors": [], "warnings": []})

    def _preupload(self, repo: str, rev: str) -> None:
        files = self._at(self._repository(repo, write=True), rev).files
        answers = []
        for wanted in self._json()["files"]:
            path = wanted["path"]
            mode = "lfs" if is_lfs(path, wanted["size"]) else "regular"
            known = {"oid": files[path].etag} if path in files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self._say({"files": answers, "commitOid": self._at(self._repository(repo, write=True), rev).id})

    # large files

    def _batch(self, repo: str) -> None:
        self._repository(repo)
        self._user(write=True)
        objects = []
        for wanted in self._json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            if oid in self.hub.storage.verified:
                objects.append({"oid": oid, "size": size})
                continue
            self.hub.storage.offered[oid] = size
            upload: dict[str, Any] = {"href": f"{self.hub.url}/s3/{oid}"}
            chunk = self.hub.chunk_size
            if chunk is not None and size > chunk:
                parts = {str(n): f"{self.hub.url}/s3/{oid}/{n}" for n in range(1, -(-size // chunk) + 1)}
                upload = {
                    "href": f"{self.hub.url}/api/complete/{repo}/{oid}",
                    "header": {"chunk_size": str(chunk), **parts},
                }
            verify = {"href": f"{self.hub.url}/api/verify/{repo}"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        self._say({"transfer": "basic", "objects": objects})

    def _receive(self, oid: str) -> tuple[Path, str]:
        """The body, in a file of its own, and its sha256."""
        self._no_token()
        if oid not in self.hub.storage.offered:
            raise Refusal(403, "AccessDenied: no batch has offered this upload")
        path = self.hub.storage.folder / "incoming" / secrets.token_hex(8)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self._unread:
                digest.update(chunk)
                file.write(chunk)
        return path, digest.hexdigest()

    def _keep(self, path: Path, sha256: str, oid: str) -> None:
        if sha256 != oid or path.stat().st_size != self.hub.storage.offered.get(oid):
            raise Refusal(400, "XAmzContentSHA256Mismatch: the content does not have the announced hash and size")
        path.rename(self.hub.storage.lfs_path(oid))

    def _upload(self, oid: str) -> None:
        path, sha256 = self._receive(oid)
        self._keep(path, sha256, oid)
        self._answer(200, headers={"ETag": f'"{sha256}"'})

    def _part(self, oid: str, part: str) -> None:
        path, sha256 = self._receive(oid)
        path.rename(self.hub.storage.folder / "incoming" / f"{oid}.{part}")
        self._answer(200, headers={"ETag": f'"{sha256}"'})

    def _complete(self, repo: str, oid: str) -> None:
        parts = self._json()["parts"]
        incoming = self.hub.storage.folder / "incoming"
        whole, digest = incoming / secrets.token_hex(8), hashlib.sha256()
        with whole.open("wb") as file:
            for part in parts:
                own = hashlib.sha256()
                path = incoming / f"{oid}.{part['partNumber']}"
                if not path.exists():
                    raise Refusal(400, f"InvalidPart: {part['partNumber']}")
                with path.open("rb") as source:
                    while chunk := source.read(CHUNK):
                        own.update(chunk)
                        digest.update(chunk)
                        file.write(chunk)
                if part["etag"] != f'"{own.hexdigest()}"':
                    raise Refusal(400, f"InvalidPart: the ETag of part {part['partNumber']}")
        self._keep(whole, digest.hexdigest(), oid)
        self._say({"success": True})

    def _verify(self, repo: str) -> None:
        self._repository(repo)
        self._user(write=True)
        wanted = self._json()
        path = self.hub.storage.lfs_path(wanted["oid"])
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refusal(404, "the object is not there")
        self.hub.storage.verified.add(wanted["oid"])
        self._say({"message": "verified"})

    # commits

    def _commit(self, repo: str, rev: str) -> None:
        repository = self._repository(repo, write=True)
        if self.headers.get_content_type() != "application/x-ndjson":
            raise Refusal(400, "a commit is sent as application/x-ndjson")
        first, *operations = [json.loads(line) for line in b"".join(self._unread).splitlines()]
        header = first["value"]
        if first["key"] != "header" or not header.get("summary"):
            raise Refusal(400, "a commit begins with a header that has a summary")
        if not operations:
            raise Refusal(400, "a commit without operations")
        title = header["summary"].split("\n")[0]
        with self.hub.storage.lock:
            ref = repository.branch(rev)
            if ref is None:
                raise Refusal(404, f"Invalid rev id: {rev} is not a branch", "RevisionNotFound")
            base = self._at(repository, ref)
            parent = header.get("parentCommit")
            is_pull_request = self.query.get("create_pr") == ["1"]
            if parent is not None and is_pull_request:
                base = self._at(repository, parent)
            elif parent is not None and parent != base.id:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for operation in operations:
                self._apply(files, operation["key"], operation["value"])
            url = f"{self.hub.url}/{repo}"
            answer: dict[str, Any] = {"success": True, "hookOutput": ""}
            if is_pull_request:
                number = len(repository.pull_requests) + 1
                repository.pull_requests[number] = title
                ref = f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{url}/discussions/{number}"
            message = header.get("description", "")
            commit = self.hub.storage.commit(repository, ref, base.id, title, message, str(self._user()), files)
        self._say(answer | {"commitOid": commit.id, "commitUrl": f"{url}/commit/{commit.id}"})

    def _apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if any(part.lower() in ("", ".", "..", ".git") for part in path.split("/")):
            raise Refusal(400, f"Invalid path: {path}")
        if key == "file":
            if value["encoding"] != "base64":
                raise Refusal(400, f"the content is not in base64: {path}")
            content = base64.b64decode(value["content"], validate=True)
            if is_lfs(path, len(content)):
                raise Refusal(400, f"Your push was rejected because it contains binary or large files: {path}")
            if path == "README.md":
                check_card(content.decode())
            files[path] = self.hub.storage.add(content)
        elif key == "lfsFile":
            oid = value["oid"]
            if oid not in self.hub.storage.verified:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            size = self.hub.storage.lfs_path(oid).stat().st_size
            if value["algo"] != "sha256" or value["size"] != size:
                raise Refusal(400, f"LFS pointer does not state the sha256 and the size of its file: {path}")
            files[path] = self.hub.storage.lfs_entry(oid, size)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"unknown operation {key}")

    # downloads

    def _head(self, repo: str, rev: str, path: str) -> None:
        self._resolve(repo, rev, path)

    def _resolve(self, repo: str, rev: str, path: str) -> None:
        commit = self._at(self._repository(repo), rev)
        entry = commit.files.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.lfs}"'}
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{entry.lfs}"
            self._answer(302, b"", headers)
            return
        self._send(self.hub.storage.path_of(entry), {**headers, "ETag": f'"{entry.oid}"'})

    def _download(self, oid: str) -> None:
        self._no_token()
        self._send(self.hub.storage.lfs_path(oid), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        size = path.stat().st_size
        start, end, code = 0, size, 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = match.groups()
            start = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            if start >= end:
                self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            code = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if self.command == "HEAD":
            self._answer(code, b"", {**headers, "Content-Length": str(size)})
            return
        kind = self.fault.kind if self.fault else ""
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            if kind == "truncate":
                end = start + (end - start) // 2
            if kind == "flip":
                byte = file.read(1)
                self.wfile.write(bytes([byte[0] ^ 1]))
                start += 1
            while start < end:
                chunk = file.read(min(CHUNK, end - start))
                self.wfile.write(chunk)
                start += len(chunk)
        if kind == "truncate":
            self._drop()


def clear(folder: Path) -> None:
    """Remove what a test left on disk, full-size files above all."""
    shutil.rmtree(folder, ignore_errors=True)
