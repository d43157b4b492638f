"""The model card: what this is, what was verified by which numbers, what was not, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from converter.display import counted
from converter.parity.evidence import Evidence

CITATION = """\
```bibtex
@inproceedings{li2022grounded,
  title     = {Grounded Language-Image Pre-training},
  author    = {Li, Liunian Harold and Zhang, Pengchuan and Zhang, Haotian and Yang, Jianwei and Li, Chunyuan and
               Zhong, Yiwu and Wang, Lijuan and Yuan, Lu and Zhang, Lei and Hwang, Jenq-Neng and Chang, Kai-Wei and
               Gao, Jianfeng},
  booktitle = {CVPR},
  year      = {2022},
  note      = {arXiv:2112.03857}
}
```"""

UNVERIFIED = "> **UNVERIFIED.**"  # how a card says that there is no certificate
_UNVERIFIED = (
    f"{UNVERIFIED} Nothing shows that these weights compute what the official code computes: no certificate "
    "(`parity.json`) was beside them. Each tensor is what `conversion.json` says was written; that is all. "
    "`converter certify` makes the comparison."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the card is made of."""

    model_name: str | None
    repo_id: str | None
    config: dict[str, Any]
    ledger: dict[str, Any]
    evidence: Evidence | None
    dtypes: tuple[str, ...]
    parameters: int
    bert_base_uncased: bool
    files: tuple[str, ...]


@cache
def zoo() -> dict[str, Any]:
    """The released models and what their authors report of them, each with its source."""
    text = (Path(__file__).parent.parent / "glip" / "model_zoo.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def model_card(facts: Facts) -> str:
    """README.md, with the metadata that the Hub reads at its top."""
    from huggingface_hub import ModelCard, ModelCardData

    released = zoo()["models"].get(facts.model_name, {})
    data = ModelCardData(
        language="en",
        license=zoo()["license"]["id"] if released else None,
        library_name="converter",
        pipeline_tag="zero-shot-object-detection",
        tags=["glip", "object-detection", "phrase-grounding", "safetensors"],
        base_model=zoo()["base_model"]["id"] if released else None,
        datasets=[zoo()["data"][key]["hub"] for key in released.get("data", ()) if "hub" in zoo()["data"][key]] or None,
    )
    sections = [
        _head(facts, released),
        _verification(facts),
        _not_verified(facts),
        _use(facts),
        _origin(facts, released),
        _reported(released),
        _limits(),
        _license(released),
        "## Citation\n\n" + CITATION,
    ]
    card = str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(s for s in sections if s) + "\n"))
    return card if facts.evidence else mark_unverified(card)


def mark_unverified(card: str) -> str:
    """The card, saying UNVERIFIED right below its heading, or before anything else if it does not begin with one.

    Nowhere else would it count: it could be in a comment, or far down.
    """
    head = re.match(r"(\s*---[\r\n]+[\S\s]*?[\r\n]+---(\r?\n|$))?(\s*#{1,6} .*(\n|$))?", card)
    assert head is not None  # it may be empty
    rest = card[head.end() :].lstrip()
    return card if rest.startswith(UNVERIFIED) else f"{head[0].rstrip()}\n\n{_UNVERIFIED}\n\n{rest}".lstrip()


