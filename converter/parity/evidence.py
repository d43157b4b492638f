"""A certificate read from its file: which weights it certifies, its fingerprint, and the numbers that a card shows.

The only reader of certificates, for verifying, packaging and publishing; it needs no torch.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint.strict_json import read_json
from converter.display import file_name, plain
from converter.errors import CaptureError
from converter.parity.consistency import contradictions, evaluation_key
from converter.parity.exports import Exported
from converter.parity.schemas import problem_of
from converter.parity.setup import Setup
from converter.writing.ledger import CustomTable, custom_tables, is_by_unknown_table

FORMAT = 2
MARKS = 1_000_000  # of its JSON: some 30 for each comparison of an activation, two modes and two dtypes of each capture


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison: with which capture, where, in which numbers, how many activations, the worst of them, and what
    was allowed; whether that is looser than the default."""

    capture: str
    device: str
    dtype: str
    activations: int
    worst: float
    worst_name: str
    gate: str
    looser: bool
    images: int


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture that was compared with.

    official  the configuration of the official code that was captured, None if the capture does not say so
    compact   whether it holds only some numbers of each activation
    sizes     (height, width) of its images, if it says so
    """

    name: str
    sha256: str
    official: str | None
    compact: bool
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A certificate.

    content           whole, as JSON
    tensors           SHA-256 of each tensor that it is of
    setup             what lay beside them
    table             (name, sha256) of the table by which they were converted, None if nothing said so
    custom            tables that were never released, of the conversion or of the comparisons
    fingerprint       a capture of the certified model, as the bytes of its file
    made, caught      of the mutations, and `equivalent`: those that no input can show
    coverage          which weights the comparisons depend on, if it was measured
    evaluations       on data sets, each as its record was named when this was certified
    exports           graphs that were made of the weights: the hashes of their files, and what they were compared with
    """

    path: Path
    content: Mapping[str, Any] = field(repr=False)
    tensors: dict[str, str] = field(repr=False)
    sha256: str
    setup: Setup
    table: tuple[str, str] | None
    custom: tuple[CustomTable, ...]
    fingerprint: bytes = field(repr=False)
    captures: tuple[Captured, ...]
    runs: tuple[Run, ...]
    made: int
    caught: int
    equivalent: int
    coverage: Mapping[str, Any] | None
    evaluations: tuple[Mapping[str, Any], ...]
    exports: tuple[Exported, ...] = ()


def certificate_path(weights: Path) -> Path:
    """Where the certificate of a file or folder is."""
    return weights / "parity.json" if weights.is_dir() else weights.with_suffix(".parity.json")


def read_evidence(path: Path) -> Evidence:
    """The certificate at `path`. CaptureError unless it is one, of comparisons that all passed."""
    try:
        content = read_json(path, MARKS)
    except OSError as error:
        raise CaptureError(
            f"{file_name(path)}: there is no certificate ({error.strerror}). Run `convert`, and `converter certify`, "
            "which writes one."
        ) from None
    except ValueError as error:
        raise CaptureError(f"{file_name(path)}: is not the JSON of a certificate: {error}. Get it again.") from None
    return evidence_of(content, path)


def evidence_of(content: Any, path: Path) -> Evidence:
    """The certificate that is, or will be, at `path`. CaptureError unless it is one and agrees with itself.

    That its hash of all tensors is that of its list is seen only with the tensors at hand.
    """
    if isinstance(content, dict) and content.get("format") == 1:
        raise CaptureError(
            f"{file_name(path)}: is a certificate of format 1, which says nothing of what lies beside the weights. "
            "Certify again."
        )
    if problem := problem_of(content, "certificate"):
        raise CaptureError(f"{file_name(path)}: is not a certificate, {problem}. Get it again, or certify again.")
    try:
        fingerprint = base64.b64decode(content["fingerprint"], validate=True)
    except ValueError:
        raise CaptureError(f"{file_name(path)}: its fingerprint is damaged. Get the certificate again.") from None
    if problems := list(contradictions(content)):
        raise CaptureError(
            f"{file_name(path)}: contradicts itself: {problems[0]}. Get it again, or certify again.", problems[1:]
        )
    table = content["table"]
    mutations = content["mutations"] or {"made": 0, "caught": 0, "equivalent": 0}
    compared = [capture["table"] for capture in content["captures"]]
    return Evidence(
        path=path,
        content=content,
        tensors=content["weights"]["tensors"],
        sha256=content["weights"]["sha256"],
        setup=Setup(content["package"]["settings"], content["package"]["files"]),
        table=table and (table["name"], table["sha256"]),
        custom=tuple(custom_tables({**content, "earlier": [*content.get("earlier", ()), *compared]})),
        fingerprint=fingerprint,
        captures=tuple(map(_captured, content["captures"])),
        runs=tuple(map(_run, content["runs"])),
        coverage=content.get("coverage"),
        evaluations=tuple(content.get("evaluations", ())),
        exports=tuple(map(_exported, content.get("exports", ()))),
        **{key: int(mutations[key]) for key in ("made", "caught", "equivalent")},
    )


