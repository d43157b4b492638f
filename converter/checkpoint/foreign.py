"""What people give by mistake, or in a form that is not read: by its name or its first bytes, and what to do about it.

A sentence continues "FILE: is ...", names the next step, and ends without its full stop.
"""

from __future__ import annotations

import codecs
import html
import os
import re
from pathlib import Path

from converter.checkpoint.index import Checkpoint
from converter.checkpoint.packed import describe_gzip, describe_tar
from converter.checkpoint.source import SourceFile
from converter.display import file_name, quoted
from converter.errors import NotACheckpointError, UnsupportedCheckpointError

_HEAD = 4096  # bytes that are looked at
_TITLE = 100  # characters
_MANY = 10  # tensors

DCP_PART = re.compile(r".*\.distcp|\.metadata", re.DOTALL)
ZERO_PART = re.compile(r"(?:\w+_)?zero_pp_rank_\d+_mp_rank_\d+_(?:optim|model)_states\.pt")

_TENSORFLOW = "a TensorFlow {}. Give the PyTorch checkpoint"
_NAMES = (
    (r".*\.ckpt(?:-\d+)?\.(?:index|meta|data-\d{5}-of-\d{5})", _TENSORFLOW.format("checkpoint")),
    (r".*\.(?:index|data-\d{5}-of-\d{5})", _TENSORFLOW.format("checkpoint")),
    (r".*\.pb", _TENSORFLOW.format("graph or SavedModel")),
    (r".*\.msgpack", "a Flax model. Give the PyTorch checkpoint"),
    (r".*\.tflite", "a TensorFlow Lite model. Give the PyTorch checkpoint"),
    (r".*\.onnx", "an ONNX model. Give the PyTorch checkpoint that it was exported from"),
)

