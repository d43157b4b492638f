"""Figures and versions as a bill of materials has them: those of certificate, coverage, evaluations and ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from converter import __version__
from converter.display import plain
from converter.parity.evidence import Evidence, Run
from converter.publish.bom_record import LONGEST, PREFIX
from converter.publish.facts import Facts
from converter.writing.ledger import saved_from


def figures(facts: Facts) -> dict[str, str]:
    """Properties of the model: what it is, and what was measured of it, each comparison and evaluation by a number."""
    found: dict[str, Any] = {
        "model": facts.config["model"],
        "variant": facts.config["variant"],
        "model_name": facts.model_name,
        "parameters": facts.parameters,
        "tensors": len(facts.ledger["tensors"]),
        "dtypes": ", ".join(facts.dtypes),
        "lossless": facts.ledger["lossless"],
        "unknown_origin": facts.unknown_origin or None,
        "saved": saved_from(facts.ledger) or None,
        "certified": facts.evidence is not None,
    }
    if facts.evidence is not None:
        found |= dict(_parity(facts.evidence))
    for number, each in enumerate(facts.evaluations, start=1):
        entry = {**each.entry, **each.figures, "style": each.style}
        found |= {
            f"evaluation:{number}:{key}": value for key, value in entry.items() if key not in ("figures", "weights")
        }
    return {f"{PREFIX}{key}": _text(value) for key, value in found.items() if value is not None}


def _runs(runs: Sequence[Run]) -> Iterator[tuple[str, Any]]:
    for number, run in enumerate(runs, start=1):
        named = {
            "capture": run.capture, "device": run.device, "dtype": run.dtype, "comparisons": run.activations,
            "largest_relative_error": run.worst, "largest_at": run.worst_name, "allowed": run.gate,
            "looser_than_usual": run.looser, "images_with_detections": run.images,
        }  # fmt: skip
        yield from ((f"parity:{number}:{key}", value) for key, value in named.items())


def _parity(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    yield from _runs(evidence.runs)
    for number, exported in enumerate(evidence.exports, start=1):
        of_it = {"files": ", ".join(exported.files), "dtype": exported.dtype, "opset": exported.opset}
        yield from ((f"export:{number}:{key}", value) for key, value in (*of_it.items(), *_runs(exported.runs)))
    for number, capture in enumerate(evidence.captures, start=1):
        yield f"capture:{number}:name", capture.name
        yield f"capture:{number}:sha256", capture.sha256
        yield f"capture:{number}:official", capture.official
    if evidence.made:
        yield from (
            (f"mutations:{key}", value)
            for key, value in (
                ("made", evidence.made),
                ("caught", evidence.caught),
                ("equivalent", evidence.equivalent),
            )
        )
    if (coverage := evidence.coverage) is not None:
        yield from ((f"coverage:{key}", coverage[key]) for key in ("elements", "seen", "gaps"))


def libraries(facts: Facts) -> dict[tuple[str, str], list[str]]:
    """Programs and libraries by name and version, with what each took part in.

    Of the machine that packages there is the version of converter only: all else is as ledger, certificate and
    evaluations recorded it, so that the same folder is told the same way everywhere.
    """
    steps = [("converted", "converter", facts.ledger["converter"]), ("packaged", "converter", __version__)]
    if facts.evidence is not None:
        steps.append(("certified", "converter", facts.evidence.content["converter"]))
        exports = facts.evidence.content.get("exports", ())
        for run in (*facts.evidence.content["runs"], *(run for each in exports for run in each["runs"])):
            used = (name for name in ("torch", "python", "onnxruntime") if name in run["settings"])
            steps += [("certified", name, run["settings"][name]) for name in used]
    for each in facts.evaluations:
        library, _, version = str(each.content["metric"]["library"]).rpartition(" ")
        run = each.content["run"]
        steps += [("evaluated", "converter", each.content["converter"]), ("evaluated", library or version, version)]
        steps += [("evaluated", name, run[name]) for name in ("torch", "pillow") if name in run]
    found: dict[tuple[str, str], list[str]] = {}
    for done, name, version in steps:
        those = found.setdefault((plain(str(name)), plain(str(version))), [])
        those += [] if done in those else [done]
    return found


def _text(value: Any) -> str:
    """`true`, `0.4658`, or a text, made printable and cut."""
    if isinstance(value, str):
        return plain(value, LONGEST)
    return str(value).lower() if isinstance(value, bool) else repr(value)
