"""Which pictures `detect` is given: files, folders, patterns, lists, addresses; all are looked for before the model."""

from __future__ import annotations

import io
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from converter.cli import main
from converter.cli.pictures import Picture, find_pictures
from converter.errors import ModelError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is worked in. What a picture is shows in its name alone, until it is read."""
    for name in ("b.jpg", "a.PNG", "c.txt", ".d.jpg", "more/e.webp", "more/.hidden/f.png", "found/g.png", "[x].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "dir.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str, recursive: bool = False, without: Path | None = None) -> list[str]:
    return [picture.name for picture in find_pictures(arguments, recursive=recursive, without=without)]


def test_a_folder_gives_its_pictures_sorted(photos: Path) -> None:
    assert names("photos") == ["photos/[x].jpg", "photos/a.PNG", "photos/b.jpg"]
    assert names("photos/") == ["photos/[x].jpg", "photos/a.PNG", "photos/b.jpg"]
    deep = names("photos", recursive=True)
    assert deep == ["photos/[x].jpg", "photos/a.PNG", "photos/b.jpg", "photos/found/g.png", "photos/more/e.webp"]
    assert names("photos", recursive=True, without=Path("photos/found")) == [*deep[:3], deep[4]]


def test_a_pattern_gives_what_matches(photos: Path) -> None:
    assert names("photos/*.jpg") == ["photos/[x].jpg", "photos/b.jpg"]
    assert names("photos/[ab]*") == ["photos/a.PNG", "photos/b.jpg"]
    assert "photos/more/e.webp" in names("photos/**/*.webp")
    assert names("photos/[x].jpg") == ["photos/[x].jpg"]  # a file of that name, and no pattern


def test_a_list_gives_what_its_lines_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "photos/b.jpg\r\n\n# no picture\nphotos/*.PNG\nhttps://host/x.jpg\nphotos/more"
    Path("list.txt").write_text(lines)
    expected = ["photos/b.jpg", "photos/a.PNG", "https://host/x.jpg", "photos/more/e.webp"]
    assert names("@list.txt") == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))
    assert names("@-") == expected
    Path("@list.txt").touch()
    assert names("@list.txt") == ["@list.txt"]  # a file of that name is that file


def test_names_of_any_bytes(photos: Path) -> None:
    name = b"photos/\xff.jpg"
    Path(os.fsdecode(name)).touch()
    Path("list.txt").write_bytes(name)
    assert names("@list.txt") == [os.fsdecode(name)]


def test_each_is_there_once_in_the_order_given(photos: Path) -> None:
    assert names("photos/b.jpg", "photos", "photos/a.PNG") == ["photos/b.jpg", "photos/[x].jpg", "photos/a.PNG"]


def test_a_file_that_is_spelled_in_two_ways_is_there_once(photos: Path) -> None:
    spelled = ("photos/b.jpg", "./photos/b.jpg", "photos//b.jpg", "photos/more/../b.jpg", str(photos / "photos/b.jpg"))
    assert names(*spelled) == ["photos/b.jpg"]
    (photos / "link.jpg").symlink_to("photos/b.jpg")
    (photos / "far").symlink_to("photos/more")
    assert names("photos/b.jpg", "link.jpg", "far/e.webp", "photos/more/e.webp") == [
        "photos/b.jpg",
        "link.jpg",
        "far/e.webp",
    ]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("absent.jpg", "absent.jpg: can't be read: No such file or directory."),
        ("photos/c.txt/x.jpg", "Not a directory"),
        ("absent/*.jpg", "absent/*.jpg: no file matches this pattern"),
        ("photos/dir.*", "no file matches this pattern"),
        ("photos/dir.jpg", "this folder holds no pictures (.jpg, "),
        ("@absent.txt", "absent.txt: cannot be read as a list of pictures: No such file or directory."),
        ("@photos", "cannot be read as a list of pictures"),
        ("@photos/c.txt", "this list names no picture"),
        ("ftp://host/a.jpg", "is not an address of the kind https://host/picture.jpg"),
        ("https:///a.jpg", "is not an address"),
        ("https://host:99999/a.jpg", "is not an address"),
        ("https://user:secret@host/a b.jpg?signature=x", "https://host/a b.jpg?...: is not an address"),
        ("/dev/null", "/dev/null: is not a file. Give a picture."),
        ("a\0b", "null byte"),
    ],
)
def test_what_cannot_be_found_is_said(argument: str, said: str, photos: Path) -> None:
    with pytest.raises(ModelError) as error:
        find_pictures([argument])
    assert said in str(error.value)


def test_all_problems_are_said_before_a_model_is_opened(photos: Path) -> None:
    result = CliRunner().invoke(
        main, ["detect", "no-model", "absent.jpg", "photos", "@no", "x/*.png", "--prompt", "dog."]
    )
    assert result.exit_code == 7
    assert result.stderr.splitlines() == [
        "error: 3 arguments cannot be used; nothing was done:",
        "  - absent.jpg: can't be read: No such file or directory.",
        "  - no: cannot be read as a list of pictures: No such file or directory.",
        "  - x/*.png: no file matches this pattern. Check the path.",
    ]


@pytest.mark.parametrize(
    ("name", "stem", "is_jpeg"),
    [
        ("a/b.JPEG", "b", True),
        ("b.tiff", "b", False),
        ("https://host/a%20b.jpg?w=1.png", "a b", True),
        ("https://host/", "", False),
    ],
)
def test_the_name_of_a_picture_says_of_what_kind_it_is(name: str, stem: str, is_jpeg: bool) -> None:
    picture = Picture(name)
    assert (picture.path.stem, picture.is_jpeg) == (stem, is_jpeg)


def test_a_pattern_goes_round_in_no_circle(photos: Path) -> None:
    for name in "xyz":  # 3 ** 40 ways, each as good as another
        Path("photos", name).symlink_to(".")
    Path("photos/far").symlink_to("more")
    found = ["photos/[x].jpg", "photos/a.PNG", "photos/b.jpg", "photos/c.txt", "photos/found/g.png"]
    assert names("photos/**") == names("photos/**/**/*") == [*found, "photos/more/e.webp"]
    assert names("**/e.webp") == ["photos/more/e.webp"]
    assert names("ph*/**/m*/*") == ["photos/more/e.webp"]
    assert names("photos/far/**/*.webp") == ["photos/far/e.webp"]
    os.chdir("photos")
    assert names("**/*.jpg") == ["[x].jpg", "b.jpg"]


@pytest.mark.parametrize("content", [b"a\0b/*.jpg\n", b"\n" * (17 << 20)], ids=["NUL", "large"])
@pytest.mark.parametrize("name", ["list", "-"])
def test_what_is_no_list(name: str, content: bytes, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with pytest.raises(ModelError, match=r"cannot be read as a list of pictures: (it is not text|larger than 16 MiB)"):
        names(f"@{name}")


def test_a_name_that_no_system_has(photos: Path) -> None:
    with pytest.raises(ModelError, match="can't be read: embedded null byte"):
        names("photos\0/*.jpg")


def test_of_many_problems_some_are_told(photos: Path) -> None:
    Path("list").write_text("absent\n" * 100_000)
    with pytest.raises(ModelError, match="1000 arguments") as error:
        names("@list")
    assert len(error.value.problems) == 1000


def test_no_room_for_what_was_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.cli.pictures.fetch", lambda address, limit: bytes(1 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        with (
            pytest.raises(ModelError, match="cannot be kept to be read: File too large"),
            Picture("https://host/a.jpg").opened(),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
