"""What `bom.cdx.json` states of the folder that it lies in, read back. Needs no package of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, plain
from converter.errors import CaptureError
from converter.hub.resolve import SIGNATURE
from converter.writing.ledger import files_of
from converter.writing.records import find_record

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

BOM = "bom.cdx.json"
PREFIX = "converter:"  # of the names of properties
WEIGHTS = f"{PREFIX}sha256"  # the property with the hash that is no file's: of all tensors, or of a table
TITLE = "Bill of materials"  # of the card's section
# what it cannot list or need not: itself, the card, which names it, a signature, which comes last, and texts of law
UNLISTED = frozenset({BOM, "README.md", SIGNATURE, "LICENSE", "NOTICE"})
LONGEST = 1000  # characters of a text out of a file: names of files have less, and stay apart


@dataclass(frozen=True, slots=True)
class StatedBill:
    """`sha256`: of all tensors of its weights; `files`: the SHA-256 of each file, by its name, made printable."""

    path: Path
    sha256: str
    files: Mapping[str, str]


def bill_beside(weights: Path) -> StatedBill | None:
    """The bill of materials of a folder; None where there is none, as beside a single file.

    CaptureError if it cannot be read, or is not one that `package` wrote.
    """
    path = weights / BOM
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        stated = content["metadata"]["component"]["properties"]
        (sha256,) = [str(each["value"]) for each in stated if each["name"] == WEIGHTS]
        parts = [part for part in content["components"] if part["type"] == "file"]
        files = {str(part["name"]): str(part["hashes"][0]["content"]) for part in parts}
    except OSError as error:
        raise CaptureError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None
    except (ValueError, LookupError, TypeError) as error:
        raise CaptureError(
            f"{file_name(path)}: is not a bill of materials of a model ({plain(str(error), 300)}). `converter package` "
            "writes one."
        ) from None
    if not all(re.fullmatch("[0-9a-f]{64}", each) for each in (sha256, *files.values())):
        raise CaptureError(f"{file_name(path)}: states a hash that is no SHA-256. `converter package` writes another.")
    return StatedBill(path, sha256, files)


def packaged_bill(weights: Path, checkpoint: Checkpoint) -> StatedBill | None:
    """That of a folder whose ledger says that `package` wrote one: elsewhere it may be anything.

    CaptureError as `bill_beside`, ModelError for a ledger that is not one.
    """
    ledger = find_record(weights, checkpoint, "conversion")
    return bill_beside(weights) if ledger is not None and BOM in files_of(ledger) else None


def of_other_weights(bill: StatedBill | None, sha256: str) -> list[str]:
    """A line if the bill is of other weights than those with this hash of all tensors."""
    if bill is None or bill.sha256 == sha256:
        return []
    return [f"{BOM}: of weights with sha256 {bill.sha256}, these have {sha256}; package them again"]


def check_bill(bill: StatedBill, sha256: str, files: Mapping[str, str]) -> None:
    """CaptureError unless it is of the weights with that hash of all tensors, and it lists what is here, no more and
    no less but UNLISTED.

    `files`: the SHA-256 of each file of the folder, by name.
    """
    here = {plain(name, LONGEST): file_sha256 for name, file_sha256 in files.items()}
    problems = of_other_weights(bill, sha256)
    problems += [
        f"{plain(name)}: {'other content than' if name in here else 'not here, but'} listed in {BOM}"
        for name, stated in bill.files.items()
        if here.get(name) != stated
    ]
    problems += [f"{plain(name)}: not listed in {BOM}" for name in sorted(here.keys() - bill.files.keys() - UNLISTED)]
    if problems:
        raise CaptureError(
            f"{file_name(bill.path)}: is not of this folder: {problems[0]}. Package again.", problems[1:]
        )


def bill_problem(card: str, sha256: str | None) -> str:
    """What a card says of a bill of materials that is not there, or does not say of the one that is; "" if nothing.

    `sha256`: of the file, None where there is none.
    """
    if sha256 is not None and sha256 not in card:
        return f"does not name {BOM}, SHA-256 {sha256}"
    if sha256 is None and f"## {TITLE}" in card:
        return f"names a bill of materials, and there is no {BOM}"
    return ""
