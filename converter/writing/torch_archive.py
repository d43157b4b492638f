"""A state dict in the zip layout of torch.save, written deterministically: where every tensor goes, and all around it.

The pickle (protocol 2) holds nothing but dicts and tensors over typed storages, so that every torch since 1.6 reads it,
also with `weights_only=True` and `mmap=True`. Records are stored as they are, each on a multiple of 64 bytes.
Source: torch/serialization.py and caffe2/serialize/inline_container.cc of torch 2.13; PEP 307; APPNOTE 6.3.10, sections
4.3 and 4.5 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from converter.checkpoint.torch_zip import NOTES
from converter.checkpoint.zip_archive import END, END64, END64_LOCATOR, ENTRY, LOCAL, ZIP64_EXTRA
from converter.display import quoted
from converter.errors import DestinationError
from converter.planning.plan import Tensor
from converter.writing.shards import nbytes

_FOLDER = "archive/"
_ALIGNMENT = 64  # bytes; what torch takes where no record `.storage_alignment` says another
_NO_CLASS = "ComplexHalfStorage"  # is read where another program wrote it, but no torch can load it
_EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"  # GLOBAL EMPTY_TUPLE REDUCE

_EXTRA = struct.Struct("<2H")
_PADDING_EXTRA = 0x4246  # "FB", as torch pads
_ZIP64_VERSION = 45  # of the format that a reader must know: the end record is always a zip64 one, as torch's is
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # what stands in a narrow field whose value is in a wide one
_DATE = 1 << 5 | 1  # 1 January 1980, the first that zip can say; the time of day is 0


@dataclass(frozen=True, slots=True)
class _Record:
    """A member of the archive. `start` is the position of its header, `offset` that of its `size` bytes."""

    name: str
    start: int
    offset: int
    size: int
    content: bytes | None  # None: a tensor's, or the notes
    tensor: str | None

    @property
    def end(self) -> int:
        return self.offset + self.size

    def header(self, crc: int) -> bytes:
        """What stands before the bytes. The CRC is there too, so no data descriptor follows them."""
        name = self.name.encode()
        wide = _wide(self.size, self.size)
        padding = self.offset - self.start - LOCAL.size - len(name) - len(wide) - _EXTRA.size
        extra = wide + _EXTRA.pack(_PADDING_EXTRA, padding) + bytes(padding)
        size = min(self.size, _FULL32)
        fields = (_ZIP64_VERSION, 0, 0, 0, _DATE, crc, size, size, len(name), len(extra))
        return LOCAL.pack(b"PK\3\4", *fields) + name + extra

    def entry(self, crc: int) -> bytes:
        """What the central directory says."""
        name = self.name.encode()
        extra = _wide(self.size, self.size, self.start)
        size = min(self.size, _FULL32)
        fields = (_ZIP64_VERSION, _ZIP64_VERSION, 0, 0, 0, _DATE, crc, size, size, len(name), len(extra), 0, 0, 0, 0)
        return ENTRY.pack(b"PK\1\2", *fields, min(self.start, _FULL32)) + name + extra


@dataclass(frozen=True, slots=True)
class Archive:
    """The layout of one file: `frame` and the tensors' bytes together are all of it, and share no byte.

    Args:
        size: bytes of the whole file.
        offsets: position of each tensor's first byte, a multiple of 64. From there its elements lie in C order,
            little-endian, without gaps.
        records: all members, in file order.
    """

    size: int
    offsets: Mapping[str, int]
    records: tuple[_Record, ...] = field(repr=False)

    def frame(self, crcs: Mapping[str, int], notes: bytes) -> Iterator[tuple[int, bytes]]:
        """Everything but the tensors' bytes, as (position, bytes), by rising position.

        `crcs` holds the CRC-32 of each tensor's bytes, 0 for one that has none. Raises ValueError for notes of another
        size than the one laid out.
        """
        directory = []
        for record in self.records:
            content = record.content
            if record.tensor is not None:
                crc, content = crcs[record.tensor], b""
            else:
                content = notes if content is None else content
                if len(content) != record.size:
                    raise ValueError(f"{record.name} has {len(content)} bytes, but {record.size} were laid out")
                crc = zlib.crc32(content)
            yield record.start, record.header(crc) + content
            directory.append(record.entry(crc))
        start = self.records[-1].end
        entries = b"".join(directory)
        yield start, entries + _end_records(len(directory), len(entries), start)


def lay_out_archive(tensors: Sequence[Tensor], root: str, notes_size: int) -> Archive:
    """Give every tensor its place, in the order given.

    The file holds a dict whose entry `root` is the state dict; for "" it is the state dict itself. The notes, of
    `notes_size` bytes, become the record `archive/conversion.json`, which readers of checkpoints pass over.
    Raises DestinationError for a dtype for which torch has no typed storage class.
    """
    records: list[_Record] = []

    def add(name: str, size: int, content: bytes | None = None, tensor: str | None = None) -> None:
        start = records[-1].end if records else 0
        name = _FOLDER + name
        header = LOCAL.size + len(name.encode()) + len(_wide(size, size)) + _EXTRA.size
        offset = -(-(start + header) // _ALIGNMENT) * _ALIGNMENT
        records.append(_Record(name, start, offset, size, content, tensor))

    # no `.format_version`: with it torch may compute where storages lie, counting on data descriptors behind them
    for name, content in (("data.pkl", _pickle(tensors, root)), ("byteorder", b"little")):
        add(name, len(content), content)
    for key, tensor in enumerate(tensors):
        add(f"data/{key}", nbytes(tensor), tensor=tensor.name)
    add("version", 2, b"3\n")
    add(NOTES, notes_size)
    directory = sum(len(record.entry(0)) for record in records)
    size = records[-1].end + directory + len(_end_records(len(records), directory, records[-1].end))
    offsets = {record.tensor: record.offset for record in records if record.tensor is not None}
    return Archive(size, offsets, tuple(records))


def _wide(*numbers: int) -> bytes:
    """The zip64 extra field: those of `numbers` that no narrow field can hold, or nothing if there are none."""
    wide = [number for number in numbers if number >= _FULL32]
    return _EXTRA.pack(ZIP64_EXTRA, 8 * len(wide)) + struct.pack(f"<{len(wide)}Q", *wide) if wide else b""


def _end_records(count: int, size: int, start: int) -> bytes:
    """What follows a central directory of `count` entries and `size` bytes at `start`."""
    versions = (_ZIP64_VERSION, _ZIP64_VERSION)
    narrow = (min(count, _FULL16), min(count, _FULL16), min(size, _FULL32), min(start, _FULL32))
    return (
        END64.pack(b"PK\6\6", END64.size - 12, *versions, 0, 0, count, count, size, start)
        + END64_LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
        + END.pack(b"PK\5\6", 0, 0, *narrow, 0)
    )


def _pickle(tensors: Sequence[Tensor], root: str) -> bytes:
    """The pickle of `{root: OrderedDict(tensors)}`, or of that OrderedDict where `root` is empty.

    The memo is not used, so a tensor and its storage key always give the same bytes.
    """
    items = b"".join(_text(tensor.name) + _tensor(tensor, str(key)) for key, tensor in enumerate(tensors))
    state_dict = _EMPTY_ORDERED_DICT + b"(" + items + b"u"  # MARK ... SETITEMS
    if root:
        state_dict = b"}" + _text(root) + state_dict + b"s"  # EMPTY_DICT ... SETITEM
    return b"\x80\x02" + state_dict + b"."  # PROTO 2 ... STOP


def _tensor(tensor: Tensor, key: str) -> bytes:
    """A call of `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)`."""
    numel, kind = math.prod(tensor.shape), _storage_class(tensor)
    reference = _text("storage") + b"ctorch\n" + kind + b"\n" + _text(key) + _text("cpu") + _integer(numel)
    storage = b"(" + reference + b"tQ"  # MARK ... TUPLE BINPERSID
    # as torch counts them: a length of 0 is taken for 1
    strides = [math.prod(max(length, 1) for length in tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    view = _integer(0) + _tuple(tensor.shape) + _tuple(strides)
    flags = b"\x89" + _EMPTY_ORDERED_DICT  # NEWFALSE
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + flags + b"tR"  # GLOBAL MARK ... TUPLE REDUCE


def _storage_class(tensor: Tensor) -> bytes:
    kind = tensor.dtype.storage
    if kind is None or kind == _NO_CLASS:
        advice = "choose a dtype that it has" if tensor.dtype.safetensors is None else "write safetensors instead"
        raise DestinationError(
            f"{quoted(tensor.name)} is {tensor.dtype}, for which torch has no typed storage class; {advice}"
        )
    return kind.encode()


def _text(text: str) -> bytes:
    """BINUNICODE; surrogates that stand alone pass, as they do in Python's own pickles."""
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(raw)) + raw


def _integer(value: int) -> bytes:
    """The shortest of BININT1, BININT2, BININT and LONG1 for a number that is not negative."""
    if value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<l", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")  # with room for the sign
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(numbers: Sequence[int]) -> bytes:
    """EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, or MARK and TUPLE."""
    items = b"".join(map(_integer, numbers))
    if len(numbers) > 3:
        return b"(" + items + b"t"
    return items + (b")", b"\x85", b"\x86", b"\x87")[len(numbers)]
