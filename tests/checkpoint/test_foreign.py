"""Files of other kinds as their own programs write them: what each is, and what to do."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from converter.errors import CheckpointError, CorruptCheckpointError, NotACheckpointError, UnsupportedCheckpointError
from tests.support.craft_files import Write
from tests.support.reading import Apart, contents, loaded, refusal

STATE_DICT = {"w": torch.arange(6.0).view(2, 3)}


def saved(**options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE_DICT, buffer, **options)
    return buffer.getvalue()


def tarred(*names: str, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as tar:
        link = tarfile.TarInfo("link.pth")  # never the file to unpack
        link.type, link.linkname = tarfile.SYMTYPE, "model.pth"
        tar.addfile(link)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data := saved())
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(*names: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in names:
            file.writestr(name, saved())
    return buffer.getvalue()


def gzipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(name, "wb", fileobj=buffer) as file:
        file.write(data)
    return buffer.getvalue()


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3), b=np.zeros(2))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


PACKED: dict[str, tuple[Callable[[], bytes], str]] = {
    "tar": (
        lambda: tarred("readme.txt", "run/model.pth"),
        "a tar archive with 'run/model.pth' in it. Unpack it (tar -xf), and give that file.",
    ),
    "old tar": (lambda: tarred("model.bin", format=tarfile.USTAR_FORMAT), "a tar archive with 'model.bin' in it."),
    "GNU tar": (lambda: tarred("n" * 200, "m.pt", format=tarfile.GNU_FORMAT), "a tar archive with 'm.pt' in it."),
    "tar of many": (lambda: tarred(*(f"{i}.pth" for i in range(9))), "'4.pth' and 4 more in it."),
    "tar of text": (lambda: tarred("readme.txt"), "a tar archive, without a checkpoint among its first members."),
    "tar of none": (lambda: tarred(), "a tar archive, without a checkpoint among its first members."),
    "zip": (
        lambda: zipped("glip/readme.txt", "glip/model.pth"),
        "a zip archive with 'glip/model.pth' in it. Unpack it (unzip), and give that file.",
    ),
    "stored zip": (lambda: zipped("model.pth", method=zipfile.ZIP_STORED), "a zip archive with 'model.pth' in it."),
    "gzip": (
        lambda: gzipped("model.pth", saved()),
        "compressed with gzip from 'model.pth': a zip archive, as torch.save writes them. Unpack it first (gzip -dc).",
    ),
    "gzip without a name": (lambda: gzip.compress(bytes(9)), "compressed with gzip. Unpack it first (gzip -dc)."),
    "gzip of a legacy file": (
        lambda: gzip.compress(saved(_use_new_zipfile_serialization=False)),
        "compressed with gzip: a pickle, as torch.save wrote them.",
    ),
    "gzip of safetensors": (lambda: gzip.compress(save(STATE_DICT)), "compressed with gzip: safetensors, it seems."),
    "tar.gz": (
        lambda: tarred("a/model.pth", mode="w:gz"),
        "a tar archive with 'a/model.pth' in it, compressed with gzip. Unpack it (tar -xzf), and give the checkpoint",
    ),
    "damaged gzip": (lambda: b"\x1f\x8b" + bytes(100), "compressed with gzip. Unpack it first (gzip -dc)."),
    "bzip2": (lambda: bz2.compress(saved()), "compressed with bzip2. Unpack it first"),
    "xz": (lambda: lzma.compress(saved()), "compressed with xz. Unpack it first"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd\x04\x58" + bytes(50), "compressed with Zstandard. Unpack it first"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(50), "a 7-Zip archive. Unpack it first"),
    "rar": (lambda: b"Rar!\x1a\7\1\0" + bytes(50), "a RAR archive. Unpack it first"),
}
PAGE = "<html><head>\n<title>\n  Sign in &amp; wait </title></head></html>"
AZURE = (
    '<?xml version="1.0" encoding="utf-8"?><Error><Code>PublicAccessNotPermitted</Code><Message>No.</Message></Error>'
)
TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "page": (lambda: PAGE.encode(), "a web page that says 'Sign in & wait'. The download went wrong: get the file"),
    "page with a doctype": (lambda: b"\r\n <!DOCTYPE HTML><p>", "a web page. The download went wrong"),
    "page in UTF-16": (lambda: PAGE.encode("utf-16"), "a web page that says 'Sign in & wait'."),
    "page in big-endian UTF-16": (
        lambda: codecs.BOM_UTF16_BE + ("\n\n" + PAGE).encode("utf-16-be"),
        "a web page that says 'Sign in & wait'.",
    ),
    "page in Latin-1": (
        lambda: PAGE.replace("Sign in", "Accès refusé").encode("latin-1"),
        "a web page that says 'Acc\ufffds refus\ufffd & wait'.",
    ),
    "page in GBK": (lambda: "\n<html><title>请先登录</title>".encode("gbk"), "a web page. The download went wrong"),
    "answer of Azure": (
        lambda: codecs.BOM_UTF8 + AZURE.encode(),
        "XML, most likely the answer of a server that says 'PublicAccessNotPermitted'. The download went wrong: get",
    ),
    "long page": (
        lambda: (PAGE + "-" * (len(PAGE) % 2 + 1) + "é" * 5000).encode(),
        "a web page that says 'Sign in & wait'.",
    ),
    "long title": (lambda: f"<title>{'x' * 3000}".encode(), "(3000 characters)"),
    "JSON": (lambda: b'{"message": "Not Found"}', 'is text (\'{"message": "Not Found"}\'), so neither torch.save'),
    "YAML": (lambda: b"MODEL:\n  META_ARCHITECTURE: x\n", "is text ('MODEL:'), so neither"),
    "Python": (lambda: b"#!/usr/bin/env python\nimport torch\n", "is text ('#!/usr/bin/env python')"),
    "text in Latin-1": (lambda: "Accès refusé".encode("latin-1"), "begins with b'Acc\\xe8s re', so neither"),
    "blanks": (lambda: b" \n" * 3000, "begins with"),
}
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "npy": (npy, "a numpy array (.npy)."),
    "npz": (npz, "numpy arrays (.npz), not a checkpoint."),
    "PNG": (lambda: image("png"), "an image."),
    "JPEG": (lambda: image("jpeg"), "an image."),
    "GIF": (lambda: image("gif"), "an image."),
    "TIFF": (lambda: image("tiff"), "an image."),
    "WebP": (lambda: image("webp"), "an image."),
    "GGUF": (lambda: b"GGUF\3\0\0\0" + bytes(50), "a GGUF file, of llama.cpp."),
    "Keras": (lambda: zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model."),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes weights (.h5)."),
    "ONNX": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0:\xa0\x01" + bytes(9), "an ONNX model."),
    "Flax": (lambda: b"\x81\xa6params\x81\xa5Dense\xc7\x20\x01", "a file of msgpack, as Flax writes weights."),
    "empty": (lambda: b"", "empty. Get the file again."),
    "zeros": (lambda: bytes(1 << 20), "begins with zeros, as a download leaves it that was never filled."),
}


@pytest.mark.parametrize("kind", [*PACKED, *TEXTS, *MODELS])
def test_a_file_is_named_with_what_to_do(kind: str, write: Write) -> None:
    data, said = {**PACKED, **TEXTS, **MODELS}[kind]
    assert said in refusal(write(data()), NotACheckpointError)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.ckpt.index", "a TensorFlow checkpoint."),
        ("model.ckpt-100.data-00000-of-00001", "a TensorFlow checkpoint."),
        ("variables.data-00000-of-00001", "a TensorFlow checkpoint."),
        ("frozen_graph.pb", "a TensorFlow graph or SavedModel."),
        ("flax_model.msgpack", "a Flax model."),
        ("model.onnx", "an ONNX model."),
    ],
)
def test_a_file_without_magic_bytes_is_known_by_its_name(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0\1\2\3" * 20)
    assert said in refusal(tmp_path / name, NotACheckpointError)
    (tmp_path / name).write_bytes(b"<html>")
    assert "a web page" in refusal(tmp_path / name, NotACheckpointError)


@pytest.mark.parametrize("name", ["frozen.pb", "model.onnx", "model.index", "model.msgpack", "x.tar", "x.gz", "x.txt"])
def test_a_checkpoint_may_have_any_name(name: str, tmp_path: Path) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(STATE_DICT, tmp_path / name, **options)
        assert contents(tmp_path / name) == loaded(STATE_DICT)


def test_an_archive_of_torch_that_was_compressed_is_still_one_of_torch(write: Write) -> None:
    path = write(saved())
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "zip -0" in refusal(path.with_suffix(".zip"), UnsupportedCheckpointError)


def test_a_damaged_archive_of_torch_is_not_called_another(write: Write) -> None:
    path = write(saved() + b"x")
    assert "1 bytes follow" in refusal(path, CorruptCheckpointError)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_exported_program_as_torch_writes_it(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "linear.pt2")
    assert "torch.export.load" in refusal(tmp_path / "linear.pt2", NotACheckpointError)


def test_an_exported_program_of_torch_before_2_8(write: Write) -> None:
    path = write(zipped("version", "serialized_exported_program.json", "serialized_state_dict.pt"))
    assert "torch.export.load" in refusal(path, NotACheckpointError)


def test_a_bomb_is_not_unpacked(write: Write) -> None:
    path = write(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    try:
        assert "compressed with gzip" in refusal(path, NotACheckpointError)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_file_of_any_few_bytes_is_refused(count: int, write: Write) -> None:
    for byte in range(256):
        refusal(write(bytes([byte]) * count), CheckpointError)


def test_of_a_tar_with_large_members_the_headers_alone_are_read(write: Write) -> None:
    info = tarfile.TarInfo("hole.dat")
    info.size = 1 << 34  # beyond 8 GiB, a size is written in another way
    path = write(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 512 + info.size)
    with path.open("ab") as file:
        file.write(tarred("model.pth"))
    assert "with 'model.pth' in it" in refusal(path, NotACheckpointError)


def test_a_zip_beyond_4_gib_is_named_too(apart: Apart, tmp_path: Path) -> None:
    hole = 5 << 30  # which takes no room on the disk
    path = tmp_path / "glip.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("model.pth", saved())
        (member,) = file.infolist()
        member.file_size = member.compress_size = hole
        file.start_dir = member.header_offset + hole + 100
    assert path.stat().st_size > hole
    assert zipfile.ZipFile(path).getinfo("model.pth").file_size == hole
    (outcome,) = apart(path)
    assert "is a zip archive with 'model.pth' in it. Unpack it (unzip), and give that file." in str(outcome.refusal)
    assert (outcome.seconds < 2, outcome.growth < 100) == (True, True)


def test_a_zip_with_a_comment_is_named_too(write: Write) -> None:
    path = write(zipped("model.pth"))
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"of a release"
    assert "is a zip archive with 'model.pth' in it." in refusal(path, NotACheckpointError)


def test_large_files_take_little(apart: Apart, tmp_path: Path) -> None:
    heads = [data()[:2000] for data, _ in (*PACKED.values(), *TEXTS.values(), *MODELS.values())]
    paths = [tmp_path / f"{number}.pth" for number in range(len(heads) + 3)]
    for path, head in zip(paths, [*heads, b"L", b"(", b"\x80\2"], strict=True):
        path.write_bytes(head)
        os.truncate(path, 1 << 32)  # a hole, which takes no room on the disk
    outcomes = apart(*paths)
    assert all(outcome.refusal for outcome in outcomes)
    assert max(outcome.seconds for outcome in outcomes) < 2
    assert max(outcome.growth for outcome in outcomes) < 100


@settings(max_examples=300)
@given(
    head=st.sampled_from([data for data, _ in (*PACKED.values(), *TEXTS.values(), *MODELS.values())]), data=st.data()
)
def test_any_bytes_are_refused_in_one_sentence(head: Callable[[], bytes], data: st.DataObject, write: Write) -> None:
    whole = bytearray(head()[: data.draw(st.integers(0, 1500))])
    for place in data.draw(st.lists(st.integers(0, 1500), max_size=5)):
        if place < len(whole):
            whole[place] = data.draw(st.integers(0, 255))
    refusal(write(bytes(whole)), CheckpointError)
