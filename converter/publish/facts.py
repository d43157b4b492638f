"""What a card and a bill of materials are made of: all that is known of a folder, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.evaluation.record import Evaluation
from converter.parity.evidence import Evidence, made_by_unknown_table
from converter.writing.ledger import CustomTable, custom_tables, unknown_origin


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of the folder.

    about   what the family says of itself and of its released models. `card`: texts, with `{where}` for the model's
            place; `models`: by name their title, checkpoint, data, figures and source; `license`, `base_model`, `data`,
            `figures`, `sources`: what these refer to; `benchmarks`: by the key of a figure what it was measured on.
            Families without such a thing leave it out
    doubts  what of the files beside the weights was not verified
    """

    about: Mapping[str, Any]
    model_name: str | None
    repo_id: str | None
    config: dict[str, Any]
    ledger: dict[str, Any]
    evidence: Evidence | None
    dtypes: tuple[str, ...]
    parameters: int
    doubts: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def custom(self) -> tuple[CustomTable, ...]:
        """Tables of the conversion and the comparisons that were never released."""
        return tuple(dict.fromkeys([*custom_tables(self.ledger), *(self.evidence.custom if self.evidence else ())]))

    @property
    def unknown_origin(self) -> str:
        """Why nothing says which table made the weights, if that is so."""
        return unknown_origin(self.ledger) if made_by_unknown_table(self.ledger, self.evidence) else ""

    @property
    def released(self) -> Mapping[str, Any]:
        """What the family says of the released model that this was stated to be; nothing if none was stated."""
        released: Mapping[str, Any] = self.about.get("models", {}).get(self.model_name, {})
        return released
