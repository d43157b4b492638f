"""Weights and the residue beside them: at no moment is there a pair of which one half is of other weights."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converter.checkpoint import open_checkpoint
from converter.writing import commit
from converter.writing.residue import read_residue, residue_path
from converter.writing.staging import Staging, waiting_name
from tests.support.small_files import equal, official, official_of, refusal, run

pytestmark = pytest.mark.usefixtures("small_mappings")


def test_a_folder_keeps_its_residue_inside(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    run("convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--keep-residue")
    assert (tmp_path / "own" / "residue.safetensors").is_file()
    for source in ("own", "own/model.safetensors"):
        run("convert", "--src", tmp_path / source, "--dst", tmp_path / "b.pth", "--to", "glip-official", "--force")
        assert equal(torch.load(tmp_path / "b.pth", weights_only=True)["model"], official_of(tmp_path / "official.pth"))
    again = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--force"]
    kept = (tmp_path / "own" / "residue.safetensors").read_bytes()
    assert "holds residue.safetensors, which --force would lose" in refusal(*again, code=6)["message"]
    assert (tmp_path / "own" / "residue.safetensors").read_bytes() == kept
    run(*again, "--keep-residue")
    (tmp_path / "own" / "residue.safetensors").write_bytes(b"precious")
    assert "does not belong to own" in refusal(*again, "--keep-residue", code=6)["message"]


def test_a_ledger_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The residue would be left out without a word, or said to be of other weights."""
    torch.save(official(), tmp_path / "official.pth")
    again = ["convert", "--src", tmp_path / "official.pth", "--dst", tmp_path / "own", "--keep-residue"]
    run(*again)

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("converter.writing.ledger.read_json", refuse)
    back = ["convert", "--src", tmp_path / "own", "--dst", tmp_path / "back.pth", "--to", "glip-official"]
    for command in (back, [*again, "--force"]):
        assert "conversion.json: cannot be read: Input/output error. Check" in refusal(*command, code=3)["message"]
    assert not (tmp_path / "back.pth").exists()
    monkeypatch.setattr("converter.writing.destination.read_json", refuse)
    assert "own cannot be written: Input/output error" in refusal(*again[:-1], "--force", code=6)["message"]


def test_a_residue_is_replaced_only_with_the_file_that_it_belongs_to(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "official.pth")
    own = tmp_path / "own.safetensors"
    arguments = ["convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue", "--force"]
    run(*arguments)
    torch.save(official(), tmp_path / "official.pth")
    run(*arguments)
    residue_path(own).write_bytes(b"precious")
    assert "does not belong to own.safetensors" in refusal(*arguments, code=6)["message"]
    assert residue_path(own).read_bytes() == b"precious"
    residue_path(own).unlink()
    run(*arguments)
    own.unlink()
    kept = residue_path(own).read_bytes()
    assert "does not belong to own.safetensors" in refusal(*arguments, code=6)["message"]
    assert residue_path(own).read_bytes() == kept


@pytest.fixture
def between(tmp_path: Path) -> list[Any]:
    """An old pair, and beside it, waiting, the residue of other weights, which lie in `new`: the command for those."""
    for name, more in (("old", 0), ("new", 1)):
        weights = {
            key: tensor + more if tensor.is_floating_point() and "anchor" not in key else tensor
            for key, tensor in official().items()
        }
        torch.save(weights, tmp_path / f"{name}.pth")
        own = tmp_path / name / "own.safetensors"
        own.parent.mkdir()
        run("convert", "--src", tmp_path / f"{name}.pth", "--dst", own, "--keep-residue")
    os.replace(
        residue_path(tmp_path / "new" / "own.safetensors"),
        waiting_name(residue_path(tmp_path / "old" / "own.safetensors")),
    )
    destination = tmp_path / "old" / "own.safetensors"
    return ["convert", "--src", tmp_path / "new.pth", "--dst", destination, "--keep-residue", "--force"]


@pytest.mark.parametrize("holds", ["old", "new"])
def test_between_two_names_there_is_one_pair(holds: str, between: list[Any], tmp_path: Path) -> None:
    """Before and after the weights got their name; the same command then gives the new pair."""
    own = tmp_path / "old" / "own.safetensors"
    if holds == "new":
        os.replace(tmp_path / "new" / "own.safetensors", own)
    back = ["convert", "--src", own, "--dst", tmp_path / "back.pth", "--to", "glip-official", "--force"]
    run(*back)
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official_of(tmp_path / f"{holds}.pth"))
    run(*between)
    assert {path.name for path in own.parent.iterdir()} == {own.name, residue_path(own).name}
    run(*back)
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official_of(tmp_path / "new.pth"))


def test_a_residue_that_waits_gets_its_name_from_a_run_that_is_refused(between: list[Any], tmp_path: Path) -> None:
    """Who copies the two files afterwards has both."""
    own = tmp_path / "old" / "own.safetensors"
    os.replace(tmp_path / "new" / "own.safetensors", own)
    assert "exists" in refusal(*between[:-1], code=6)["message"]
    assert {path.name for path in own.parent.iterdir()} == {own.name, residue_path(own).name}
    with open_checkpoint(residue_path(own)) as residue, open_checkpoint(own) as weights:
        assert read_residue(residue).belongs(weights)