def _head(facts: Facts, released: dict[str, Any]) -> str:
    title = released.get("title", f"GLIP ({code(str(facts.config['variant']))})")
    paper = zoo()["sources"]["paper"]
    origin = "the released checkpoint" if released else "a checkpoint"
    text = (
        f"# {title} for plain PyTorch\n\n"
        f"[GLIP]({paper}) finds in images what a caption names. These weights were converted from {origin} to "
        f"safetensors by `converter` {code(facts.ledger['converter'])}, for a GLIP that needs no compiled extension: "
        f"{facts.parameters / 1e6:.1f} million parameters, {', '.join(facts.dtypes)}."
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
    rows = [
        [code(run.device), code(run.dtype), str(run.activations), f"{run.worst:.1e} ({code(run.worst_name)})",
         text(run.gate), str(run.images)]
        for run in evidence.runs
    ]  # fmt: skip
    recording = f", a recording of the official code ({code(evidence.official)})" if evidence.official else ""
    recording += ", of which some hundred numbers of each activation are kept" if evidence.compact else ""
    sizes = " and ".join(f"{width}x{height}" for height, width in evidence.sizes[:8])
    lines = [
        "## What was verified",
        "",
        f"The model was compared with capture {code(evidence.capture)}{recording}, on "
        f"{counted(len(evidence.sizes), 'image')} of {sizes} pixels: activation by activation as it runs and, where "
        "the capture allows, block by block. Every comparison passed:",
        "",
        *_table(
            ["device", "dtype", "comparisons", "largest relative error", "allowed", "images with detections"], rows
        ),
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
    lines += [
        "",
        "`parity.json` holds the numbers of every activation, the hashes of weights, table and capture "
        f"({code(evidence.capture_sha256[:16])}...), and a fingerprint by which a copy is checked anywhere, without "
        "the official code:",
        "",
        "```console",
        f"converter verify {facts.repo_id or '.'}",
        "```",
        "",
        "It is evidence, not a signature: who can change the weights can change it, too.",
    ]
    return "\n".join(lines)


def _not_verified(facts: Facts) -> str:
    runs = facts.evidence.runs if facts.evidence else ()
    points = ["No benchmark was run on these weights: figures below, if any, are the authors' own, of their code."]
    if not runs:
        points.append("Nothing was compared with the official code, on no device and in no dtype.")
    else:
        if facts.evidence and not facts.evidence.official:
            points.append(
                "**The capture does not say that it is of the official code.** If it is of this model itself, the "
                "comparison shows nothing but that the file is read as it was."
            )
        if not any(run.device.startswith("cuda") for run in runs):
            points.append("Nothing was compared on a GPU.")
        missing = [name for name in ("float32", "bfloat16", "float16") if name not in {run.dtype for run in runs}]
        if missing:
            points.append(f"Nothing was compared in {', '.join(missing)}.")
        points.append(
            "The comparison begins at token ids and normalised images. The tokenizer and the resizing of pictures "
            "are not part of it."
        )
    if not facts.bert_base_uncased:
        points.append(
            "**The vocabulary is not that of BERT base uncased**, with which the released models were trained."
        )
    if not facts.ledger["lossless"]:
        points.append(
            "Converting rounded the weights to another dtype: they are not bit for bit those of the checkpoint."
        )
    return "\n".join(["## What was not verified", "", *(f"- {point}" for point in points)])


def _use(facts: Facts) -> str:
    where = facts.repo_id or "."  # the folder of this card
    return "\n".join(
        [
            "## Use",
            "",
            "With `converter` installed from its checkout (`pip install '.[detect]'`):",
            "",
            "```python",
            "from PIL import Image",
            "",
            "from converter.glip import Detector",
            "",
            f'detector = Detector.from_pretrained("{where}")',
            'picture = Image.new("RGB", (640, 480))  # yours: Image.open("street.jpg")',
            'found = detector.detect(picture, "person. dog.", threshold=0.5)',
            "for phrase, score, box in zip(found.phrases, found.scores.tolist(), found.boxes.tolist()):",
            "    print(phrase, round(score, 3), [round(corner) for corner in box])  # x1 y1 x2 y2 in pixels",
            "```",
            "",
            "Or from the command line:",
            "",
            "```console",
            f'converter detect {where} street.jpg --prompt "person. dog." --out found/',
            "```",
            "",
            f'The bare model takes normalised images and token ids: `converter.glip.GLIP.from_pretrained("{where}")`. '
            f'`transformers.AutoTokenizer.from_pretrained("{where}")` loads the tokenizer.',
        ]
    )


def _origin(facts: Facts, released: dict[str, Any]) -> str:
    ledger = facts.ledger
    left_out: dict[str, int] = {}
    for entry in ledger["left_out"]:
        reason = str(entry.get("reason", "?")) if isinstance(entry, dict) else "?"
        left_out[reason] = left_out.get(reason, 0) + 1
    rows = [
        ["table", f"{code(str(ledger['table'].get('name')))} ({code(str(ledger['table'].get('sha256'))[:16])}...)"],
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
        rows.insert(0, ["checkpoint, as stated by who packaged this", code(released["checkpoint"])])
    return "\n".join(
        [
            "## Conversion",
            "",
            *_table(["what", "value"], rows),
            "",
            "`conversion.json` names every tensor with its hash.",
        ]
    )


def _reported(released: dict[str, Any]) -> str:
    if not released:
        return ""
    source, notes = zoo()["sources"][released["source"]], released.get("notes", {})
    data = ", ".join(zoo()["data"][key]["name"] for key in released["data"])
    rows = [
        [zoo()["figures"][key] + (f" ({notes[key]})" if key in notes else ""), str(value)]
        for key, value in released["figures"].items()
    ]
    return "\n".join(
        [
            "## Reported by the authors",
            "",
            f"Trained on {data}. Figures of the official code, not measured here:",
            "",
            *_table(["benchmark", "reported"], rows),
            "",
            f"Source: {source}.",
        ]
    )


def _limits() -> str:
    return (
        "## Intended use\n\n"
        "Detecting objects by name and grounding phrases, in research, and as a start for fine-tuning. What it finds "
        "follows its training data, with their gaps and biases; captions are English, of at most 256 tokens. It was "
        "not made to identify people, nor for decisions about them."
    )


def _license(released: dict[str, Any]) -> str:
    if not released:
        return (
            "## Licence\n\nNot stated, as the origin of the weights is not. The official code is under the MIT licence."
        )
    return (
        "## Licence\n\n"
        f"MIT, copyright {zoo()['license']['holder']}: the licence of the official repository, which publishes the "
        f"checkpoint and names no other for it ({zoo()['sources']['license']}). The data sets have terms of their own. "
        "The vocabulary is BERT's (Apache 2.0)."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def code(name: str) -> str:
    """A name out of a file in a code span: nothing in it can end the span, the line or the cell."""
    return "`" + (re.sub(r"[`|\s]|[^\x20-\x7e]", "_", name)[:200] or "_") + "`"


def text(sentence: str) -> str:
    """A sentence out of a file, with nothing in it that Markdown or HTML would act on: no address either."""
    return re.sub(r"[^\w .,:;()+=/%'-]|_|\.(?=[^\W\d])|:(?=/)", "?", sentence)[:300]
