"""`bom.cdx.json`: a bill of materials for tools that keep inventories of software and models, as CycloneDX 1.6 has it.

It says what the card says. The same folder gives the same bytes: neither the time of day nor this machine is in it, and
its serial number is made of all the rest. cyclonedx-python-lib writes it, and has the schema by which it is checked;
it has no classes for CycloneDX's `modelCard`, so that figures are properties, whose names begin with `converter:`.
A component's hash is that of a file, byte for byte; the hash of all tensors, or of a table with its includes, is its
version and the property `converter:sha256`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from converter.display import plain
from converter.errors import ModelError
from converter.hub.resolve import SINGLE
from converter.publish.bom_record import BOM, LONGEST, PREFIX, TITLE, WEIGHTS
from converter.publish.facts import Facts
from converter.publish.figures import figures, libraries
from converter.publish.markdown import code, section, table, text
from converter.writing.ledger import custom_tables, to_json

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

# files that CycloneDX has a word for
_REFERENCES = {"README.md": "model-card", "parity.json": "evidence", "evaluation.json": "quality-metrics"}
_KINDS = {"converter": "application", "python": "platform"}  # of tools; others are libraries
_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Bill:
    """A bill of materials. `listed`: for a card, kinds of parts and what is listed of each, as Markdown."""

    content: bytes
    listed: tuple[tuple[str, str], ...]


def bill_of_materials(facts: Facts, files: Mapping[str, str]) -> Bill:
    """That of a folder. `files`: the SHA-256 of each file, by name, but for the card and the bill itself.

    Raises ModelError where it would not be valid: what a family says of itself cannot be written so.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.tool import ToolRepository

    model = _model(facts, files)
    parts = {
        "source checkpoint": [_source(facts, "source")],
        "mapping table": list(_tables(facts.ledger)),
        "base model": list(_base_model(facts, "base-model")),
        "data sets": list(_data_sets(facts)),
        "files": [
            _component("file", f"file:{plain(name, LONGEST)}", name, file=sha256) for name, sha256 in files.items()
        ],
    }
    tools = [
        _component(_KINDS.get(name, "library"), f"tool:{name}@{version}", name, version=version,
                   description=f"took part where this was {', '.join(done)}")
        for (name, version), done in libraries(facts).items()
    ]  # fmt: skip
    everything = [part for those in parts.values() for part in those]
    bom = Bom(components=everything, metadata=BomMetaData(component=model, tools=ToolRepository(components=tools)))
    bom.register_dependency(model, everything)
    shown = {kind: ", ".join(map(_shown, those)) for kind, those in (parts | {"tools": tools}).items()}
    shown["files"] = f"{len(files)}, each with its SHA-256"
    return Bill(_written(bom), tuple((kind, names) for kind, names in shown.items() if names))


def bill_section(bill: Bill) -> str:
    """The section of a card, which names the file by its SHA-256."""
    lines = [
        f"{code(BOM)} (SHA-256 {code(hashlib.sha256(bill.content).hexdigest())}) lists what this model is made of, as "
        "a CycloneDX 1.6 bill of materials that tools read, with the figures of this card as properties of the model:",
        "",
        *table(["part", "which"], bill.listed),
    ]
    return section(TITLE, "\n".join(lines))


def _written(bom: Bom) -> bytes:
    """The file: without the time of day, numbered by its content, valid by the library's strict schema."""
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]  # the library's: now, and a random one
    # another content is another document, which references by serial number are not to mix up
    document["serialNumber"] = uuid5(NAMESPACE_URL, to_json(document).decode()).urn
    content = to_json(document)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode()):
        raise ModelError(
            f"{BOM}: would not be valid CycloneDX 1.6: {plain(str(error), 400)}. Correct what the model's family says "
            "of itself."
        )
    return content