def evaluation_differences(entries: Iterable[Mapping[str, Any]], evidence: Evidence) -> Iterator[str]:
    """A line for each evaluation of other weights than those certified, and for each that is not as it was certified.

    `entries`: the evaluations that are here now. One that was made afterwards may be added, and none be taken away.
    """
    here = {evaluation_key(entry): entry for entry in entries if not entry["limited"]}
    for entry in entries:
        if entry["weights"] != evidence.sha256:
            yield f"{_evaluation(entry)}: of weights with sha256 {entry['weights']} here, {evidence.sha256} certified"
    for known in evidence.evaluations:
        if (found := here.get(evaluation_key(known))) is None:
            yield f"{_evaluation(known)}: certified, and not here"
        elif found != known:
            yield f"{_evaluation(known)}: another than was certified"


def _evaluation(entry: Mapping[str, Any]) -> str:
    dataset, _, protocol, dtype, device = map(plain, evaluation_key(entry))
    return f"the evaluation on {dataset} (protocol {protocol}, {dtype} on {device})"


def check_same_table(where: Path, ledger: Mapping[str, Any], evidence: Evidence) -> None:
    """CaptureError if ledger and certificate of `where` do not name the same table."""
    made = (str(ledger["table"].get("name")), str(ledger["table"].get("sha256")))
    if made != evidence.table:
        there = "names none" if evidence.table is None else "says by {}, sha256 {}".format(*evidence.table)
        raise CaptureError(
            f"{file_name(where)}: its ledger says that it was converted by {plain(made[0])}, sha256 {plain(made[1])}; "
            f"its certificate {plain(there, 300)}. Convert or certify again."
        )


def check_tables(
    where: Path, ledger: Mapping[str, Any] | None, evidence: Evidence | None, accepted: Collection[str]
) -> list[CustomTable]:
    """The tables that made `where`, by its ledger and certificate, and were never released.

    CaptureError unless the hash of each is among those `accepted`.
    """
    custom = [*(custom_tables(ledger) if ledger else ()), *(evidence.custom if evidence else ())]
    custom = list(dict.fromkeys(custom))
    if refused := [table for table in custom if table.sha256 not in accepted]:
        options = " ".join(f"--accept-table {plain(table.sha256)}" for table in refused)
        raise CaptureError(
            f"{file_name(where)}: rests on {', '.join(map(str, refused))}, which no release has. A comparison does "
            f"not see all that a table does: read it and, if it is right, add {options}"
        )
    return custom


def made_by_unknown_table(ledger: Mapping[str, Any] | None, evidence: Evidence | None) -> bool:
    """Whether ledger or certificate leaves open which table made the weights, or there is neither."""
    records = [*([ledger] if ledger else ()), *([evidence.content] if evidence else ())]
    return not records or any(map(is_by_unknown_table, records))


def _captured(capture: Mapping[str, Any]) -> Captured:
    facts = capture["facts"]
    return Captured(
        capture["name"],
        capture["sha256"],
        facts.get("official_config"),
        capture["compact"],
        tuple((int(height), int(width)) for height, width in facts.get("image_sizes_hw", ())),
    )


def _exported(entry: Mapping[str, Any]) -> Exported:
    return Exported(entry["files"], entry["dtype"], entry["opset"], tuple(map(_run, entry["runs"])))


def _run(run: Mapping[str, Any]) -> Run:
    taps = [tap for results in run["modes"].values() for tap in results]
    worst = max(taps, key=lambda tap: float(tap["relative"]))
    return Run(
        run["capture"],
        run["device"],
        run["dtype"],
        len(taps),
        float(worst["relative"]),
        worst["name"],
        run["gate"]["text"],
        run["gate"]["looser"],
        len(run["detections"]),
    )
