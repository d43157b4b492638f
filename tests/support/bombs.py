"""Files that are small on the disk, and cost much where a reader believes them: headers, and texts beside weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.craft_files import entry, safetensors
from tests.support.craft_pickle import SIX

MIB = 1 << 20
HUGE = "9" * 4000  # digits; Python converts up to 4,300, in time that grows with their square
W = json.dumps(entry())
FACE = "\U0001f600"  # a text with it takes four bytes for each character
TWO = '"a\u0100"'
ESCAPED = "\\u005b]"  # an empty list, whose bracket is no bracket in the text around


def many(count: int, item: str) -> str:
    """The text `item` so many times, with commas."""
    return ",".join([item] * count)


def named(count: int, item: str) -> str:
    """The same behind names."""
    return ",".join(f'"{number:x}":{item}' for number in range(count))


def described(shape: str = "[2,3]", offsets: str = "[0,24]", dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def only(item: str) -> str:
    return f'{{"w":{item}}}'


def record(text: str, key: str = "config") -> str:
    """A header in whose metadata a JSON text stands as a string."""
    return json.dumps({"__metadata__": {key: text}, "w": entry()})


HEADERS: dict[str, Callable[[], str]] = {
    "a shape of thousands of huge integers": lambda: only(described(f"[{many(4000, HUGE)}]")),
    "a shape of many integers of 62 bits": lambda: only(described(f"[{many(800_000, str(1 << 62))}]")),
    "shapes of 32 lengths of 63 bits, one of them 0": lambda: (
        "{" + named(6_000, described(f"[0,{many(31, str((1 << 63) - 1))}]", "[0,0]")) + "}"
    ),
    "an integer of 15 million digits": lambda: only("9" * (15 * MIB)),
    "offsets of 4,000 digits": lambda: only(described(offsets=f"[0,{HUGE}]")),
    "thousands of offsets of 4,000 digits": lambda: "{" + named(4000, described(offsets=f"[0,{HUGE}]")) + "}",
    "5 million lists": lambda: only(f"[{many(5_000_000, '[]')}]"),
    "5 million lists in the record config": lambda: record(f"[{many(5_000_000, '[]')}]"),
    "lists in the record config whose brackets are escaped": lambda: record("@").replace(
        "@", f"\\u005b{many(1_500_000, ESCAPED)}]"
    ),
    "a million objects in the record conversion": lambda: record(f"[{many(1_000_000, '{}')}]", "conversion"),
    "a million objects in the record capture": lambda: record(f"[{many(1_000_000, '{}')}]", "capture"),
    "a million objects in the record tables": lambda: record(f"[{many(1_000_000, '{}')}]", "tables"),
    "4 million numbers": lambda: only(f"[{many(4_000_000, '1.5')}]"),
    "2.5 million texts of two letters": lambda: only(f"[{many(2_500_000, TWO)}]"),
    "a million names": lambda: "{" + named(1_200_000, "1") + "}",
    "a name twice among many": lambda: "{" + named(140_000, "1") + ',"0":1}',
    "metadata of a million entries": lambda: '{"__metadata__":{' + named(900_000, '""') + f'}},"w":{W}}}',
    "16 MiB of spaces": lambda: "{" + " " * (16 * MIB - 200) + "x}",
    "a name of 16 MiB": lambda: f'{{"{"a" * (16 * MIB - 200)}":{W}}}',
    "a name of 16 MiB, of characters of four bytes": lambda: f'{{"{FACE}{"a" * (16 * MIB - 200)}":{W}}}',
    "a dtype of 15 MiB": lambda: only(described(dtype="F" * (15 * MIB))),
    "levels without end": lambda: '{"w":' + "[" * (8 * MIB),
    "levels without end in the record config": lambda: record("[" * 5_000_000),
    "levels below Python's limit in the record capture": lambda: record("[" * 900 + "]" * 900, "capture"),
    "a number beyond all floats in the record config": lambda: record('{"model":"glip","config":{"mlp_ratio":1e999}}'),
    "half a surrogate pair in the record config": lambda: record(json.dumps({"model": "\ud800", "config": {}})),
}  # fmt: skip


def header(kind: str) -> bytes:
    """A safetensors file with the header of that kind."""
    return safetensors(HEADERS[kind](), SIX)


def tiny_tensors(count: int) -> bytes:
    """A sound safetensors file of so many tensors of one byte."""
    lines = (f'"{n:x}":{described("[]", f"[{n},{n + 1}]", "U8")}' for n in range(count))
    return safetensors(f"{{{','.join(lines)}}}", bytes(count))


TEXTS: dict[str, Callable[[], str]] = {
    "5 million lists": lambda: f"[{many(5_000_000, '[]')}]",
    "a million names": lambda: f"{{{many(1_000_000, chr(34) + '%x' + chr(34) + ':1')}}}",
    "levels without end": lambda: "[" * 5_000_000,
    "64 MiB of spaces": lambda: f"{' ' * (64 * MIB - 2)}{{}}",
    "a text of 15 MiB, of characters of four bytes": lambda: f'{{"a":"{FACE}{"a" * (15 * MIB)}"}}',
    "an integer of 15 million digits": lambda: f'{{"a":{"9" * (15 * MIB)}}}',
    "a million lines": lambda: "a\n" * 1_000_000,
}
# what is read beside weights, and by which doors
BESIDE = {
    "config.json": ("from_pretrained", "detect", "package"),
    "conversion.json": ("verify", "publish"),
    "parity.json": ("verify", "package"),
    "evaluation.json": ("verify", "package"),
    "bom.cdx.json": ("verify", "publish"),
    "tokenizer.json": ("detect",),
    "vocab.txt": ("detect",),
    "model.safetensors.index.json": ("open_checkpoint", "convert"),
}


def beside(model: Path, folder: Path, name: str, text: str) -> Path:
    """The folder `model` with `text` for its file `name`, and without what would be read in its place."""
    others = {"model.safetensors.index.json": {"model.safetensors"}, "tokenizer.json": {"vocab.txt"}}.get(name, set())
    shutil.copytree(model, folder, ignore=lambda _, names: {name, *others} & {*names})
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def configured(model: Path, folder: Path, part: str, **values: Any) -> Path:
    """The folder `model` with other values in a part of its config.json."""
    content = json.loads((model / "config.json").read_text())
    content[part].update(values)
    return beside(model, folder, "config.json", json.dumps(content))