def _component(
    kind: str,
    ref: str,
    name: str,
    *,
    version: str | None = None,
    file: str | None = None,
    description: str | None = None,
    properties: Mapping[str, str] | None = None,
    **more: Any,
) -> Component:
    """`ref`: its name within the bill; `file`: the SHA-256 of the file that it is; texts are made printable."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType(kind),
        bom_ref=ref,
        name=plain(name, LONGEST),
        version=None if version is None else plain(version, LONGEST),
        hashes=[] if file is None else [HashType(alg=HashAlgorithm.SHA_256, content=file)],
        description=description,
        properties=[Property(name=key, value=value) for key, value in (properties or {}).items()],
        **more,
    )


def _model(facts: Facts, files: Mapping[str, str]) -> Component:
    from cyclonedx.model.component import Pedigree

    family = facts.about.get("card", {}).get("family", facts.config["model"])
    references = {name: kind for name, kind in _REFERENCES.items() if name in files or kind == "model-card"}
    where = {f"{_HUB}/{facts.repo_id}": "distribution"} if facts.repo_id else {}
    sha256 = str(facts.ledger["sha256"])
    return _component(
        "machine-learning-model",
        "model",
        str(facts.released.get("title", f"{family} ({plain(str(facts.config['variant']))})")),
        version=sha256,
        file=files.get(SINGLE),  # shards have one each, as components
        description="Its version is the SHA-256 of all its tensors."
        + ("" if facts.evidence else " UNVERIFIED: nothing shows that it computes what the official code computes."),
        properties={WEIGHTS: sha256, **figures(facts)},
        licenses=_licenses(facts),
        purl=_purl(facts.repo_id),
        external_references=_references(references | where),
        pedigree=Pedigree(
            ancestors=[_source(facts, "ancestor:source"), *_base_model(facts, "ancestor:base-model")],
        ),
    )


def _source(facts: Facts, ref: str) -> Component:
    """The checkpoint that was converted; hashes of its files are known of what came from the Hub."""
    source, origin = facts.ledger["source"], facts.ledger["source"].get("origin")
    origin = origin if isinstance(origin, dict) else {}
    files = origin.get("files")
    hashes = {str(name): str(each) for name, each in files.items()} if isinstance(files, dict) else {}
    named = {} if "reference" not in origin else {f"{PREFIX}reference": plain(str(origin["reference"]), LONGEST)}
    stated = facts.released.get("checkpoint")
    sha256 = str(source.get("sha256"))
    return _component(
        "machine-learning-model",
        ref,
        str(stated or origin.get("reference") or "a checkpoint"),
        version=sha256,
        description="What was converted"
        + (", named as was stated when this was packaged" if stated else "")
        + ". Its version is the SHA-256 of all tensors that were read.",
        properties={WEIGHTS: plain(sha256), **named, f"{PREFIX}layout": plain(str(source.get("layout")))},
        licenses=_licenses(facts),
        components=[
            _component("file", f"{ref}:{number}", name, file=each)
            for number, (name, each) in enumerate(hashes.items())
            if re.fullmatch("[0-9a-f]{64}", each)
        ],
    )


def _tables(ledger: Mapping[str, Any]) -> Iterator[Component]:
    """Of the conversion, and of those before it that made what was converted."""
    earlier = ledger.get("earlier")
    entries = [ledger["table"], ledger.get("through"), *(earlier if isinstance(earlier, list) else ())]
    custom = {(each.name, each.sha256) for each in custom_tables(ledger)}
    known = dict.fromkeys((str(e.get("name")), str(e.get("sha256"))) for e in entries if isinstance(e, dict))
    for number, (name, sha256) in enumerate(known):
        yield _component(
            "data",
            f"table:{number}",
            name,
            version=sha256,
            description=("A custom table, which no release has." if (name, sha256) in custom else "A mapping table.")
            + " Its version is its SHA-256, as `converter tables --json` prints it.",
            properties={WEIGHTS: plain(sha256)},
        )


def _base_model(facts: Facts, ref: str) -> Iterator[Component]:
    if facts.released and (base := facts.about.get("base_model")):
        yield _component(
            "machine-learning-model", ref, base["id"], purl=_purl(base["id"]), licenses=_licenses(facts),
            external_references=_references({f"{_HUB}/{base['id']}": "website"}),
        )  # fmt: skip


def _data_sets(facts: Facts) -> Iterator[Component]:
    """What the authors say that they trained on."""
    source = facts.about["sources"][facts.released["source"]] if facts.released else ""
    for key in facts.released.get("data", ()):
        entry = facts.about["data"][key]
        place = {f"{_HUB}/datasets/{entry['hub']}": "website"} if "hub" in entry else {}
        yield _component(
            "data", f"data:{key}", entry["name"], external_references=_references(place),
            description=f"Training data, as the authors say: {source}",
        )  # fmt: skip


def _licenses(facts: Facts) -> list[Any]:
    """That of the released model, declared by its authors; none of a model that was not named."""
    if not facts.released:
        return []
    from cyclonedx.model.license import DisjunctiveLicense, LicenseAcknowledgement
    from cyclonedx.spdx import fixup_id

    stated = facts.about["license"]["id"]
    known = fixup_id(stated)
    return [
        DisjunctiveLicense(
            id=known, name=None if known else stated, acknowledgement=LicenseAcknowledgement.DECLARED
        )
    ]  # fmt: skip


def _purl(repo_id: str | None) -> Any:
    if repo_id is None:
        return None
    from packageurl import PackageURL

    owner, _, name = repo_id.rpartition("/")
    return PackageURL("huggingface", owner or None, name)


def _references(kinds: Mapping[str, str]) -> list[Any]:
    """By the address, or the file of this folder."""
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri

    return [ExternalReference(type=ExternalReferenceType(kind), url=XsUri(url)) for url, kind in kinds.items()]


def _shown(part: Component) -> str:
    name = text(part.name) if " " in part.name else code(part.name)
    return name + (f" {code(part.version)}" if part.version else "")
