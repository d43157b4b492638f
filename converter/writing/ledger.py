"""The documents of a conversion: `conversion.json`, the ledger of every tensor, and `config.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter import __version__
from converter.checkpoint import Checkpoint
from converter.checkpoint.strict_json import parse_json, read_json
from converter.display import file_name, quoted
from converter.errors import unreadable
from converter.mapping.released import is_released
from converter.planning.plan import Plan, Tensor

NO_HASH = "0" * 64  # placeholder of the same length for a hash that is not known yet
UNKNOWN_TABLE = "made by an unknown table: there is no record of a conversion"
FOLDER = "folder"  # the entry of conversion.json with the names of all files that were written into its folder
STATE_DICT = "state_dict"  # the entry of a ledger's `source` with `state_dict_entry`
TABLES = "tables"  # the metadata entry in which every file of a folder keeps `tables_of` its ledger
SAVED = "saved"  # the entry with one `saved_entry` for each time that a changed model was saved, the first one first


def to_json(content: Any, indent: int | None = 2) -> bytes:
    """The one way this project writes JSON: sorted keys, ASCII, no NaN, compact unless indented."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(content, sort_keys=True, indent=indent, separators=separators, allow_nan=False).encode()


def config_document(plan: Plan) -> dict[str, Any]:
    """What `config.json` holds, and the `config` entry of a single file's metadata."""
    part = {"part": plan.part} if plan.part else {}
    return {"model": plan.target, **part, "variant": plan.variant.name, "config": dict(plan.config)}


def draft_ledger(
    checkpoint: Checkpoint, plan: Plan, origin: Mapping[str, Any] | None, *, keeps_residue: bool = False
) -> dict[str, Any]:
    """The content of `conversion.json` with NO_HASH for each hash. `origin`: where the checkpoint came from."""
    target = {"name": plan.target, "variant": plan.variant.name, "also": list(plan.variant.also)}
    records = _records(checkpoint)
    earlier = list(dict.fromkeys(table for record in records for table in custom_tables(record)))
    # only a conversion makes this package's own format, so a source in it has been converted already; a library's own
    # is what it saves, too
    is_converted = plan.table == plan.target and plan.config_of_library is None
    is_unknown = any(map(is_by_unknown_table, records)) or (not records and is_converted)
    return {
        "converter": __version__,
        "table": table_entry(plan.table, plan.table_sha256),
        **({"through": table_entry(plan.written.name, plan.written.sha256)} if plan.written else {}),
        # what a table of one's own made stays so, by whichever table it is converted again
        **({"earlier": [table.entry for table in earlier]} if earlier else {}),
        **({"unknown_table": True} if is_unknown else {}),
        **next(({SAVED: record[SAVED]} for record in records if SAVED in record), {}),
        "target": {**target, "part": plan.part} if plan.part else target,
        "lossless": not (checkpoint.computed and checkpoint.files)
        and all(step.is_lossless for step in (*plan.steps, *plan.carried)),
        "missing": [{"names": entry.names, "reason": entry.reason} for entry in plan.missing],
        "rebuilt": [rebuilt.tensor.name for rebuilt in plan.rebuilt],
        "carried": [tensor.name for step in plan.carried for tensor in step.targets],
        "source": {
            "layout": checkpoint.layout,
            "root": checkpoint.root,
            **({"wrappers": dict(sorted(plan.wrappers.items()))} if plan.wrappers else {}),
            "sha256": NO_HASH,
            STATE_DICT: state_dict_entry(_sources(plan).values(), NO_HASH),
            **({"origin": dict(origin)} if origin else {}),
        },
        "left_out": [
            {"name": out.tensor.name, "shape": list(out.tensor.shape), "reason": out.reason} for out in plan.left_out
        ],
        "left_aside": [*checkpoint.skipped, *checkpoint.unsupported.values(), *checkpoint.objects.values()],
        "tensors": {tensor.name: NO_HASH for tensor in plan.targets},
        **({"residue": NO_HASH} if keeps_residue else {}),
        "sha256": NO_HASH,
    }


def fill_ledger(
    draft: Mapping[str, Any],
    plan: Plan,
    hashes: dict[str, str],
    source_hashes: Mapping[str, str],
    residue_sha256: str | None = None,
) -> dict[str, Any]:
    """A ledger as long as its draft. `hashes`: SHA-256 of every target; `source_hashes`: of every source."""
    return {
        **draft,
        "source": {**draft["source"], **_digests_of_sources(plan, source_hashes)},
        "tensors": hashes,
        **({} if residue_sha256 is None else {"residue": residue_sha256}),
        # covers names, shapes, dtypes and content of everything written, without another pass over it
        "sha256": digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in plan.targets),
    }


@dataclass(frozen=True, slots=True)
class CustomTable:
    """A table that was never released. Its name says nothing: it is known by its hash."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"custom table {quoted(self.name)}, sha256 {self.sha256}"

    @property
    def entry(self) -> dict[str, Any]:
        """As a ledger names it."""
        return {"name": self.name, "sha256": self.sha256, "custom": True}


def custom_tables(record: Mapping[str, Any]) -> list[CustomTable]:
    """Those of a ledger or a certificate that made the weights or a checkpoint that they come from, by their hashes.

    What the record itself says of being custom counts for nothing.
    """
    earlier = record.get("earlier")
    entries = [record.get("table"), record.get("through"), *(earlier if isinstance(earlier, list) else ())]
    named = [(str(entry.get("name")), str(entry.get("sha256"))) for entry in entries if isinstance(entry, dict)]
    return [CustomTable(name, sha256) for name, sha256 in dict.fromkeys(named) if not is_released(name, sha256)]


def table_entry(name: str, sha256: str) -> dict[str, Any]:
    """A table as a ledger or a certificate names it."""
    return {"name": name, "sha256": sha256} if is_released(name, sha256) else CustomTable(name, sha256).entry


def is_by_unknown_table(record: Mapping[str, Any] | None) -> bool:
    """Whether a ledger or a certificate, None if there is none, leaves open which table made the weights."""
    return record is None or not isinstance(record.get("table"), dict) or record.get("unknown_table") is True


def tables_of(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What a ledger says of tables, and of what became of the weights after them."""
    return {key: ledger[key] for key in ("table", "through", "earlier", "unknown_table", SAVED) if key in ledger}


