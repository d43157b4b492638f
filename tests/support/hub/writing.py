"""Endpoints that change something: repositories, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

from tests.support.hub.card import check_card
from tests.support.hub.connection import CHUNK, Connection
from tests.support.hub.faults import Refusal
from tests.support.hub.storage import Entry, is_lfs


class Writing(Connection):
    """What is sent is believed only as far as the Hub believes it."""

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
