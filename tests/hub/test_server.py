"""The stand-in of the Hub refuses what the Hub would, so that a client that does wrong is noticed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.support.hub.server import HubServer
from tests.support.publishing import CANARY, REPO

CONTENT = b"weights"
OID = hashlib.sha256(CONTENT).hexdigest()
COMMIT = f"/api/models/{REPO}/commit"
TREE = f"/api/models/{REPO}/tree/main"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: Any


class Client:
    """Plain HTTP, with a token that may write unless `token` is None."""

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self._connection = HTTPConnection("127.0.0.1", hub.port, timeout=10)

    def ask(
        self, method: str, path: str, body: bytes | object = None, token: str | None = CANARY, **headers: str
    ) -> Answer:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connection.request(method, path, sent, named)
        answer = self._connection.getresponse()
        content = answer.read()
        return Answer(answer.status, dict(answer.getheaders()), json.loads(content) if content else None)

    def commit(self, *lines: object, to: str = "main", kind: str = "application/x-ndjson") -> Answer:
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return self.ask("POST", f"{COMMIT}/{to}", body, Content_Type=kind)

    def batch(self, size: int = len(CONTENT)) -> Answer:
        return self.ask("POST", f"/{REPO}.git/info/lfs/objects/batch", {"objects": [{"oid": OID, "size": size}]})

    def put(self, path: str = f"/s3/{OID}") -> Answer:
        return self.ask("PUT", path, CONTENT, token=None)

    def verify(self, size: int = len(CONTENT), token: str | None = CANARY) -> Answer:
        return self.ask("POST", f"/api/verify/{REPO}", {"oid": OID, "size": size}, token=token)

    def upload(self) -> None:
        assert [self.batch().status, self.put().status, self.verify().status] == [200, 200, 200]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def client(hub: HubServer) -> Iterator[Client]:
    """Of a Hub with one empty repository, its tag `v1`, and a public repository of somebody else."""
    repository = hub.storage.create(REPO, True, "somebody")
    repository.refs["refs/tags/v1"] = repository.head.id
    hub.storage.create("else/public", False, "else")
    client = Client(hub)
    yield client
    client.close()


HEADER = {"key": "header", "value": {"summary": "GLIP", "description": ""}}


def file(path: str, content: bytes = b"{}", /, **other: str) -> dict[str, object]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value | other}


def lfs(path: str = "model.safetensors", **other: object) -> dict[str, object]:
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": OID, "size": len(CONTENT)} | other}


def card(metadata: str) -> dict[str, object]:
    return file("README.md", f"---\n{metadata}\n---\n# GLIP\n".encode())


def uploaded(*lines: object) -> Callable[[Client], Answer]:
    def request(client: Client) -> Answer:
        client.upload()
        return client.commit(HEADER, *lines)

    return request


def put_of_another_size(client: Client) -> Answer:
    client.batch(len(CONTENT) + 1)
    return client.put()


def verified_of_another_size(client: Client) -> Answer:
    client.batch()
    client.put()
    return client.verify(len(CONTENT) + 1)


def not_verified(client: Client) -> Answer:
    client.batch()
    client.put()
    return client.commit(HEADER, lfs())


def validate(client: Client, content: str) -> Answer:
    return client.ask("POST", "/api/validate-yaml", {"content": content, "repoType": "model"}, token=None)


REFUSED: dict[str, tuple[Callable[[Client], Answer], int, str]] = {
    "a path out of the repository": (lambda c: c.commit(HEADER, file("../../x")), 400, "Invalid path: ../../x"),
    "a path out of a folder": (lambda c: c.commit(HEADER, file("a/../x")), 400, "Invalid path: a/../x"),
    "an absolute path": (lambda c: c.commit(HEADER, file("/etc/x")), 400, "Invalid path: /etc/x"),
    "a path into git": (lambda c: c.commit(HEADER, file(".git/config")), 400, "Invalid path: .git/config"),
    "a path into git below": (lambda c: c.commit(HEADER, file("a/.GIT/config")), 400, "Invalid path: a/.GIT"),
    "a path that is a folder": (lambda c: c.commit(HEADER, file("a/")), 400, "Invalid path: a/"),
    "no path": (lambda c: c.commit(HEADER, file("")), 400, "Invalid path"),
    "a path of many lines": (lambda c: c.commit(HEADER, file("ü\r\nX-A: b/")), 400, "Invalid path: ü"),
    "content that is not base64": (lambda c: c.commit(HEADER, file("x", content="!!!!")), 400, "base64"),
    "content as text": (lambda c: c.commit(HEADER, file("x", encoding="utf-8")), 400, "not in base64"),
    "no operations": (lambda c: c.commit(HEADER), 400, "without operations"),
    "an unknown operation": (lambda c: c.commit(HEADER, {"key": "x", "value": {"path": "x"}}), 400, "unknown"),
    "a file to delete that is not there": (
        lambda c: c.commit(HEADER, {"key": "deletedFile", "value": {"path": "x"}}),
        404,
        "A file with this name doesn't exist",
    ),
    "no summary": (lambda c: c.commit({"key": "header", "value": {}}, file("x")), 400, "summary"),
    "an empty summary": (lambda c: c.commit({"key": "header", "value": {"summary": ""}}, file("x")), 400, "summary"),
    "no header": (lambda c: c.commit(file("x"), file("y")), 400, "begins with a header"),
    "nothing": (lambda c: c.commit(), 400, "malformed request"),
    "a commit in plain JSON": (
        lambda c: c.commit(HEADER, file("x"), kind="application/json"),
        400,
        "application/x-ndjson",
    ),
    "lines that are not JSON": (
        lambda c: c.ask("POST", f"{COMMIT}/main", b"x\n", Content_Type="application/x-ndjson"),
        400,
        "malformed request",
    ),
    "weights as a regular file": (lambda c: c.commit(HEADER, file("x.safetensors")), 400, "binary or large files"),
    "a large regular file": (lambda c: c.commit(HEADER, file("x", bytes(10 << 20))), 400, "binary or large files"),
    "an LFS file of another size": (uploaded(lfs(size=1)), 400, "does not state the sha256 and the size"),
    "an LFS file without a size": (
        uploaded({"key": "lfsFile", "value": {"path": "x", "algo": "sha256", "oid": OID}}),
        400,
        "malformed request: KeyError('size')",
    ),
    "an LFS file by another hash": (uploaded(lfs(algo="sha1")), 400, "does not state the sha256 and the size"),
    "an LFS file that was not uploaded": (lambda c: c.commit(HEADER, lfs()), 400, "a file that does not exist"),
    "an LFS file that was not verified": (not_verified, 400, "a file that does not exist"),
    "an LFS file with a path into git": (uploaded(lfs(".git/x")), 400, "Invalid path: .git/x"),
    "an upload that was not offered": (lambda c: c.put(), 403, "AccessDenied"),
    "a part that was not offered": (lambda c: c.put(f"/s3/{OID}/1"), 403, "AccessDenied"),
    "an upload of another size": (put_of_another_size, 400, "the announced hash and size"),
    "verifying another size": (verified_of_another_size, 404, "the object is not there"),
    "verifying without a token": (lambda c: c.verify(token=None), 401, "Repository not found"),
    "verifying for a public repository without a token": (
        lambda c: c.ask("POST", "/api/verify/else/public", {"oid": OID, "size": 7}, token=None),
        401,
        "Invalid username or password.",
    ),
    "a commit to a commit": (
        lambda c: c.commit(HEADER, file("x"), to=c.hub.repository(REPO).head.id),
        404,
        "is not a branch",
    ),
    "a commit to a tag": (lambda c: c.commit(HEADER, file("x"), to="v1"), 404, "v1 is not a branch"),
    "a commit to a tag by its full name": (
        lambda c: c.commit(HEADER, file("x"), to="refs%2Ftags%2Fv1"),
        404,
        "is not a branch",
    ),
    "a commit to a branch that is not there": (lambda c: c.commit(HEADER, file("x"), to="x"), 404, "Invalid rev id"),
    "a pull request on a tag": (lambda c: c.commit(HEADER, file("x"), to="v1?create_pr=1"), 404, "v1 is not a branch"),
    "a card that is not YAML": (lambda c: c.commit(HEADER, card("license: [")), 400, "Invalid YAML in README.md"),
    "a card with a key twice": (lambda c: c.commit(HEADER, card("a: 1\na: 2")), 400, "duplicated mapping key"),
    "a card with a tag of Python": (lambda c: c.commit(HEADER, card("a: !!python/tuple [1]")), 400, "Invalid YAML"),
    "a card of a list": (lambda c: c.commit(HEADER, card("- mit")), 400, '"value" must be of type object'),
    "a card of a word": (lambda c: c.commit(HEADER, card("mit")), 400, "metadata of your README.md is invalid"),
    "a card of nothing": (lambda c: c.commit(HEADER, card("")), 400, "metadata of your README.md is invalid"),
    "a card that does not end": (lambda c: c.commit(HEADER, file("README.md", b"---\na: 1\n")), 400, "does not end"),
    "a card to validate": (lambda c: validate(c, "---\nlicense: [\n---\n"), 400, "Invalid YAML in README.md"),
    "no card to validate": (lambda c: c.ask("POST", "/api/validate-yaml", {}), 400, "malformed request"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what: str, client: Client) -> None:
    request, status, message = REFUSED[what]
    refs = dict(client.hub.repository(REPO).refs)
    answer = request(client)
    assert (answer.status, client.hub.repository(REPO).refs) == (status, refs)
    assert message in answer.content["error"]
    line = " ".join(answer.content["error"].splitlines())
    assert answer.headers["X-Error-Message"] == line.encode("ascii", "backslashreplace").decode()
    code = {"not a branch": "RevisionNotFound", "Repository": "RepoNotFound", "this name": "EntryNotFound"}
    assert [answer.headers.get("X-Error-Code")] == [code[part] for part in code if part in line] or [None]
    assert client.ask("GET", TREE).status == 200  # on the same connection


def test_what_the_client_reads_of_a_card_that_is_refused(client: Client) -> None:
    content = validate(client, "---\n- mit\n---\n").content
    message = '"value" must be of type object'
    assert content == {"error": message, "errors": [{"message": message}], "warnings": []}


@pytest.mark.parametrize(
    "content", ["# GLIP\n", "---\nlicense: mit\nbase_model: [a, b]\n---", "---\r\nlicense: mit\r\n---  \r\n# GLIP\r\n"]
)
def test_a_card_is_taken(content: str, client: Client) -> None:
    assert validate(client, content).content == {"errors": [], "warnings": []}


def test_files_are_committed(client: Client) -> None:
    client.upload()
    answer = client.commit(HEADER, card("license: mit"), file("a/b.json"), file("empty.pth", b""), lfs())
    head = client.hub.repository(REPO).head
    assert (answer.status, answer.content["commitOid"]) == (200, head.id)
    assert sorted(head.files) == [".gitattributes", "README.md", "a/b.json", "empty.pth", "model.safetensors"]
    assert client.hub.content(REPO, "model.safetensors") == CONTENT


def test_a_commit_to_a_pull_request_is_added_to_it(client: Client) -> None:
    assert client.commit(HEADER, file("x"), to="main?create_pr=1").status == 200
    assert client.commit(HEADER, file("y"), to="refs%2Fpr%2F1").status == 200
    proposed = client.hub.repository(REPO).find("refs/pr/1")
    assert proposed is not None
    assert {"x", "y"} < set(proposed.files)
    assert set(client.hub.repository(REPO).refs) == {"refs/heads/main", "refs/pr/1", "refs/tags/v1"}


def test_operations_that_change_nothing_make_a_commit(client: Client) -> None:
    first, second = (client.commit(HEADER, file("x")).content["commitOid"] for _ in range(2))
    head = client.hub.repository(REPO).head
    assert (head.id, head.parent) == (second, first)


@pytest.mark.parametrize(
    ("query", "listed"),
    [
        ("", ["directory a", "file .gitattributes"]),
        ("?recursive=false", ["directory a", "file .gitattributes"]),
        ("?recursive=true", ["directory a", "directory a/b", "file .gitattributes", "file a/b/c", "file a/d"]),
    ],
)
def test_a_tree_is_listed_whole_only_if_asked(query: str, listed: list[str], client: Client) -> None:
    client.commit(HEADER, file("a/b/c"), file("a/d"))
    entries = client.ask("GET", TREE + query).content
    assert [f"{entry['type']} {entry['path']}" for entry in entries] == listed
