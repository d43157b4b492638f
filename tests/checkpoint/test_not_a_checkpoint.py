"""What people hand in by mistake is recognised and refused with what to do about it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converter.checkpoint import open_checkpoint
from converter.errors import CheckpointError, NotACheckpointError, RootError
from tests.support.craft_files import Member, Write, torch_members, torch_zip, zip_file
from tests.support.craft_pickle import SIX, tensor
from tests.support.reading import SIX as SIX_BITS
from tests.support.reading import contents, refusal

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 932169187\n"


def tar_of_torch_before_0_1_10() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps({"name": name}, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("folder/readme.txt", "hello")
    return buffer.getvalue()


def torchscript() -> bytes:
    members = torch_members({"w": tensor()}, {"0": SIX})
    members["constants"] = Member("archive/constants.pkl", pickle.dumps((), protocol=2))
    members["code"] = Member("archive/code/__torch__.py", b"class Net(Module):\n  pass\n")
    return zip_file(list(members.values()))


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "HTML": (lambda: b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", "web page"),
    "HTML after blank lines": (lambda: b"\n\n  <html>", "web page"),
    "HTML with a byte order mark": (lambda: b"\xef\xbb\xbf<!DOCTYPE html>", "web page"),
    "XML": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "JSON": (lambda: b'{"message": "Not Found", "status": "404"}', "torch.save"),
    "LFS pointer": (lambda: LFS, "git lfs pull"),
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"P", "torch.save"),
    "zeros": (lambda: bytes(5000), "begins with zeros"),
    "random bytes": (lambda: random.Random(0).randbytes(4096), "torch.save"),
    "text": (lambda: b"[net]\nbatch=64\n", "torch.save"),
    "Python": (lambda: b"import torch\ntorch.load('x')\n", "torch.save"),
    "tar": (tar_of_torch_before_0_1_10, "torch older than 0.1.10"),
    "zip": (plain_zip, "data.pkl"),
    "empty zip": (lambda: zip_file([]), "empty"),
    "TorchScript": (torchscript, "torch.jit.load"),
    "gzip": (lambda: gzip.compress(torch_zip({"w": tensor()}, {"0": SIX})), "gzip"),
    "pickle of numbers": (lambda: pickle.dumps([1, 2, 3]), "torch.save"),
    "pickle of a dict": (lambda: pickle.dumps({"model": {"w": [1.0]}}, protocol=2), "torch.save"),
    "pickle in text": (lambda: pickle.dumps([1, 2, 3], protocol=0), "torch.save"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xa0\x01", "ONNX"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "numpy"),
    "GGUF": (lambda: b"GGUF\3\0\0\0" + bytes(100), "GGUF"),
    "ELF": (lambda: b"\x7fELF\2\1\1" + bytes(100), "torch.save"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_recognised(kind: str, write: Write) -> None:
    data, recognised = FILES[kind]
    assert recognised in refusal(write(data()), NotACheckpointError)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_refused_under_the_name_of_safetensors(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[kind][0]())
    refusal(path)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_as_torch_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "torch.jit.load" in refusal(path, NotACheckpointError)


def test_torch_save_of_no_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    assert "list of 3" in refusal(tmp_path / "list.pth", RootError)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.pth", NotACheckpointError)


def test_a_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path, NotACheckpointError)


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "FIFO" in refusal(tmp_path / "fifo", NotACheckpointError)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_fifo_in_a_folder_is_refused_without_waiting(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(NotACheckpointError, match="FIFO"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device(device: str) -> None:
    assert "device" in refusal(Path(device), NotACheckpointError)


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "socket" in refusal(Path("s"), NotACheckpointError)


@pytest.mark.parametrize(
    "name", ["n" * 300, "d/" * 3000, "file.pth/inside", "a\0b"], ids=["name", "path", "file", "NUL"]
)
def test_a_path_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.pth").touch()
    with pytest.raises(NotACheckpointError):
        open_checkpoint(tmp_path / name)


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refusal(tmp_path / "loop", NotACheckpointError)


def test_a_link_to_a_file_is_that_file(write: Write, tmp_path: Path) -> None:
    write(torch_zip({"w": tensor()}, {"0": SIX}))
    (tmp_path / "link.pth").symlink_to("crafted.pth")
    assert contents(tmp_path / "link.pth") == SIX_BITS


def test_a_path_may_be_text(write: Write) -> None:
    with open_checkpoint(str(write(torch_zip({"w": tensor()}, {"0": SIX})))) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


@pytest.mark.parametrize(
    "data", [b"", b"<html>", zip_file([Member("a/b", b"")], after=b"x")], ids=["empty", "HTML", "zip"]
)
def test_a_path_with_control_characters_is_shown_escaped(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nb.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()


def test_files_are_closed_when_they_are_refused(write: Write) -> None:
    before = os.listdir("/proc/self/fd")
    for data, _ in FILES.values():
        refusal(write(data()))
    assert len(os.listdir("/proc/self/fd")) == len(before)
