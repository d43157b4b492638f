"""A name that was meant for a file does not become a folder's."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from converter.cli import main
from converter.errors import DestinationError
from converter.publish.package import check_package_destination
from converter.writing.destination import check_destination
from converter.writing.names import WRITTEN, check_folder_name, is_file_name

MEANT = {
    "glip.safetensor": "glip.safetensors",
    "glip.safetensrs": "glip.safetensors",
    "glip.safetesnors": "glip.safetensors",
    "glip.Safetensors": "glip.safetensors",
    "glip.safe_tensors": "glip.safetensors",
    "glip.safetensors ": "glip.safetensors",
    "GLIP.PTH": "GLIP.pth",
    "glip.pht": "glip.pth",
    "glip.pthh": "glip.pth",
    "glip-1.0.pt2": "glip-1.0.pt",
    "model.bin2": "model.bin",
    "model.bni": "model.bin",
    "glip.ckpt": "glip.safetensors",
    "glip.CKPT": "glip.safetensors",
    "glip.th": "glip.safetensors",
    "glip.sft": "glip.safetensors",
    "glip.st": "glip.safetensors",
    "glip.h5": "glip.safetensors",
    "glip.weights": "glip.safetensors",
    "glip.pth.tar": "glip.pth",
    "glip.safetensors.gz": "glip.safetensors",
    "glip-1.0.tar.gz": "glip-1.0.safetensors",
}
FOLDERS = [
    "glip",
    "glip-t.v2",
    "glip-1.0",
    "out.d",
    "glip.fp16",
    "glip.base",
    "glip.big",
    "glip.opt",
    "glip.",
    "v1.2.x",
]


@pytest.mark.parametrize("name", MEANT)
def test_a_name_that_reads_like_a_file_is_refused_with_the_right_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(DestinationError) as caught:
        check_destination(tmp_path / name, force=True, inputs=[])
    assert f"Did you mean {MEANT[name]!r}?" in str(caught.value)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_files_that_are_written_are_not_refused(suffix: str, tmp_path: Path) -> None:
    assert is_file_name(tmp_path / f"glip{suffix}")
    check_destination(tmp_path / f"glip{suffix}", force=False, inputs=[])
    with pytest.raises(DestinationError, match="names no file or folder"):
        check_destination(tmp_path / suffix, force=False, inputs=[])


@pytest.mark.parametrize("name", FOLDERS)
def test_names_of_folders_stay_names_of_folders(name: str, tmp_path: Path) -> None:
    assert not is_file_name(tmp_path / name)
    check_destination(tmp_path / name, force=False, inputs=[])
    check_folder_name(tmp_path / name, "a package is")


@pytest.mark.parametrize("name", ["glip.ckpt", "GLIP.PTH"])
def test_a_folder_that_is_there_is_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    check_destination(tmp_path / name, force=False, inputs=[])
    check_folder_name(tmp_path / name, "a package is")


@pytest.mark.parametrize("name", ["out.safetensors", "out.safetensor", "out.zip", "OUT.PTH"])
def test_a_package_is_a_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=rf"a package is a folder; choose a name without \.{name[4:]}$"):
        check_package_destination(tmp_path / name, force=True, inputs=[])


@pytest.mark.parametrize(
    "arguments",
    [
        ["draft", "--src", "a.pth", "--target", "b.pth", "--out", "table.json"],
        ["detect", "a.safetensors", "street.jpg", "--prompt", "dog.", "--out", "found.png"],
    ],
)
def test_other_commands_make_no_folder_of_a_files_name(arguments: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name in ("a.pth", "b.pth"):
        save_file({}, tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "street.jpg")
    where = [str(tmp_path / word) if "." in word and word != "dog." else word for word in arguments]
    result = CliRunner().invoke(main, where)
    assert (result.exit_code, "are written to a folder; choose a name without ." in result.stderr) == (6, True)
    assert not (tmp_path / arguments[-1]).exists()
