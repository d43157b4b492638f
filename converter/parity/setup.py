"""What decides, beside the weights, what a model makes of its inputs: a certificate records it, a copy must have it.

Configuration and preprocessing, the family's detection parameters, and files such as those of a tokenizer. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.hashes import file_sha256
from converter.display import plain
from converter.parity.family import Family
from converter.writing.records import read_record

_DEEPEST = 8  # settings inside of settings that are named one by one


@dataclass(frozen=True, slots=True)
class Setup:
    """`settings`: JSON, by name; `files`: the SHA-256 of each, by name; `unread`: a line for each setting that the
    configuration states, that is not so, and that nothing reads from there."""

    settings: Mapping[str, Any]
    files: Mapping[str, str]
    unread: tuple[str, ...] = ()

    def differences(self, certified: Setup) -> list[str]:
        """A line for each setting and file that is not what was certified."""
        here, there = dict(_flat(self.settings)), dict(_flat(certified.settings))
        lines = [*self.unread]
        lines += [
            f"{plain('.'.join(path))}: {_shown(here.get(path))} here, {_shown(there.get(path))} certified"
            for path in sorted(here.keys() | there.keys())
            if here.get(path) != there.get(path)
        ]
        for name in sorted(self.files.keys() | certified.files.keys()):
            if name not in self.files:
                lines.append(f"{plain(name)}: certified, and not here")
            elif name not in certified.files:
                lines.append(f"{plain(name)}: here, and not certified")
            elif self.files[name] != certified.files[name]:
                lines.append(f"{plain(name)}: other content than certified")
        return lines


def read_setup(weights: Path, checkpoint: Checkpoint, family: Family[Any]) -> Setup:
    """That of the file or folder `weights`, which `checkpoint` was opened from, as it lies on the disk now.

    A setting that is not read from its configuration is the family's own. ModelError if it has no configuration.
    """
    own, stated = family.settings(), read_record(weights, checkpoint, "config")
    read = {name: stated[name] for name in family.configurable if name in stated and weights.is_dir()}
    settings = {**stated, **own, **read}
    used = dict(_flat({name: settings[name] for name in own}))
    unread = tuple(
        f"{plain('.'.join(path))}: the configuration states {_shown(value)}, which nothing reads; "
        f"{_shown(used.get(path))} is used"
        for path, value in _flat({name: stated[name] for name in own if name in stated})
        if value != used.get(path)
    )
    files = {name: file_sha256(path) for name in family.files if (path := weights / name).is_file()}
    return Setup(settings, files, unread)


def _flat(settings: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every setting by the names that lead to it, as JSON: `("preprocessing", "mean")`, `[103.53, 116.28, 123.675]`."""
    for key, value in settings.items():
        if isinstance(value, dict) and value and len(at) < _DEEPEST:
            yield from _flat(value, (*at, key))
        else:
            yield (*at, key), json.dumps(value, sort_keys=True)


def _shown(value: str | None) -> str:
    return "nothing" if value is None else plain(value, 300)