_IMAGE = "an image. Give the checkpoint itself"
_MAGIC = (
    (b"BZh", "compressed with bzip2. Unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "compressed with xz. Unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard. Unpack it first (zstd -d)"),
    (b"7z\xbc\xaf", "a 7-Zip archive. Unpack it first (7z x)"),
    (b"Rar!", "a RAR archive. Unpack it first (unrar x)"),
    (b"PK\5\6", "an empty zip archive. Get the file again"),
    (b"\x89HDF", "an HDF5 file, as Keras writes weights (.h5). Give the PyTorch checkpoint"),
    (b"GGUF", "a GGUF file, of llama.cpp. Give the PyTorch checkpoint that it was made from"),
    (b"\x93NUMPY", "a numpy array (.npy). Load it with numpy.load and save a state dict with torch.save"),
    (b"\x89PNG", _IMAGE),
    (b"\xff\xd8\xff", _IMAGE),
    (b"GIF8", _IMAGE),
    (b"II*\0", _IMAGE),
    (b"MM\0*", _IMAGE),
    (b"%PDF", "a PDF. Give the checkpoint itself"),
)
_PICKLE = (
    "a Python pickle that torch.save did not write. Load it where you trust it, and save its weights with torch.save"
)


def dcp_in(folder: Path) -> str:
    """What a folder of many files is, and what makes one of them."""
    command = f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save({_path(folder)}, 'joined.pth')"
    return f"a checkpoint of torch.distributed.checkpoint. Where you trust it, run {command}, and give joined.pth"


def zero_in(folder: Path) -> str:
    """The same for the folder in which DeepSpeed keeps its steps and its script."""
    return (
        "a DeepSpeed ZeRO checkpoint. Where you trust it, run `python zero_to_fp32.py . joined` in "
        f"{_path(folder)}, and give what it writes"
    )


def unpacked_in(folder: Path) -> str | None:
    """The same for the members of a zip archive of torch.save; None if the folder holds something else."""
    if not (os.path.isdir(folder / "data") and all(os.path.isfile(folder / name) for name in ("data.pkl", "version"))):
        return None
    above, name = map(_path, os.path.split(os.path.abspath(folder)))
    command = f"cd {above} && zip -0 -r -D packed.pth {name}"
    return f"an unpacked file of torch.save. Run `{command}` to pack it again, and give packed.pth"


def refuse_parts(path: Path) -> None:
    """Raise UnsupportedCheckpointError for a file that is by its name a part of a checkpoint of several files.

    Some of them would open as if they were whole.
    """
    what = None
    if DCP_PART.fullmatch(path.name):
        what = dcp_in(path.parent)
    elif ZERO_PART.fullmatch(path.name):
        what = zero_in(_two_above(path))
    elif path.name == "data.pkl":
        what = unpacked_in(path.parent)
    if what is not None:
        raise UnsupportedCheckpointError(f"{file_name(path)}: is one part of {what}.")


def refuse_placeholders(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedCheckpointError if many tensors have no elements, as where DeepSpeed keeps these elsewhere."""
    count = len(checkpoint.tensors)
    empty = sum(0 in tensor.shape for tensor in checkpoint.tensors.values())
    if empty >= _MANY and 3 * empty > count:  # buffers are whole there: of a network with batch norm, half of all
        raise UnsupportedCheckpointError(
            f"{file_name(checkpoint.path)}: {empty} of its {count} tensors have no elements. Most likely it is one "
            f"part of {zero_in(_two_above(checkpoint.path))}."
        )


def _two_above(path: Path) -> Path:
    return Path(os.path.abspath(path)).parent.parent


def _path(path: str | Path) -> str:
    """A path in quotes, for a command."""
    return quoted(str(path), 1024)


def refuse_foreign(source: SourceFile) -> None:
    """Raise NotACheckpointError for a file that is of another known kind."""
    if source.size == 0:
        what: str | None = "empty. Get the file again"
    else:
        head = source.read(0, min(source.size, _HEAD), "beginning of the file")
        what = _by_bytes(source, head) or _by_text(head) or _by_name(source.path) or _flax_or_onnx(head)
    if what is not None:
        raise NotACheckpointError(f"{file_name(source.path)}: is {what}.")


def _by_bytes(source: SourceFile, head: bytes) -> str | None:
    if head.startswith(b"\x1f\x8b"):
        return describe_gzip(source)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _IMAGE
    if head.count(0) == len(head) > 8:
        return "a file that begins with zeros, as a download leaves it that was never filled. Get the file again"
    if head[0] == 0x80 and head[1:2] in b"\2\3\4\5":
        return _PICKLE
    return next((what for magic, what in _MAGIC if head.startswith(magic)), None) or describe_tar(source)


def _by_name(path: Path) -> str | None:
    return next((what for name, what in _NAMES if re.fullmatch(name, path.name, re.DOTALL)), None)


def _flax_or_onnx(head: bytes) -> str | None:
    """Formats without magic bytes, by what their first field must be: a name in ASCII."""
    head = head.ljust(4, b"\0")
    # msgpack: a map of 1 to 15 entries, of which the first is named by a string
    if 0x81 <= head[0] <= 0x8F and 0xA1 <= head[1] <= 0xBF and _is_name(head[2 : 2 + head[1] - 0xA0]):
        return "a file of msgpack, as Flax writes weights. Give the PyTorch checkpoint"
    # protobuf: field 1 is the version of the format, field 2 the program that wrote the file
    if head[0] == 8 and 1 <= head[1] <= 20 and head[2:3] == b"\x12" and _is_name(head[4 : 4 + head[3]]):
        return "an ONNX model. Give the PyTorch checkpoint that it was exported from"
    return None


def _is_name(text: bytes) -> bool:
    return text.isascii() and text.decode(errors="replace").isprintable() and len(text) > 0


def _by_text(head: bytes) -> str | None:
    text = _text(head)
    if not text:
        return None
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository"
    if text.startswith("<"):
        is_page = re.search(r"<(!doctype html|html|head|body|title)", text, re.IGNORECASE)
        kind = "a web page" if is_page else "XML, most likely the answer of a server"
        titles = (re.search(rf"<{tag}[^>]*>([^<]+)", text, re.IGNORECASE) for tag in ("code", "title"))
        title = next((" ".join(html.unescape(found[1]).split()) for found in titles if found), "")
        is_legible = 4 * title.count("\ufffd") < len(title)  # its encoding may be another
        said = f" that says {quoted(title, _TITLE)}" if is_legible else ""
        return f"{kind}{said}. The download went wrong: get the file again from its download link"
    first = " ".join(text.splitlines()[0].split())[:_TITLE]
    return f"text ({quoted(first)}), so neither torch.save nor safetensors wrote it. Give the checkpoint itself"


def _text(head: bytes) -> str | None:
    """`head` as text without blanks before it, if it is text. A byte order mark says in which encoding.

    Web pages come in all encodings: theirs need not be known, as their tags are ASCII in each.
    """
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)  # the last character may be cut in two
    text = text.removeprefix("\ufeff").lstrip()
    if "\ufffd" in text and not text.startswith("<"):
        return None
    return text if all(character.isprintable() or character.isspace() for character in text) else None