def saved_entry(name: str | None, sha256: str | None, differing: int, tensors: int) -> dict[str, Any]:
    """What a ledger says of weights that were changed in memory: loaded from `name`, whose tensors have that hash
    together, from which `differing` of the `tensors` differ now. None: it is not known what they were loaded from."""
    return {"from": name, "sha256": sha256, "differing": differing, "tensors": tensors}


def saved_from(record: Mapping[str, Any] | None, shown: Callable[[str], str] = quoted) -> str:
    """A sentence on weights that were changed in memory, by fine-tuning say, and saved; "" where nothing says so.

    `shown`: how the name of what they were loaded from is written.
    """
    entries = (record or {}).get(SAVED)
    parts = []
    for entry in reversed(entries[-3:] if isinstance(entries, list) else []):
        known = entry if isinstance(entry, dict) else {}
        if (name := known.get("from")) is None:
            parts.append("a model that from_pretrained did not load")
            continue
        differing, tensors = (n if type(n := known.get(key)) is int else "?" for key in ("differing", "tensors"))
        sha256 = re.sub("[^0-9a-f]", "?", str(known.get("sha256")))[:12]
        parts.append(f"{differing} of {tensors} tensors differ from {shown(str(name))} (sha256 {sha256}...)")
    return f"saved by save_pretrained, not converted: {'; before that: '.join(parts)}" if parts else ""


def unknown_origin(record: Mapping[str, Any] | None) -> str:
    """Why no table answers for the weights of a ledger that `is_by_unknown_table`."""
    return saved_from(record) or UNKNOWN_TABLE


def files_of(ledger: Mapping[str, Any]) -> list[Any]:
    """The names of all files that were written into the folder of a ledger; none where it does not say."""
    names = ledger.get(FOLDER)
    return names if isinstance(names, list) else []


def tables_in(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """`tables_of` the ledger as the files of a folder keep it; None if they do not."""
    return _parsed(checkpoint.metadata[TABLES]) if TABLES in checkpoint.metadata else None


def ledger_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The ledger in or beside the file that a checkpoint was opened from, or what the file keeps of it; None if there
    is none of these tensors. CheckpointError if the system does not let it be read."""
    return next(iter(_records(checkpoint)), None)


def _records(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """All that `ledger_of` chooses from, the whole ledger first."""
    text = checkpoint.metadata.get("conversion")
    whole = _beside(checkpoint) if text is None else _parsed(text)
    return [record for record in (whole, tables_in(checkpoint)) if record is not None]


def _beside(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The ledger of the folder. That of another conversion, which lies there by chance, names other tensors."""
    path = checkpoint.path.with_name("conversion.json")
    if not path.is_file():
        return None
    try:
        ledger = read_json(path)
    except ValueError:
        return None
    except OSError as error:
        raise unreadable(file_name(path), error) from error
    tensors = ledger.get("tensors") if isinstance(ledger, dict) else None
    return ledger if isinstance(tensors, dict) and tensors.keys() == checkpoint.tensors.keys() else None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        record = parse_json(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def digest_of_ledger(ledger: Mapping[str, Any]) -> str:
    """One hash of a ledger, which is the same in a file's metadata and in a folder's conversion.json."""
    content = {key: value for key, value in ledger.items() if key != FOLDER}
    return hashlib.sha256(to_json(content, indent=None)).hexdigest()


def digest_of_tensors(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """One hash of many tensors: sha256 over a line `name dtype shape sha256` for each, sorted."""
    lines = (f"{name} {dtype} {list(shape)} {sha256}" for name, dtype, shape, sha256 in tensors)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def digest_of_checkpoint(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> str:
    """`digest_of_tensors` of a whole file or folder. `hashes`: SHA-256 of each of its tensors."""
    return digest_of_tensors((t.name, t.dtype.name, t.shape, hashes[t.name]) for t in checkpoint.tensors.values())


def state_dict_entry(tensors: Iterable[Tensor], sha256: str) -> dict[str, str]:
    """How a ledger and a capture name the weights that they come from.

    `sha256`: `digest_of_tensors` of what the source's table reads, by the names of the table: the same from every file
    of these weights, whatever is around the names or beside the tensors. `dtype`: that of all of them, or `mixed`;
    hashes of weights in different dtypes say nothing of each other.
    """
    dtypes = {tensor.dtype.name for tensor in tensors}
    return {"dtype": dtypes.pop() if len(dtypes) == 1 else "mixed", "sha256": sha256}


def _digests_of_sources(plan: Plan, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Of what a plan reads: by the names in the file, and by those of the table. `hashes`: SHA-256 of each."""
    sources = _sources(plan)
    short = plan.naming.short_names(sources)
    by_table = digest_of_tensors((short[n], s.dtype.name, s.shape, hashes[n]) for n, s in sources.items())
    return {
        "sha256": digest_of_tensors((n, s.dtype.name, s.shape, hashes[n]) for n, s in sources.items()),
        STATE_DICT: state_dict_entry(sources.values(), by_table),
    }


def _sources(plan: Plan) -> dict[str, Tensor]:
    return {source.name: source for step in plan.steps for source in step.sources}