def test_a_residue_stays_if_it_cannot_be_told_whose_it_is(
    between: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "old" / "own.safetensors"
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path) == str(own):
            raise OSError(24, "Too many open files")
        return real(path, *arguments, **options)

    before = sorted(own.parent.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert "Too many open files" in refusal(*between, code=3)["message"]
    assert sorted(own.parent.iterdir()) == before


@pytest.mark.parametrize("holds", ["old", "new"])
def test_a_dry_run_leaves_what_waits(holds: str, between: list[Any], tmp_path: Path) -> None:
    """And says of either state that the command would succeed."""
    if holds == "new":
        os.replace(tmp_path / "new" / "own.safetensors", tmp_path / "old" / "own.safetensors")
    before = sorted((tmp_path / "old").iterdir())
    run(*between, "--dry-run")
    assert sorted((tmp_path / "old").iterdir()) == before


def test_the_same_tensors_of_another_file_have_another_residue(tmp_path: Path) -> None:
    """The hash of the tensors alone does not tell two conversions apart."""
    weights = {"plain": official(), "short": {key.removeprefix("module."): t for key, t in official().items()}}
    for name, tensors in weights.items():
        torch.save(tensors if name == "plain" else {"weights": tensors}, tmp_path / f"{name}.pth")
        run("convert", "--src", tmp_path / f"{name}.pth", "--dst", tmp_path / f"{name}.safetensors", "--keep-residue")
    plain, short = tmp_path / "plain.safetensors", tmp_path / "short.safetensors"
    assert equal(load_file(plain), load_file(short))
    with (
        open_checkpoint(residue_path(plain)) as residue,
        open_checkpoint(plain) as own,
        open_checkpoint(short) as other,
    ):
        assert read_residue(residue).belongs(own)
        assert not read_residue(residue).belongs(other)


@pytest.fixture
def twins(tmp_path: Path) -> list[Path]:
    """Pairs of one model whose residues alone differ."""
    made = []
    for name in ("a", "b"):
        weights = official()
        weights["module.rpn.head.cls_logits.bias"] = torch.full_like(
            weights["module.rpn.head.cls_logits.bias"], len(made) + 1.0
        )
        torch.save(weights, tmp_path / f"{name}.pth")
        made.append(tmp_path / name / "own.safetensors")
        made[-1].parent.mkdir()
        run("convert", "--src", tmp_path / f"{name}.pth", "--dst", made[-1], "--keep-residue")
    return made


def test_a_residue_that_differs_in_its_values_alone_is_another(twins: list[Path], tmp_path: Path) -> None:
    a, b = twins
    assert equal(load_file(a), load_file(b))
    os.replace(residue_path(a), residue_path(b))
    back = ["convert", "--src", b, "--dst", tmp_path / "back.pth", "--to", "glip-official"]
    assert "belongs to another conversion and is not used" in run(*back).stderr


def test_weights_that_were_put_beside_another_ones_record_get_none_of_its_residue(tmp_path: Path) -> None:
    """A folder's files state names alone."""
    for name, more in (("a", 0), ("b", 1)):
        weights = {
            key: tensor + more if tensor.is_floating_point() and "anchor" not in key else tensor
            for key, tensor in official().items()
        }
        torch.save(weights, tmp_path / f"{name}.pth")
        run("convert", "--src", tmp_path / f"{name}.pth", "--dst", tmp_path / name, "--keep-residue")
    os.replace(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "model.safetensors")
    back = ["convert", "--src", tmp_path / "b", "--dst", tmp_path / "back.pth", "--to", "glip-official"]
    assert "is not the one that its conversion recorded" in refusal(*back, code=3)["message"]
    assert not (tmp_path / "back.pth").exists()
    run(*back, "--residue", tmp_path / "a" / "residue.safetensors")
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official_of(tmp_path / "a.pth"))


def test_what_waits_gets_its_name_where_there_are_no_locks(
    between: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(commit.fcntl, "flock", refuse)
    own = tmp_path / "old" / "own.safetensors"
    os.replace(tmp_path / "new" / "own.safetensors", own)
    run(*between)
    assert {path.name for path in own.parent.iterdir()} == {own.name, residue_path(own).name}


@pytest.mark.parametrize("there", ["nothing", "a pair"])
@pytest.mark.parametrize("name", ["own.safetensors", "own"])
def test_a_residue_that_arrives_meanwhile_is_not_replaced(
    name: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(official(), tmp_path / "official.pth")
    own = tmp_path / name
    command = ["convert", "--src", tmp_path / "official.pth", "--dst", own, "--keep-residue", "--force"]
    if there == "a pair" or name == "own":
        run(*command)
    commit_now = Staging.commit

    def arriving(stage: Staging, on_done: Any) -> None:
        residue_path(own).write_bytes(b"mine")
        commit_now(stage, on_done)

    monkeypatch.setattr(Staging, "commit", arriving)
    before = {path.name for path in tmp_path.iterdir()} | {residue_path(own).relative_to(tmp_path).parts[0]}
    assert "does not belong" in refusal(*command, code=6)["message"]
    assert residue_path(own).read_bytes() == b"mine"
    assert {path.name for path in tmp_path.iterdir()} == before
