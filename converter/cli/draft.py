"""`converter draft`: a mapping table proposed for a checkpoint that nobody has described."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import cut, done_with, print_json, progress, reports
from converter.cli.places import FORMAT, Place, destination, places, source
from converter.cli.settle import doubt_lines, next_step
from converter.display import counted, file_name, plain
from converter.errors import DestinationError, TableError

if TYPE_CHECKING:
    from converter.mapping.draft import Draft, Named, Target

_EPILOG = """\b
Examples:
  converter draft --src model.pth --target glip --out tables/
  converter draft --src timm-vit.safetensors --target hf-vit.safetensors --out tables/
  converter draft --src new.pth --target hf://org/name --out tables/ --json
\b
It writes NAME.json, the table, and also a spec if --target is a checkpoint that
no spec there describes. A rule that is not sure has a 'doubt', which says why
and what else is possible: convert refuses a table that has one. Look, and settle
each by 'converter settle'. docs/new-model.md shows it from end to end.
Matching needs scipy: pip install 'converter[draft]'."""
_SHOWN = 20


@click.command(epilog=_EPILOG)
@places(
    source("Checkpoint to describe: a path, or hf://...", name="source_text"),
    Place(
        "target",
        "TARGET",
        ("--target",),
        "What it is to become: a format of 'converter tables', the path of a spec, or a checkpoint of it, also hf://...",
        FORMAT,
    ),
    destination("Folder to write to.", name="folder", type=click.Path(path_type=Path, file_okay=False)),
)
@click.option("--name", help="Name of the table. Default: that of the file.")
@click.option("--root", help="State dict of --src to take where the file holds several.")
@click.option("--target-root", help="The same for --target.")
@click.option("--force", is_flag=True, help="Replace tables that are there.")
@reports
def draft(
    source_text: str,
    target: str,
    folder: Path,
    name: str | None,
    root: str | None,
    target_root: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Propose a mapping table from --src to --target, by names and shapes.

    What is sure becomes rules, what is not becomes rules with a doubt for a person to settle. Weights are read only to
    see which of --src have the same numbers.
    """
    from converter.mapping.draft import propose

    if name is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise click.BadParameter("a name is of a-z, 0-9 and '-', and begins with a letter", param_hint="--name")
    source, called = _located(source_text, quiet=as_json)
    sources, aside, lies_in = _tensors(source, root, equal=True)
    wanted = _target(target, target_root, sources, folder, quiet=as_json)
    table = name or called
    if table == wanted.name:
        table += "-draft"
    spec = folder / f"{wanted.name}.json" if wanted.spec else None
    path = folder / f"{table}.json"
    _check(folder, [file for file in (spec, path) if file], force)
    is_there = spec is not None and _is_equal(spec, wanted, force)
    with progress(3, "matching", unit=" rounds") as advance:
        result = propose(table, sources, wanted, advance, lies_in)
    documents = {} if spec is None or is_there else {spec: result.spec or {}}
    _write({**documents, path: result.table}, spec, force)
    if as_json:
        print_json(_as_json(result, path, spec))
        return
    _print(result, path, len(sources), aside)
    if spec is not None:
        click.echo(f"spec of the target: {spec}, {'there already' if is_there else 'written'}")
    click.echo(f"written: {path}")
    click.echo(f"next: {next_step(path, result.doubts)}")


def _located(text: str, *, quiet: bool) -> tuple[Path, str]:
    """A checkpoint or spec as a local path, and what a table or spec of it is called."""
    from converter.cli.sources import locate
    from converter.hub.reference import is_on_hub, parse_reference

    path = locate(text, quiet=quiet).path
    reference = parse_reference(text) if is_on_hub(text) else None
    # a commit is no name, and files of the Hub are called alike
    return path, _identifier(Path(reference.repo_id.split("/")[1])) if reference else _identifier(path)


def _target(text: str, root: str | None, sources: list[Named], folder: Path, *, quiet: bool) -> Target:
    """A format by name, a spec at a path, or a checkpoint: then by the spec that describes it, or by a new one."""
    from converter.hub.reference import is_on_hub
    from converter.mapping.documents import unknown
    from converter.mapping.draft import known_target, new_target, specs_of
    from converter.planning.formats import format_names

    if text in format_names():
        known = known_target(text, sources)
        if text != known.name:
            click.echo(
                f"{text} is a format of {known.name}: the table is to {known.name}, and convert --to {text} goes on",
                err=True,
            )
        return known
    if not is_on_hub(text) and not (os.path.lexists(text) or os.sep in text or Path(text).suffix):
        raise unknown("format", text, format_names())
    path, name = _located(text, quiet=quiet)
    if path.name.endswith(".json") and not path.name.endswith(".index.json"):
        return known_target(str(path), sources)
    tensors = _tensors(path, root)[0]
    name += "-spec" if name in format_names() else ""
    if described := specs_of(tensors, folder):
        own = str(folder / f"{name}.json")
        return known_target(own if own in described else described[0], sources)
    return new_target(name, tensors)


def _tensors(path: Path, root: str | None, *, equal: bool = False) -> tuple[list[Named], list[str], str]:
    """The tensors of a checkpoint, sentences on what else is in it, and the key of its state dict.

    `equal`: those of equal numbers are marked.
    """
    from converter.mapping.cast import is_float
    from converter.mapping.draft import Named
    from converter.planning.equal import same_numbers
    from converter.planning.formats import open_known

    with open_known(path, root, merge=False) as checkpoint:
        groups = same_numbers(checkpoint) if equal else []
        marks = {name: names[0] for names in groups for name in names}
        found = [
            Named(t.name, tuple(t.shape), "" if is_float(t.dtype) else t.dtype.name, marks.get(t.name, ""))
            for t in checkpoint.tensors.values()
        ]
        lies_in = checkpoint.root if checkpoint.root in checkpoint.roots and "." not in checkpoint.root else ""
        return found, [*checkpoint.unsupported.values(), *checkpoint.objects.values()], lies_in


