"""A table is known by its hash, not by what it calls itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import TableError
from converter.mapping import documents, folders
from converter.mapping.documents import names_of
from converter.mapping.folders import mappings_folder
from converter.mapping.load import load_table
from converter.mapping.released import is_as_released, is_released, released
from converter.mapping.spec import load_spec
from converter.mapping.wrappers import load_wrappers
from tests.support.small_files import refusal

DO = (
    "mappings/released.json does not list {1}, the hash that {0} has now. If it was changed on purpose, put this one "
    "there; keep those of versions that were released, since what they made is published."
)


@pytest.mark.parametrize("name", sorted([*names_of("table"), *names_of("spec")]))
def test_every_built_in_table_is_released(name: str) -> None:
    sha256 = load_spec(name).sha256 if name in names_of("spec") else load_table(name).sha256
    assert is_released(name, sha256), DO.format(name, sha256)


FILES = sorted(path for path in mappings_folder().glob("*.json") if path.stem not in {"schema", "released"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_as_released_and_sound(path: Path) -> None:
    """So that no run checks it again. With what it includes, a table has another hash."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert is_released(path.stem, sha256), DO.format(path.name, sha256)
    assert documents._checked(path, json.loads(path.read_text()).get("kind")).sha256 == sha256


def test_no_other_name_is_released() -> None:
    assert set(released()) == {path.stem for path in FILES}


def test_a_hash_is_of_one_name_alone() -> None:
    assert not is_released("mmdet-glip", load_table("glip-official").sha256)


def exchanged(name: str, folder: Path) -> Path:
    """The built-in table of official checkpoints, but that two rows of the word embedding are exchanged."""
    table = json.loads((mappings_folder() / "glip-official.json").read_text())
    (rule,) = (rule for rule in table["rules"] if rule["target"] == "text_encoder.embeddings.word.weight")
    rule["ops"] = [{"op": "permute_blocks", "axis": 0, "blocks": [2, "vocab_size // 2"], "order": [0, 1]}]
    path = folder / "my-table.json"
    path.write_text(json.dumps(table | {"name": name}))
    return path


@pytest.mark.parametrize("name", ["glip-official", "mmdet-glip", "glip"])
def test_a_table_of_ones_own_cannot_have_a_built_in_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=rf"my-table\.json: /name is '{name}'.*Choose another"):
        load_table(exchanged(name, tmp_path))


def test_by_another_name_it_is_custom(tmp_path: Path) -> None:
    table = load_table(exchanged("glip-offlcial", tmp_path))
    assert not is_released(table.name, table.sha256)


def test_a_copy_laid_out_otherwise_is_the_table_itself(tmp_path: Path) -> None:
    for name in ("glip-official", "glip"):
        content = json.loads((mappings_folder() / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(content, indent=8))
    assert load_table(tmp_path / "glip-official.json").sha256 == load_table("glip-official").sha256
    assert load_spec(tmp_path / "glip.json").sha256 == load_spec("glip").sha256


@pytest.mark.parametrize("content", ["", "[]", '{"t": "x"}', '{"t": ["x"]}', '{"t": [1]}', '{"t": 1}'])
def test_a_list_that_is_none_is_named(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folders.RELEASED).write_text(content)
    monkeypatch.setattr("converter.mapping.folders.mappings_folder", lambda: tmp_path)
    with pytest.raises(TableError, match=r"released\.json: does not list the hashes"):
        released()


def test_a_family_vouches_for_its_own_tables_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folders.RELEASED).write_text(json.dumps({"its-own": ["a" * 64], "glip-official": ["b" * 64]}))
    family = folders.InstalledFamily("other", "other", tmp_path)
    monkeypatch.setattr("converter.mapping.folders.installed_families", lambda: (family,))
    assert is_released("its-own", "a" * 64)
    assert not is_released("glip-official", "b" * 64)


@pytest.mark.parametrize("content", ["[1]", "{}", None])
def test_a_document_beside_a_damaged_list_or_none_is_checked(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "glip.json"
    path.write_bytes((mappings_folder() / "glip.json").read_bytes())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if content is not None:
        (tmp_path / folders.RELEASED).write_text(content)
    assert not is_as_released(path, sha256)
    assert is_as_released(mappings_folder() / "glip.json", sha256)


LOADS: dict[str, Callable[[], object]] = {
    "glip": lambda: load_spec("glip"),
    "mmpretrain-glip": lambda: load_table("mmpretrain-glip"),
    "swin-blocks": lambda: load_table("timm-swin"),  # which includes it
    "wrappers": load_wrappers,
}


@pytest.mark.usefixtures("small_mappings")
@pytest.mark.parametrize("name", LOADS)
def test_a_built_in_file_that_was_changed_is_checked_on_every_run(name: str) -> None:
    load_wrappers.cache_clear()
    LOADS[name]()
    path = folders.mappings_folder() / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unheard": 1}))
    load_wrappers.cache_clear()
    with pytest.raises(TableError, match=rf"{name}\.json breaks mappings/schema\.json"):
        LOADS[name]()
    assert f"{name}.json breaks mappings/schema.json" in refusal("lint", code=4)["message"]


@pytest.mark.usefixtures("small_mappings")
def test_one_that_was_not_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(content: object, path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(documents, "_validate", refuse)
    load_wrappers.cache_clear()
    for load in LOADS.values():
        load()
