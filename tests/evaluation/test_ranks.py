"""Joining the processes that torchrun started, where something is in the way."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from converter.errors import ModelError
from converter.evaluation.ranks import Ranks, ranks


def test_alone_there_is_one() -> None:
    with ranks() as here:
        assert (here, here.is_first, here.told(3), here.gathered([1, 2])) == (Ranks(), True, 3, [1, 2])


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}], ids=str)
def test_an_environment_that_no_torchrun_made(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ModelError, match="the processes that torchrun started cannot be joined"), ranks():
        pass


def test_a_group_that_is_there_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model is trained, and evaluated now and then."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        with ranks() as here:
            assert (here.rank, here.count) == (0, 1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
