"""Endpoints that only tell: who one is, what is there, and its bytes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

from tests.support.hub.connection import CHUNK, Connection
from tests.support.hub.faults import Refusal
from tests.support.hub.storage import Entry


class Reading(Connection):
    """What is asked for without changing anything."""

    def _whoami(self) -> None:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        role = self.hub.tokens[self.headers["Authorization"].removeprefix("Bearer ")][1]
        self._say({"type": "user", "name": user, "auth": {"type": "access_token", "accessToken": {"role": role}}})

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
        if not self._goes_on("done"):
            return
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
            half = start + (end - start) // 2
            for limit in (half, end):
                while start < limit:
                    chunk = file.read(min(CHUNK, limit - start))
                    self.wfile.write(chunk)
                    start += len(chunk)
                if limit == half and not self._goes_on("half"):
                    return
        if kind == "truncate":
            self._drop()
