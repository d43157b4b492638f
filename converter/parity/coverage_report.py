"""Coverage as text, as JSON and as a section of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from converter.display import figure, plain
from converter.parity.coverage import Coverage, Reason, TensorCoverage
from converter.parity.sensitivity import STEP
from converter.parity.summary import printable
from converter.writing.ledger import custom_tables, is_by_unknown_table, saved_from

_CLASSES = {
    Reason.NO_INPUT: "never", Reason.ROW: "row", Reason.UNREACHED: "gap", Reason.WITHIN: "gap within",
}  # fmt: skip
_HELP = {
    Reason.NO_INPUT: "a softmax cancels it, or the model does not use it",
    Reason.ROW: "of an embedding",
    Reason.UNREACHED: "padding, a dead unit, a kernel wider than the map: captures of other inputs can show it",
    Reason.WITHIN: f"a change of {STEP:g} of its tensor's RMS is too small to be told",
}


def proof_of_rows(ledger: Mapping[str, Any] | None, sha256: str) -> str:
    """What shows that rows of embeddings that no input uses are the checkpoint's own.

    `ledger`: of the conversion; `sha256`: the hash of all tensors as they are.
    """
    nothing = "nothing shows that rows that are not used are in their places"
    if ledger is None or is_by_unknown_table(ledger):
        return f"{nothing}: {saved_from(ledger) or 'there is no record of a conversion'}"
    if ledger["sha256"] != sha256:
        return f"{nothing}: the record of the conversion is of other weights"
    if custom := custom_tables(ledger):
        return f"{nothing}, but {', '.join(map(str, custom))}"
    table = ledger["table"]
    exactly = "bit for bit" if ledger["lossless"] else "rounded to another dtype"
    return (
        f"rows that are not used are the checkpoint's, {exactly}, in their places: {plain(str(table['name']))} says "
        f"so, a released table (sha256 {str(table['sha256'])[:12]}...)"
    )


def to_text(found: Coverage, proof: str, rows: int = 20) -> str:
    """For a terminal: totals, and of the tensors that are not seen as a whole the `rows` with most gaps."""
    lines = [headline(found)]
    for reason in Reason:
        if count := found.unseen(reason):
            lines.append(f"  {count:>12,}  {share(count, found.elements):>9}  {reason.value} ({_HELP[reason]})")
    lines += [f"  {proof}"] if found.unseen(Reason.ROW) else []
    partly = _by_gaps(found)
    if partly:
        lines += ["", f"  {'seen':>8}  {'not seen':>12}  tensor, and where"]
    for tensor in partly[:rows]:
        unseen = tensor.elements - tensor.seen
        lines.append(f"  {share(tensor.seen, tensor.elements):>8}  {unseen:>12,}  {plain(tensor.name)} {tensor.shape}")
        for part in tensor.unseen:
            lines.append(f"  {'':>8}  {part.elements:>12,}    {part.reason.value}: {'; '.join(part.places)}")
    if len(partly) > rows:
        lines.append(f"  ... and {len(partly) - rows} tensors more, with as many gaps or fewer")
    whole = len(found.tensors) - len(partly)
    lines += ["", f"  {whole} of {len(found.tensors)} tensors are seen as a whole"]
    return "\n".join(map(printable, lines)) + "\n"


def headline(found: Coverage) -> str:
    """`coverage by one, two (1e-10): 89.72 % of 231,759,662 elements are seen; 65,393 are gaps (0.03 %)`."""
    return (
        f"coverage by {', '.join(map(plain, found.captures))} ({found.gate}): {share(found.seen, found.elements)} of "
        f"{found.elements:,} elements are seen; {found.gaps:,} are gaps ({share(found.gaps, found.elements)})"
    )


def share(part: int, whole: int) -> str:
    """A share in per cent, never rounded to all or nothing."""
    texts = (f"{100 * part / (whole or 1):.{digits}f}" for digits in range(2, 16))
    return next(text for text in texts if part in (0, whole) or float(text) not in (0, 100)) + " %"


def _by_gaps(found: Coverage) -> list[TensorCoverage]:
    """Tensors that are not seen as a whole, those with most gaps first."""
    return sorted((tensor for tensor in found.tensors if tensor.unseen), key=lambda t: (-t.gaps, t.seen - t.elements))


def to_json(found: Coverage, proof: str) -> dict[str, Any]:
    """Totals, and every tensor, with its shape, what is seen of it, and why and where the others are not seen."""
    return {
        "captures": list(found.captures),
        "gate": found.gate,
        "step": STEP,
        "elements": found.elements,
        "seen": found.seen,
        "gaps": found.gaps,
        "unseen": {reason.value: found.unseen(reason) for reason in Reason},
        "rows": proof,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "seen": tensor.seen,
                "effect": tensor.effect,
                "unseen": [
                    {
                        "reason": part.reason.value,
                        "gap": part.reason.gap,
                        "elements": part.elements,
                        "places": list(part.places),
                    }
                    for part in tensor.unseen
                ],
            }
            for tensor in found.tensors
        ],
    }


def to_html(found: Coverage, proof: str) -> str:
    """A picture of all tensors in their order, and a table of those that are not seen as a whole."""
    keys = "".join(f"<span class='key {_CLASSES[r].split()[0]}'>{r.value}</span> " for r in Reason if not r.gap)
    return "\n".join(
        [
            f"<p>{_text(headline(found))}.</p>",
            "<ul>",
            *(f"<li>{_total(found, reason)}: {_text(_HELP[reason])}</li>" for reason in Reason if found.unseen(reason)),
            "</ul>",
            f"<p>{_text(proof[0].upper() + proof[1:])}.</p>" if found.unseen(Reason.ROW) else "",
            _picture(found.tensors),
            f"<p><span class='key seen'>seen</span> {keys}<span class='key gap'>gap</span></p>",
            "<div class='scroll' tabindex='0' role='region' aria-label='Tensors that are not seen as a whole'><table>",
            "<thead><tr><th scope='col' class='why'>tensor</th><th scope='col'>seen</th><th scope='col'></th>"
            "<th scope='col'>effect</th><th scope='col' class='why'>not seen</th></tr></thead><tbody>",
            *map(_row, _by_gaps(found)),
            "</tbody></table></div>",
            f"<p class='hint'>Effect: what a change of {STEP:g} of the RMS of the tensor does to the activations, in "
            "units of their limits; the median over its elements.</p>",
        ]
    )


def _total(found: Coverage, reason: Reason) -> str:
    count = found.unseen(reason)
    return f"{count:,} ({share(count, found.elements)}): {reason.value}"


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _parts(tensor: TensorCoverage) -> Iterator[tuple[str, int]]:
    """Class and number of elements of each part of a tensor, what is seen first."""
    yield "seen", tensor.seen
    for part in tensor.unseen:
        yield _CLASSES[part.reason], part.elements


def _picture(tensors: Sequence[TensorCoverage]) -> str:
    """A column for each tensor, in which gaps, however small, are at least a pixel high."""
    width, height = 1200 / max(len(tensors), 1), 120
    shapes = []
    for index, tensor in enumerate(tensors):
        top = 0.0
        for kind, count in reversed([*_parts(tensor)]):
            if count:
                tall = height - top if kind == "seen" else max(height * count / (tensor.elements or 1), 3)
                shapes.append(
                    f"<rect class='{kind}' x='{index * width:.2f}' y='{top:.1f}' width='{width:.2f}' "
                    f"height='{max(tall, 0):.1f}'><title>{_text(tensor.name)}: "
                    f"{share(tensor.seen, tensor.elements)} seen</title></rect>"
                )
                top += tall
    label = "Every tensor as a column, in the order of the model; what is not seen of it is drawn from above"
    return (
        f"<figure><svg class='weights' viewBox='0 0 1200 {height}' preserveAspectRatio='none' role='img' "
        f"aria-label='{label}'>{''.join(shapes)}</svg><figcaption>{label}, at least a stripe.</figcaption></figure>"
    )


def _row(tensor: TensorCoverage) -> str:
    bars, left = [], 0.0
    for kind, count in _parts(tensor):
        wide = 100 * count / (tensor.elements or 1)
        bars.append(f"<rect class='{kind}' x='{left:.2f}' width='{wide:.2f}' height='10'/>")
        left += wide
    reasons = "".join(
        f"<div>{part.elements:,} {part.reason.value}: {_text('; '.join(part.places))}</div>" for part in tensor.unseen
    )
    return (
        f"<tr><th scope='row'><code>{_text(tensor.name)}</code><br><small>{_text(list(tensor.shape))}</small></th>"
        f"<td>{share(tensor.seen, tensor.elements)}</td><td><svg class='bar' viewBox='0 0 100 10' "
        f"preserveAspectRatio='none' aria-hidden='true'>{''.join(bars)}</svg></td><td>{figure(tensor.effect)}</td>"
        f"<td class='why'>{reasons}</td></tr>"
    )
