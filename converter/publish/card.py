"""The model card: what this is, what was verified by which numbers, what was not, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from converter.display import counted
from converter.parity.evidence import Captured
from converter.publish.bom import Bill, bill_section
from converter.publish.evaluated import eval_results, evaluated, not_evaluated
from converter.publish.facts import Facts
from converter.publish.markdown import code, section, table, text
from converter.writing.ledger import custom_tables, saved_from

UNVERIFIED = "> **UNVERIFIED.**"  # how a card says that there is no certificate
_UNVERIFIED = (
    f"{UNVERIFIED} Nothing shows that these weights compute what the official code computes: no certificate "
    "(`parity.json`) was beside them. Each tensor is what `conversion.json` says was written; that is all. "
    "`converter certify` makes the comparison."
)


def model_card(facts: Facts, bill: Bill) -> str:
    """README.md, with the metadata that the Hub reads at its top. `bill`: the bill of materials beside it."""
    from huggingface_hub import ModelCard, ModelCardData

    about, card = facts.about, facts.about.get("card", {})
    released = facts.released
    data = [about["data"][key] for key in released.get("data", ())]
    results = eval_results(about, facts.evaluations)
    metadata = ModelCardData(
        language=card.get("language"),
        license=about["license"]["id"] if released else None,
        library_name=card.get("library", "converter"),
        pipeline_tag=card.get("pipeline_tag"),
        tags=card.get("tags"),
        base_model=about["base_model"]["id"] if released else None,
        datasets=[entry["hub"] for entry in data if "hub" in entry] or None,
        eval_results=results or None,
        model_name=_title(facts, released).replace("`", "") if results else None,
    )
    sections = [
        _head(facts, released),
        _verification(facts),
        evaluated(about, released, facts.evaluations),
        _not_verified(facts, released),
        _use(facts),
        _origin(facts, released),
        bill_section(bill),
        _reported(facts, released),
        section("Intended use", card.get("intended_use")),
        section("Licence", _license(card, released)),
        section("Citation", "\n".join(["```bibtex", *card["citation"], "```"]) if "citation" in card else None),
    ]
    whole = str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(s for s in sections if s) + "\n"))
    return whole if facts.evidence else mark_unverified(whole)


def mark_unverified(card: str) -> str:
    """The card, saying UNVERIFIED right below its heading, or before anything else if it does not begin with one.

    Nowhere else would it count: it could be in a comment, or far down.
    """
    head = re.match(r"(\s*---[\r\n]+[\S\s]*?[\r\n]+---(\r?\n|$))?(\s*#{1,6} .*(\n|$))?", card)
    assert head is not None  # it may be empty
    rest = card[head.end() :].lstrip()
    return card if rest.startswith(UNVERIFIED) else f"{head[0].rstrip()}\n\n{_UNVERIFIED}\n\n{rest}".lstrip()


def _title(facts: Facts, released: Mapping[str, Any]) -> str:
    """What the model is called: its released name, or by its variant if it was not stated which one it is."""
    family = facts.about.get("card", {}).get("family", facts.config["model"])
    return str(released.get("title", f"{family} ({code(str(facts.config['variant']))})"))


def _head(facts: Facts, released: Mapping[str, Any]) -> str:
    card = facts.about.get("card", {})
    introduction = f"{card['introduction']} " if "introduction" in card else ""
    origin = "the released checkpoint" if released else "a checkpoint"
    saved = saved_from(facts.ledger)
    is_unknown = bool(facts.unknown_origin) and not saved
    done = "written as" if is_unknown else f"converted from {origin} to"
    if saved:
        done = "changed in memory, by training say, and saved as"
    text = (
        f"# {_title(facts, released)} for {card.get('platform', 'plain PyTorch')}\n\n"
        f"{introduction}These weights were {done} safetensors by `converter` "
        f"{code(facts.ledger['converter'])}, for {card.get('target', 'a model in plain PyTorch')}: "
        f"{facts.parameters / 1e6:.1f} million parameters, {', '.join(facts.dtypes)}."
    )
    if released and is_unknown:
        text += (
            "\n\n> **That these are its weights was stated, not shown.** There is no record of what they were "
            "converted from, and a model that was trained further looks the same. What is said of training data, "
            "figures and licence is said of the released model."
        )
    if not released:
        text += (
            "\n\n> **Which model this is was not stated.** Weights of any training, of any data, or random ones can "
            "be in a checkpoint of this architecture; training data, figures and licence are therefore not given here."
        )
    return text


def _verification(facts: Facts) -> str:
    evidence = facts.evidence
    if evidence is None:
        return ""
    several = len(evidence.captures) > 1
    rows = [
        [*([code(run.capture)] if several else []), code(run.device), code(run.dtype), str(run.activations),
         f"{run.worst:.1e} ({code(run.worst_name)})", text(run.gate) + (" **(looser than usual)**" * run.looser),
         str(run.images)]
        for run in evidence.runs
    ]  # fmt: skip
    header = ["device", "dtype", "comparisons", "largest relative error", "allowed", "images with detections"]
    lines = [
        "## What was verified",
        "",
        f"The model was compared with {'; and with '.join(map(_captured, evidence.captures))}: activation by "
        "activation as it runs and, where the capture allows, block by block. Every comparison passed:",
        "",
        *table([*(["capture"] if several else []), *header], rows),
        "",
    ]
    if evidence.made:
        lines.append(
            f"How much the comparison would notice: of {evidence.made} faults made on purpose (tensors exchanged, "
            f"negated, other epsilons, known mistakes of ports) it noticed {evidence.caught}; "
            f"{evidence.equivalent} change nothing that any input can show."
        )
    else:
        lines.append("How much the comparison would notice was not measured: no faults were made on purpose.")
    lines += ["", _seen(evidence.coverage)]
    lines += [
        "",
        "`parity.json` holds the numbers of every activation, the hashes of weights, table and capture "
        f"({', '.join(code(capture.sha256[:16]) + '...' for capture in evidence.captures)}), configuration, "
        "preprocessing and vocabulary, and a fingerprint by which a copy is checked anywhere, without the official "
        "code:",
        "",
        "```console",
        f"converter verify {facts.repo_id or '.'}",
        "```",
        "",
        "It is evidence, not a signature: whoever can change the weights can change it, too.",
    ]
    return "\n".join(lines)


def _seen(coverage: Mapping[str, Any] | None) -> str:
    """What of the weights the comparison depends on."""
    if coverage is None:
        return "Which weights the comparison depends on was not measured."
    reasons = "; ".join(f"{count:,}: {text(reason)}" for reason, count in coverage["unseen"].items() if count)
    return (
        "Which weights it depends on: a change of a thousandth of its tensor's RMS would show in "
        f"{coverage['seen']:,} of {coverage['elements']:,} numbers. It would not in the others "
        f"({reasons or 'there are none'}); "
        f"{coverage['gaps']:,} of these could be seen by captures of other inputs. Of embeddings, "
        f"{text(coverage['rows'])}."
    )


def _captured(capture: Captured) -> str:
    recording = f", a recording of the official code ({code(capture.official)})" if capture.official else ""
    recording += ", of which some hundred numbers of each activation are kept" if capture.compact else ""
    sizes = " and ".join(f"{width}x{height}" for height, width in capture.sizes[:8])
    images = f", on {counted(len(capture.sizes), 'image')} of {sizes} pixels" if sizes else ""
    return f"capture {code(capture.name)}{recording}{images}"


def _not_verified(facts: Facts, released: Mapping[str, Any]) -> str:
    runs = facts.evidence.runs if facts.evidence else ()
    points = [*not_evaluated(facts.about, released, facts.evaluations)]
    if not runs:
        points.append("Nothing was compared with the official code, on no device and in no dtype.")
    else:
        if facts.evidence and not any(capture.official for capture in facts.evidence.captures):
            points.append(
                "**The capture does not say that it is of the official code.** If it was made with this model "
                "itself, the comparison shows only that the weights are read unchanged."
            )
        if not any(run.device.startswith("cuda") for run in runs):
            points.append("Nothing was compared on a GPU.")
        missing = [name for name in ("float32", "bfloat16", "float16") if name not in {run.dtype for run in runs}]
        if missing:
            points.append(f"Nothing was compared in {', '.join(missing)}.")
        points += facts.about.get("card", {}).get("doubts", ())
    points += facts.doubts
    points += [
        f"**A custom table was used**, {code(table.name)}, SHA-256 {code(table.sha256)}, which no release has. What no "
        " input of the comparison uses, such as rows of words, is as that table says."
        for table in facts.custom
    ]
    if said := saved_from(facts.ledger, code):
        points.append(f"**These weights are no conversion**: {said}. Nothing shows what changed them.")
    elif facts.unknown_origin:
        points.append(
            "**The weights were made by an unknown table**: there is no record of a conversion. What no input of the "
            "comparison uses, such as rows of words, can be anything."
        )
    if not facts.ledger["lossless"]:
        points.append(
            "Converting rounded the weights to another dtype: they are not bit for bit those of the checkpoint."
        )
    return "\n".join(["## What was not verified", "", *(f"- {point}" for point in points)])


def _use(facts: Facts) -> str:
    where = facts.repo_id or "."  # the folder of this card
    lines = facts.about.get("card", {}).get("use", ())
    return section("Use", "\n".join(lines).replace("{where}", where))


def _origin(facts: Facts, released: Mapping[str, Any]) -> str:
    ledger = facts.ledger
    left_out: dict[str, int] = {}
    for entry in ledger["left_out"]:
        reason = str(entry.get("reason", "?")) if isinstance(entry, dict) else "?"
        left_out[reason] = left_out.get(reason, 0) + 1
    rows = [
        [
            "custom table" if custom_tables({"table": ledger["table"]}) else "table",
            f"{code(str(ledger['table'].get('name')))} ({code(str(ledger['table'].get('sha256')))})",
        ],
        ["tensors read, SHA-256 of all", code(str(ledger["source"].get("sha256")))],
        ["tensors written, SHA-256 of all", code(ledger["sha256"])],
        ["state dict taken", code(str(ledger["source"].get("root") or "(the file itself)"))],
        ["values", "bit for bit" if ledger["lossless"] else "rounded to another dtype"],
        [
            "left out",
            "; ".join(f"{counted(n, 'tensor')}: {text(reason)}" for reason, n in left_out.items()) or "nothing",
        ],
    ]
    origin = ledger["source"].get("origin")
    if isinstance(origin, dict):
        rows.insert(0, ["read from", code(str(origin.get("reference")))])
    if released:
        rows.insert(0, ["checkpoint, as stated when this was packaged", code(released["checkpoint"])])
    return "\n".join(
        [
            "## Conversion",
            "",
            *table(["what", "value"], rows),
            "",
            "`conversion.json` names every tensor with its hash.",
        ]
    )


def _reported(facts: Facts, released: Mapping[str, Any]) -> str:
    if not released:
        return ""
    about, here = facts.about, "not those of the evaluation above" if facts.evaluations else "not measured here"
    notes = released.get("notes", {})
    data = ", ".join(about["data"][key]["name"] for key in released["data"])
    rows = [
        [about["figures"][key] + (f" ({notes[key]})" if key in notes else ""), str(value)]
        for key, value in released["figures"].items()
    ]
    return "\n".join(
        [
            "## Reported by the authors",
            "",
            f"Trained on {data}. Figures of the official code, {here}:",
            "",
            *table(["benchmark", "reported"], rows),
            "",
            f"Source: {about['sources'][released['source']]}.",
        ]
    )


def _license(card: Mapping[str, Any], released: Mapping[str, Any]) -> str:
    if released:
        return str(card["license"])
    return f"Not stated, as the origin of the weights is not. {card.get('license_of_code', '')}".rstrip()
