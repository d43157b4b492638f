"""Whether a certificate agrees with itself: an accident or a careless edit shows, though a forger could avoid it."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from converter.checkpoint.strict_json import parse_json
from converter.display import beside, plain
from converter.parity.gates import Gate, expected_error, find_gate, gates

# reasons of coverage for which no other input could do more; `coverage.py`, which needs torch, says them
NO_GAPS = ("no input can show it", "row not used by these inputs")
# as PEP 440 has them, and builds of Python and torch
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)+((a|b|rc|\.post|\.dev)[0-9]+)*(\+[A-Za-z0-9._-]*)?")


def contradictions(content: Mapping[str, Any]) -> Iterator[str]:
    """A line for each place where a certificate, which its schema accepts, contradicts itself."""
    if not _VERSION.fullmatch(content["converter"]):
        yield f"converter: {plain(content['converter'])!r} is not a version"
    yield from (*_captures(content), *_activations(content))
    for index, run in enumerate(content["runs"]):
        for problem in (*_versions(content, run), *_gate(run), *_taps(run), *_detections(run)):
            yield f"runs/{index}: {problem}"
    yield from _exports(content)
    if content["mutations"] is not None:
        yield from _mutations(content["mutations"])
    if "coverage" in content:
        yield from _coverage(content, content["coverage"])
    yield from _evaluations(content)


def _captures(content: Mapping[str, Any]) -> Iterator[str]:
    """Every capture was compared in float64, and all runs of it compare the same activations."""
    names = [capture["name"] for capture in content["captures"]]
    if len(set(names)) < len(names):
        yield "captures: two have the same name"
    for index, run in enumerate(content["runs"]):
        if run["capture"] not in names:
            yield f"runs/{index}: is of the capture {plain(run['capture'])!r}, which is not among the captures"
    for name in names:
        runs = [run for run in content["runs"] if run["capture"] == name]
        if "float64" not in {run["dtype"] for run in runs}:
            yield f"captures: {plain(name)!r} was not compared in float64, which decides"
        compared = {frozenset(_names(run)) for run in runs}
        if len(compared) > 1:
            yield f"runs: those of {plain(name)!r} do not compare the same activations"
        if any(len(_names(run)) > len(set(_names(run))) for run in runs):
            yield f"runs: one of {plain(name)!r} has an activation twice"


def _activations(content: Mapping[str, Any]) -> Iterator[str]:
    """Every run compares all activations that the certified model has, as its fingerprint names them."""
    try:
        table, known = _fingerprint(base64.b64decode(content["fingerprint"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        yield "its fingerprint is damaged"
        return
    tables = {capture["name"]: capture["table"]["name"] for capture in content["captures"]}
    for index, run in enumerate(content["runs"]):
        if tables.get(run["capture"]) != table:  # its names are of another model
            continue
        for mode, taps in run["modes"].items():
            if lost := sorted(known - {tap["name"] for tap in taps}):
                yield f"runs/{index}: {mode} does not compare {plain(lost[0])}, which the fingerprint has"


def _fingerprint(file: bytes) -> tuple[str, set[str]]:
    """Of a capture, the table that names its activations, and these names. It is seen elsewhere whether it is sound."""
    header = parse_json(file[8 : 8 + int.from_bytes(file[:8], "little")].decode())
    facts = parse_json(header.pop("__metadata__")["capture"])
    return facts["table"], {name for name in header if not name.startswith(("input.", "detections."))}


def _names(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(mode, tap["name"]) for mode, taps in run["modes"].items() for tap in taps]


def _evaluations(content: Mapping[str, Any]) -> Iterator[str]:
    """Each is of the weights that are certified, and none is there twice."""
    entries = content.get("evaluations", ())
    for entry in entries:
        if entry["weights"] != content["weights"]["sha256"]:
            yield f"evaluations: that on {plain(entry['dataset'])} is of other weights, with sha256 {entry['weights']}"
    if len({evaluation_key(entry) for entry in entries}) < len(entries):
        yield "evaluations: two are of the same data set, protocol, device and dtype"


def _exports(content: Mapping[str, Any]) -> Iterator[str]:
    """Each is of the weights that are certified, and its runs are of the captures and within their limits."""
    captures = {capture["name"] for capture in content["captures"]}
    known = {(run["capture"], name) for run in content["runs"] for _, name in _names(run)}
    names = [name for entry in content.get("exports", ()) for name in entry["files"]]
    if len(set(names)) < len(names):
        yield "exports: two have a file of the same name"
    for index, entry in enumerate(content.get("exports", ())):
        if entry["weights"] != content["weights"]["sha256"]:
            yield f"exports/{index}: is of other weights, with sha256 {entry['weights']}"
        for run in entry["runs"]:
            if run["capture"] not in captures or run["dtype"] != entry["dtype"]:
                yield f"exports/{index}: a run of {plain(run['capture'])!r} in {run['dtype']} is none of it"
            if more := sorted({name for _, name in _names(run) if (run["capture"], name) not in known}):
                yield f"exports/{index}: compares {plain(more[0])}, which no run of the weights does"
            for problem in (*_versions(content, run), *_gate(run), *_taps(run), *_detections(run)):
                yield f"exports/{index}: {problem}"


def evaluation_key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells evaluations of whole data sets apart. Files of annotations often share a name."""
    return tuple(entry[name] for name in ("dataset", "annotations", "protocol", "dtype", "device"))


