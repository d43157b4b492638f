"""One request to the stand-in of the Hub: its endpoint, what goes wrong on purpose, who asks, how it is answered."""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub.faults import Fault, Refusal
from tests.support.hub.storage import Commit, Repository

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer

CHUNK = 1 << 20
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


class Connection(BaseHTTPRequestHandler):
    """Endpoints are its subclasses' methods, by the names in ROUTES."""

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

    def _serve(self) -> None:
        """One request, and to whoever watches its number and how far it is."""
        self.number = self.hub.next_number()
        try:
            if self._goes_on("received"):
                self._dispatch()
                self._goes_on("answered")
        finally:
            self._goes_on("over")

    def _goes_on(self, moment: str) -> bool:
        """Tell whoever watches; False, and no connection any more, if that is what they want."""
        goes_on = self.hub.watch(moment, self.number)
        if not goes_on:
            self._drop()
        return goes_on

    def _dispatch(self) -> None:
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
        if not self._goes_on("done"):
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