def _identifier(path: Path) -> str:
    """A name for a table or spec from a file's: lower case, digits and dashes."""
    stem = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    text = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:60].rstrip("-")
    return text if text[:1].isalpha() else f"model-{text}".rstrip("-")


def _check(folder: Path, files: list[Path], force: bool) -> None:
    """Refuse before the work what could not be written after it."""
    from converter.writing.names import check_folder_name

    check_folder_name(folder, "tables are written to")
    if folder.exists() and not folder.is_dir():
        raise DestinationError(f"{folder} is not a folder; choose another --out")
    if not folder.exists() and not folder.parent.is_dir():
        raise DestinationError(f"{folder.parent} is not a folder; create it first or choose another --out")
    for path in files:
        if path.is_dir() or path.is_symlink():
            raise DestinationError(f"{path} is not a plain file; choose another --out or --name")
    path = files[-1]  # a spec alone may be that of a run which was killed before it wrote the table
    if path.exists() and not force:
        raise DestinationError(f"{path} exists; --force replaces it, --name chooses another name")


def _is_equal(spec: Path, wanted: Target, force: bool) -> bool:
    """Whether the spec is there already, however it is laid out. DestinationError if another one is there."""
    from converter.mapping.documents import find_document

    if not spec.exists():
        return False
    try:
        if find_document(spec, "spec").content == wanted.spec:
            return True
        found = "a spec of another target"
    except TableError:
        found = "not a spec"
    if force:
        return False
    raise DestinationError(
        f"{spec} is {found}, and the spec of this target would have the same name; choose another --out, or --force "
        "replaces it for all tables there"
    )


def _write(documents: Mapping[Path, Mapping[str, Any]], spec: Path | None, force: bool) -> None:
    """Write the documents once all of them were found to load, the table last; each is replaced in one step."""
    from converter.mapping.documents import to_text
    from converter.mapping.load import load_table
    from converter.writing.destination import writing
    from converter.writing.staging import write_whole

    texts = {path: to_text(document) for path, document in documents.items()}
    if max(map(len, texts.values())) > 4 << 20:
        raise TableError(
            f"the draft has {max(map(len, texts.values())) >> 20} MiB, more than a table may have: too few of the "
            "names follow patterns. Draft a part of the checkpoint"
        )
    *_, table = texts
    with tempfile.TemporaryDirectory() as trial:
        if spec is not None and spec not in texts:
            shutil.copyfile(spec, Path(trial) / spec.name)
        for path, text in texts.items():
            (Path(trial) / path.name).write_text(text)
        load_table(Path(trial) / table.name)
    with writing(table.parent):
        table.parent.mkdir(exist_ok=True)
    for path, text in texts.items():
        on_done = done_with(file_name(table)) if path == table else lambda: None
        write_whole(path, text.encode(), force=force, on_done=on_done)


def _as_json(result: Draft, path: Path, spec: Path | None) -> dict[str, Any]:
    from converter.mapping.draft import squares_as_stored

    def tensors(items: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": t.shape, "dtype": t.kind or "float"} for t in items]

    return {
        "table": str(path),
        "spec": None if spec is None else str(spec),
        "target": result.table["target"],
        "variant": result.variant,
        "rules": len(result.table["rules"]),
        "sure": len(result.table["rules"]) - len(result.doubtful),
        "doubts": len(result.doubts),
        "doubtful": [{"rule": pointer, **entry} for pointer, entry in result.doubts.items()],
        "unmatched_source": tensors(result.matching.left_sources),
        "unmatched_target": tensors(result.matching.left_targets),
        "copies": dict(result.copies),
        "squares_as_stored": squares_as_stored(result.matching),
    }


def _print(result: Draft, path: Path, sources: int, aside: list[str]) -> None:
    from converter.mapping.draft import squares_as_stored

    rules = len(result.table["rules"])
    left, missing = result.matching.left_sources, result.matching.left_targets
    alone = [tensor for tensor in left if tensor.name not in result.copies]
    target = f"{result.table['target']}, {result.variant}"
    click.echo(f"{path.stem}: {sources - len(left)} of {sources} tensors matched to {target}")
    click.echo(f"{counted(rules, 'rule')}, {rules - len(result.doubtful)} sure; {counted(len(result.doubts), 'doubt')}")
    for line in doubt_lines(result.doubts):
        click.echo(line)
    if squares := squares_as_stored(result.matching):
        count = counted(len(squares), "matrix", "matrices")
        click.echo(f"square, and taken as not transposed, like others of their kind: {count}")
    if result.copies:
        click.echo(f"{counted(len(result.copies), 'tensor')} with the numbers of another, as its copies in 'ignore'")
    for items, what in (
        (alone, "of the source without a counterpart, in 'ignore'"),
        (
            missing,
            "of the target made by no rule, in 'absent'",
        ),
    ):
        if items:
            click.echo(f"{counted(len(items), 'tensor')} {what}:")
            for line in cut([f"  {plain(t.name)} {t.shape}{' ' + t.kind if t.kind else ''}" for t in items], _SHOWN):
                click.echo(line)
    for sentence in aside:
        click.echo(f"not read: {sentence}")