def _versions(content: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    for tool in ("converter", "torch", "python"):
        if not _VERSION.fullmatch(version := run["settings"][tool]):
            yield f"settings/{tool}: {plain(version)!r} is not a version"
    if run["settings"]["converter"] != content["converter"]:
        yield f"was made by converter {plain(run['settings']['converter'])}, the certificate by another version"


def _gate(run: Mapping[str, Any]) -> Iterator[str]:
    """The gate is that of gates.json, which no version has changed so far, or says that it replaces it."""
    stated, default = run["gate"], run["gate"]["default"]
    known = find_gate(run["device"].partition(":")[0], run["dtype"])
    base = stated if default is None else default
    gate = Gate(stated["relative"], stated["times"], "", known if default else None)
    if (base["relative"], base["times"]) != (known.relative, known.times):
        yield f"gate: {plain(base['text'])} is not the gate for {run['dtype']} on {run['device']}, {known}"
    elif (stated["text"], stated["looser"]) != (str(gate), gate.looser):
        yield f"gate: {gate}{', looser than the default,' if gate.looser else ''} is not stated as such"


def _taps(run: Mapping[str, Any]) -> Iterator[str]:
    """Every number is within its limit, and every limit is what the gate makes of the captured error."""
    gate, most = run["gate"], gates()["most"]["relative"]
    for taps in run["modes"].values():
        errors = [(tap["name"], tap["own"]) for tap in taps]
        for tap in taps:
            name, relative, limit = plain(tap["name"]), tap["relative"], tap["limit"]
            if gate["relative"] is not None:
                allowed: float | None = gate["relative"]
            elif tap["own"] is None:
                allowed = None
            else:
                allowed = gate["times"] * expected_error(tap["name"], tap["shape"], tap["own"], errors)
            if allowed is None or not math.isclose(limit, allowed) or (gate["relative"] is None and limit >= most):
                yield f"{name}: its limit {limit:g} is not what the gate {plain(gate['text'])} makes"
            if relative > limit:
                yield f"{name}: {beside('relative error {}, at most {}', relative, limit)}, and yet passed"
            if not math.isclose(tap["share"], relative / limit if limit else relative):
                yield f"{name}: relative error {relative:g} is not the stated share {tap['share']:g} of its limit"


def _detections(run: Mapping[str, Any]) -> Iterator[str]:
    """In float64 the same detections to within their limits; other dtypes have no limit."""
    known = gates()["detections"]
    limit = known["pixels"] if run["dtype"] == "float64" else None
    for image, found in enumerate(run["detections"]):
        if (found["limit"], found["score_limit"]) != (limit, known["scores"]):
            yield f"detections/{image}: its limits are not those of {run['dtype']}"
        numbers = [found["pixels"], found["scores"]]
        if limit is not None and not (
            found["passed"] is True
            and found["same_order"]
            and all(isinstance(number, int | float) for number in numbers)
            and found["pixels"] <= limit
            and found["scores"] <= known["scores"]
        ):
            yield f"detections/{image}: did not pass"


def _mutations(score: Mapping[str, Any]) -> Iterator[str]:
    made, caught, equivalent = score["made"], score["caught"], score["equivalent"]
    if not caught + equivalent <= made <= score["possible"]:
        yield (
            f"mutations: {caught} noticed and {equivalent} that no input can show are not among {made} made "
            f"of {score['possible']}"
        )
    elif len(score["survivors"]) != made - caught:
        yield f"mutations: {len(score['survivors'])} are listed as not noticed, of {made} were {made - caught}"
    elif not math.isclose(score["score"], caught / ((made - equivalent) or 1)):
        yield f"mutations: the score is not {score['score']:g}"
    elif "kinds" in score:
        for total in ("made", "caught", "equivalent"):
            if (summed := sum(kind[total] for kind in score["kinds"].values())) != score[total]:
                yield f"mutations: {summed} {total} of all kinds are not the {score[total]} of all"


def _coverage(content: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """It is by all captures, of tensors that are certified, and its totals are those of its tensors."""
    if found["captures"] != [capture["name"] for capture in content["captures"]]:
        yield "coverage: is not that of the captures"
    totals = Counter({"elements": 0, "seen": 0, "gaps": 0})
    unseen: Counter[str] = Counter(dict.fromkeys(found["unseen"], 0))
    for tensor in found["tensors"]:
        parts = tensor["unseen"]
        elements = tensor["seen"] + sum(part["elements"] for part in parts)
        if tensor["name"] not in content["weights"]["tensors"] or elements != math.prod(tensor["shape"]):
            yield f"coverage: {plain(tensor['name'])}: is not among the weights, or has another number of elements"
        gaps = sum(part["elements"] for part in parts if part["gap"])
        totals.update({"elements": elements, "seen": tensor["seen"], "gaps": gaps})
        for part in parts:
            if part["gap"] is (part["reason"] in NO_GAPS):
                yield f"coverage: {plain(tensor['name'])}: {plain(part['reason'])!r} is not such a gap as it says"
            unseen[part["reason"]] += part["elements"]
    if dict(totals) != {key: found[key] for key in totals} or dict(unseen) != found["unseen"]:
        yield "coverage: its totals are not those of its tensors"
