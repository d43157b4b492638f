"""The folder to publish as a value, and writing it: whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter import __version__
from converter.checkpoint import Checkpoint, open_checkpoint
from converter.checkpoint.hashes import file_sha256
from converter.display import file_name, plain
from converter.errors import CaptureError, ModelError
from converter.evaluation.record import NAME as EVALUATION
from converter.evaluation.record import Evaluation, evaluations_beside
from converter.evaluation.record import to_json as evaluations_json
from converter.mapping.load import hub_table
from converter.mapping.spec import as_config, load_spec
from converter.parity.evidence import Evidence, read_evidence
from converter.parity.exports import beside, held
from converter.parity.family import Companions, Family
from converter.parity.setup import Setup, read_setup
from converter.publish.bom import bill_of_materials
from converter.publish.bom_record import BOM
from converter.publish.card import model_card
from converter.publish.checks import (
    check_architecture,
    check_evaluations,
    check_setup,
    check_weights,
    content_of,
    read_records,
)
from converter.publish.facts import Facts
from converter.writing.destination import CONFIG, LEDGER, check_destination, writing
from converter.writing.ledger import FOLDER, CustomTable, saved_from, to_json
from converter.writing.names import check_folder_name
from converter.writing.shards import INDEX_NAME
from converter.writing.staging import Staging, write_at

CERTIFICATE, REPORT, CARD = "parity.json", "report.html", "README.md"


@dataclass(frozen=True, slots=True)
class Package:
    """What the folder will hold: `documents` by their content, `weights` by the files that they are now.

    `evidence` is None where the conversion was never certified; `evaluations` are on data sets; `custom` are tables
    that were never released; `unknown_origin`: why nothing says which table made the weights, if that is so.
    """

    documents: Mapping[str, bytes]
    weights: Mapping[str, Path]
    evidence: Evidence | None
    evaluations: tuple[Evaluation, ...]
    custom: tuple[CustomTable, ...]
    unknown_origin: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        sizes = {name: len(content) for name, content in self.documents.items()}
        return dict(sorted((sizes | {name: path.stat().st_size for name, path in self.weights.items()}).items()))


def make_package(
    conversion: Path,
    family: Family[Any],
    *,
    vocabulary: Path | None = None,
    model_name: str | None = None,
    repo_id: str | None = None,
    report: Path | None = None,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Package:
    """All that is to be published of what `convert` wrote, checked: every tensor is hashed, and every file.

    `vocabulary`: the file for the family's tokenizer, if not the one that the family finds; `model_name`: the released
    model that this is, if any, which no checkpoint tells; `repo_id`: where it will be on the Hub. Raises ModelError,
    CheckpointError or CaptureError where the parts do not belong together.
    """
    with open_checkpoint(conversion) as checkpoint:
        config, ledger = read_records(conversion, checkpoint)
        companions = family.companions(conversion, config["config"], vocabulary)
        _check_name(model_name, ledger, family.about())
        check_architecture(conversion, checkpoint, config)
        evidence, evaluations = _evidence(conversion, checkpoint, family, ledger)
        check_weights(conversion, checkpoint, ledger, evidence, on_bytes)
        weights, documents = _weights(checkpoint, _exported(conversion, evidence))
        hashes = {name: file_sha256(path) for name, path in weights.items()}
        checkpoint.verify_unchanged()
        dtypes = sorted({tensor.dtype.name for tensor in checkpoint.tensors.values()})
        parameters = sum(tensor.numel for tensor in checkpoint.tensors.values())
    documents |= companions.files
    described = _config(config, ledger, companions, model_name, set(dtypes))
    documents[CONFIG] = to_json(described)
    if evidence is not None:
        documents[CERTIFICATE] = _certificate(conversion, evidence, companions, described)
    if evaluations:
        documents[EVALUATION] = evaluations_json(evaluations)
    documents |= _report(report or _beside(conversion, ".report.html", REPORT))
    facts = Facts(
        about=family.about(),
        model_name=model_name,
        repo_id=repo_id,
        config=config,
        ledger=ledger,
        evidence=evidence,
        dtypes=tuple(dtypes),
        parameters=parameters,
        doubts=tuple(companions.doubts),
        evaluations=evaluations,
    )
    documents |= _told(facts, documents, hashes)
    return Package(documents, weights, evidence, evaluations, facts.custom, facts.unknown_origin)


def _told(facts: Facts, documents: Mapping[str, bytes], weights: Mapping[str, str]) -> dict[str, bytes]:
    """The ledger, which names all files, the bill of materials, which has their hashes, and the card, which has its.

    `weights`: the SHA-256 of each file that holds some.
    """
    ledger = to_json({**facts.ledger, FOLDER: sorted((LEDGER, BOM, CARD, *documents, *weights))})
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in {**documents, LEDGER: ledger}.items()}
    bill = bill_of_materials(facts, {**weights, **hashes})
    return {LEDGER: ledger, BOM: bill.content, CARD: model_card(facts, bill).encode()}


def _evidence(
    conversion: Path, checkpoint: Checkpoint, family: Family[Any], ledger: Mapping[str, Any]
) -> tuple[Evidence | None, tuple[Evaluation, ...]]:
    """The certificate, if there is one, of what lies beside the weights now, and evaluations of these weights."""
    evidence, path = None, _beside(conversion, ".parity.json", CERTIFICATE)
    if path.exists():
        evidence = read_evidence(path)
        check_setup(conversion, read_setup(conversion, checkpoint, family), evidence.setup)
    evaluations = evaluations_beside(conversion)
    check_evaluations(conversion, evaluations, ledger, evidence)
    return evidence, evaluations


def _report(path: Path) -> dict[str, bytes]:
    return {REPORT: content_of(path)} if path.exists() else {}


def _weights(checkpoint: Checkpoint, graphs: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, bytes]]:
    """The files that hold the weights, by the names that they will have, and the index of shards."""
    if checkpoint.layout != "safetensors-sharded":
        (source,) = checkpoint.files
        return {"model.safetensors": source, **graphs}, {}
    return {source.name: source for source in checkpoint.files} | dict(graphs), {
        INDEX_NAME: content_of(checkpoint.path)
    }


def _exported(conversion: Path, evidence: Evidence | None) -> dict[str, Path]:
    """The graphs that were certified with the weights, as far as they are there. CaptureError for one that changed."""
    exports = evidence.exports if evidence else ()
    problems, same = held(exports, conversion)
    if problems:
        raise CaptureError(f"{file_name(conversion)}: what is beside it is not as it was certified", problems)
    return {name: beside(conversion, name) for name in same}


def _certificate(conversion: Path, evidence: Evidence, companions: Companions, described: Mapping[str, Any]) -> bytes:
    """The certificate of the package: also of what is added to the conversion, which cannot replace what it is of."""
    certified = evidence.setup
    files = {name: hashlib.sha256(content).hexdigest() for name, content in companions.files.items()}
    both = companions.config.keys() & certified.settings.keys(), files.keys() & certified.files.keys()
    added, known = (
        Setup({name: settings[name] for name in both[0]}, {name: hashes[name] for name in both[1]})
        for settings, hashes in ((companions.config, files), (certified.settings, certified.files))
    )
    check_setup(conversion, added, known)
    settings = {**certified.settings, **described}
    return to_json({**evidence.content, "package": {"settings": settings, "files": files}})


def _config(
    config: Mapping[str, Any],
    ledger: Mapping[str, Any],
    companions: Companions,
    model_name: str | None,
    dtypes: set[str],
) -> dict[str, Any]:
    library = hub_table(load_spec(config["model"])).config_document(as_config(config["config"]), dtypes)
    return {
        **(library or {}),
        **{key: config[key] for key in ("model", "variant", "config")},
        "model_name": model_name,
        **companions.config,
        "provenance": {
            "converter": ledger["converter"],
            "lossless": ledger["lossless"],
            "packaged_by": __version__,
            "source": ledger["source"],
            "table": ledger["table"],
            "weights_sha256": ledger["sha256"],
        },
    }


def write_package(
    package: Package, destination: Path, *, force: bool = False, on_done: Callable[[], object] = lambda: None
) -> None:
    """Write the folder. Raises DestinationError; whatever is raised, the destination is as it was.

    `on_done` is called once the folder is there, before anything else can fail.
    """
    check_package_destination(destination, force=force, inputs=package.weights.values())
    with Staging(destination, force=force) as staging:
        here = destination.parent.stat().st_dev
        copied = [status.st_size for path in package.weights.values() if (status := path.stat()).st_dev != here]
        staging.require_space(sum(len(content) for content in package.documents.values()) + sum(copied))
        for name, content in package.documents.items():
            descriptor = staging.create(name, len(content))
            with writing(destination):
                write_at(descriptor, content, 0)
        for name, source in package.weights.items():
            staging.take(name, source)
        staging.commit(on_done)


def check_package_destination(destination: Path, *, force: bool, inputs: Collection[Path]) -> None:
    """Refuse, before anything is read, a destination that can't be a folder of ours."""
    check_folder_name(destination, "a package is")
    check_destination(destination, force=force, inputs=list(inputs))


def _check_name(model_name: str | None, ledger: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    if model_name is None:
        return
    if said := saved_from(ledger):
        raise ModelError(f"{plain(model_name)} is not what these weights are: {said}. Leave out the model's name.")
    target, released = ledger["target"], about.get("models", {})
    possible = [target.get("variant"), *target.get("also", [])]
    if model_name not in released or model_name not in possible:
        expected = ", ".join(name for name in released if name in possible) or "no released model"
        raise ModelError(
            f"{plain(model_name)!r} is not what was converted: its architecture is that of {expected}. State one of "
            "them as the model's name, or none."
        )


def _beside(conversion: Path, suffix: str, name: str) -> Path:
    return conversion / name if conversion.is_dir() else conversion.with_suffix(suffix)
