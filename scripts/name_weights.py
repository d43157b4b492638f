"""Write into each capture of tests/data/captures of which weights it was made: the synthetic ones.

    python scripts/name_weights.py

It was made of what scripts/synthetic_checkpoint.py writes, before captures said so. Only the metadata changes:
`state_dict`, by which weights are known (converter/writing/ledger.py), and `weights`, the same in words. To run it
again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthetic_checkpoint import manifest, synthetic_tensor

from converter.checkpoint import DTYPES
from converter.mapping.load import load_table
from converter.planning.plan import Tensor
from converter.writing.ledger import digest_of_tensors, state_dict_entry
from converter.writing.state_dict import names_read
from converter.writing.transfer import sha256_of

CAPTURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "captures"
WORDS = "synthetic, as scripts/synthetic_checkpoint.py writes them"
TABLE = "glip-official"


def main() -> None:
    entries: dict[str, dict[str, str]] = {}
    for path in sorted(CAPTURES.glob("glip-*.safetensors")):
        header, data = parts(path)
        facts = json.loads(header["__metadata__"]["capture"])
        model = facts["model"]
        entries[model] = entries.get(model) or entry_of(model)
        before = facts.get("weights", "").removeprefix(WORDS).removeprefix(": ")
        facts |= {"state_dict": entries[model], "weights": f"{WORDS}: {before}" if before else WORDS}
        header["__metadata__"]["capture"] = json.dumps(facts, sort_keys=True, allow_nan=False)
        path.write_bytes(packed(header) + data)
        print(f"{path.name}: {entries[model]['sha256']}")


def entry_of(model: str) -> dict[str, str]:
    """What a ledger says of the synthetic weights of `model`."""
    table = load_table(TABLE)
    wanted = set(names_read(table, table.spec.variant(model).config))
    tensors, lines = [], []
    for key, shape, dtype in manifest(model):
        if (name := key.removeprefix("module.")) in wanted:
            sha256 = sha256_of(synthetic_tensor(key, shape, dtype))
            tensors.append(Tensor(name, shape, DTYPES[dtype]))
            lines.append((name, dtype, shape, sha256))
    assert len(lines) == len(wanted), f"{model}: {len(wanted)} tensors are read, {len(lines)} are in the manifest"
    return state_dict_entry(tensors, digest_of_tensors(lines))


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its tensors as bytes."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def packed(header: Mapping[str, Any]) -> bytes:
    """A header with its length before it, in whole words of 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


if __name__ == "__main__":
    main()
