"""A Hub that is busy: what a program says of it on stderr, which is ours alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.alone import alone
from tests.support.hub.faults import status
from tests.support.hub.server import HubServer
from tests.support.publishing import REPO
from tests.support.tiny import tiny_weights


@pytest.mark.parametrize("step", ["info", "head"])
def test_what_a_program_says_of_a_busy_hub_is_its_own(step: str, hub: HubServer, tmp_path: Path) -> None:
    torch.save(tiny_weights(), tmp_path / "tiny.pth")
    hub.storage.create(REPO, False, "somebody")
    commit = hub.push(REPO, {"tiny.pth": (tmp_path / "tiny.pth").read_bytes()})
    hub.fail(step, *[status(500)] * (2 if step == "head" else 1))  # the client forgives the first of a file
    done = alone("inspect", f"hf://{REPO}/tiny.pth", HF_HOME=str(tmp_path / "home"))
    *again, using = done.stderr.splitlines()
    assert using == f"using hf://{REPO}/tiny.pth@{commit.id}"
    assert all(line.startswith("the Hub answered 500: ") for line in again), again
    assert done.returncode == 0
    assert not hub.faults[step]
