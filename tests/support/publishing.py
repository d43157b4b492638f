"""What tests of the Hub share: whose token, which repository, other shapes of the model, and how a refusal reads."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.cli.families import family_of
from converter.hub.requests import Retry
from converter.publish.commit import Publication, publish
from tests.support.hub.server import HubServer

CANARY = "hf_CanaryThatMustNeverBeShown0123456789"
REPO = "somebody/glip-small"


def shard(folder: Path) -> Path:
    """The same weights in two files; the certificate is of tensors, so it stays what it is."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def refused(request: Callable[[], object]) -> str:
    """The message of the HubError that it raises, with the token in no part of the traceback."""
    from converter.errors import HubError

    with pytest.raises(HubError) as caught:
        request()
    error = caught.value
    assert CANARY not in "".join(traceback.format_exception(error))
    assert error.__context__ is None or CANARY not in repr(error.__context__)
    return str(error)


class Clock:
    """Seconds that were waited for, without waiting."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lines: list[str] = []

    def retry(self, attempts: int = 5) -> Retry:
        return Retry(attempts=attempts, sleep=self.seconds.append)


def go(folder: Path, clock: Clock, **options: Any) -> Publication:
    return publish(folder, REPO, family_of, retry=clock.retry(), say=clock.lines.append, **options)


def files_at(hub: HubServer, revision: str = "main") -> dict[str, str]:
    """sha256 of every file of a revision."""
    commit = hub.repository(REPO).find(revision)
    assert commit is not None
    return {path: hashlib.sha256(hub.content(REPO, path, revision)).hexdigest() for path in commit.files}


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def change_card(folder: Path, more: str = "More of it.\n") -> None:
    """Still of these weights."""
    with (folder / "README.md").open("a") as file:
        file.write(more)


def is_published(hub: HubServer, folder: Path, revision: str = "main") -> bool:
    there = files_at(hub, revision)
    there.pop(".gitattributes")
    return there == files_of(folder)


def commits(hub: HubServer, revision: str = "main") -> list[str]:
    """Titles, newest first."""
    repository = hub.repository(REPO)
    head = repository.find(revision)
    assert head is not None
    return [commit.title for commit in repository.history(head)]
