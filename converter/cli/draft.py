"""`converter draft`: a mapping table proposed for a checkpoint that nobody has described."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import done_with, print_json, progress, reports
from converter.cli.places import Place, destination, places, source
from converter.display import counted, file_name, plain
from converter.errors import DestinationError, TableError

if TYPE_CHECKING:
    from converter.mapping.draft import Draft, Named, Target

_EPILOG = """\b
Examples:
  converter draft --src model.pth --target glip --out tables/
  converter draft --src timm-vit.safetensors --target hf-vit.safetensors --out tables/
  converter draft --src new.pth --target other.pth --out tables/ --name new-to-other --json
\b
It writes NAME.json, the table, and also a spec if --target is a checkpoint.
A rule that is not sure has a 'doubt', which says why and what else is possible.
Settle each doubt and delete it: convert refuses a table that has one. Then run
'converter lint tables/NAME.json'. docs/new-model.md shows it from end to end.
Matching needs scipy: pip install 'converter[draft]'."""
_SHOWN = 20


@click.command(short_help="Propose a table for an unknown model", epilog=_EPILOG)
@places(
    source("Checkpoint to describe: a path, or hf://...", name="source_text"),
    Place(
        "target",
        "TARGET",
        ("--target",),
        "What it is to become: a spec (glip), or a checkpoint of the target model, for its names and shapes.",
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
    """Propose a mapping table from --src to --target, by names and shapes alone.

    What is sure becomes rules, what is not becomes rules with a doubt for a person to settle. No weight is read.
    """
    from converter.cli.sources import locate
    from converter.mapping.documents import names_of
    from converter.mapping.draft import known_target, new_target, propose

    if name is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise click.BadParameter("a name is of a-z, 0-9 and '-', and begins with a letter", param_hint="--name")
    source = locate(source_text, quiet=as_json).path
    sources, aside = _tensors(source, root)
    wanted: Target
    if _is_checkpoint(target):
        spec = _identifier(Path(target))
        spec += "-spec" if spec in names_of("spec") else ""
        wanted = new_target(spec, _tensors(Path(target), target_root)[0])
    else:
        wanted = known_target(target, sources)
    table = name or _identifier(source)
    if table == wanted.name:
        table += "-draft"
    files = [folder / f"{part}.json" for part in ([wanted.name] if wanted.spec else []) + [table]]
    _check(folder, files, force)
    with progress(3, "matching", unit=" rounds") as advance:
        result = propose(table, sources, wanted, advance)
    _write(files, [document for document in (result.spec, result.table) if document], force)
    if as_json:
        print_json(_as_json(result, files))
        return
    _print(result, files, len(sources), aside)


def _tensors(path: Path, root: str | None) -> tuple[list[Named], list[str]]:
    """The tensors of a checkpoint, and sentences on what else is in it."""
    from converter.mapping.cast import is_float
    from converter.mapping.draft import Named
    from converter.planning.formats import open_known

    with open_known(path, root, merge=False) as checkpoint:
        found = [
            Named(t.name, tuple(t.shape), "" if is_float(t.dtype) else t.dtype.name)
            for t in checkpoint.tensors.values()
        ]
        return found, [*checkpoint.unsupported.values(), *checkpoint.objects.values()]


def _is_checkpoint(target: str) -> bool:
    if target.endswith(".json") and not target.endswith(".index.json"):
        return False
    return os.path.exists(target) or os.sep in target or bool(Path(target).suffix)


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
    _check_new(files[-1], force)  # a spec alone may be that of a run which was killed before it wrote the table


def _check_new(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise DestinationError(f"{path} exists; --force replaces it, --name chooses another name")


def _write(files: list[Path], documents: list[Mapping[str, Any]], force: bool) -> None:
    """Write the documents once all of them were found to load, the table last; each is replaced in one step."""
    from converter.mapping.draft.propose import to_text
    from converter.mapping.load import load_table
    from converter.writing.destination import writing
    from converter.writing.staging import write_whole

    texts = [to_text(document) for document in documents]
    if max(map(len, texts)) > 4 << 20:
        raise TableError(
            f"the draft has {max(map(len, texts)) >> 20} MiB, more than a table may have: too few of the names follow "
            "patterns. Draft a part of the checkpoint"
        )
    with tempfile.TemporaryDirectory() as trial:
        for path, text in zip(files, texts, strict=True):
            (Path(trial) / path.name).write_text(text)
        load_table(Path(trial) / files[-1].name)
    folder = files[0].parent
    with writing(folder):
        folder.mkdir(exist_ok=True)
        specs = [path for path in files[:-1] if not path.exists() or path.read_bytes() != texts[0].encode()]
    for path in specs:
        _check_new(path, force)
        write_whole(path, texts[0].encode(), force=force)
    write_whole(files[-1], texts[-1].encode(), force=force, on_done=done_with(file_name(files[-1])))


def _as_json(result: Draft, files: list[Path]) -> dict[str, Any]:
    def tensors(items: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": t.shape, "dtype": t.kind or "float"} for t in items]

    rules = result.table["rules"]
    return {
        "table": str(files[-1]),
        "spec": str(files[0]) if len(files) > 1 else None,
        "target": result.table["target"],
        "variant": result.variant,
        "rules": len(rules),
        "sure": len(rules) - len(result.doubtful),
        "doubtful": [{"rule": f"/rules/{i}", **rule} for i, rule in enumerate(rules) if "doubt" in rule],
        "unmatched_source": tensors(result.matching.left_sources),
        "unmatched_target": tensors(result.matching.left_targets),
    }


def _print(result: Draft, files: list[Path], sources: int, aside: list[str]) -> None:
    rules = result.table["rules"]
    left, missing = result.matching.left_sources, result.matching.left_targets
    matched = sources - len(left)
    click.echo(
        f"{files[-1].stem}: {matched} of {sources} tensors matched to {result.table['target']}, {result.variant}"
    )
    click.echo(
        f"{counted(len(rules), 'rule')}: {len(rules) - len(result.doubtful)} sure, {len(result.doubtful)} doubtful"
    )
    for position, rule in enumerate(rules):
        if "doubt" in rule:
            sides = (
                rule[side] if isinstance(rule[side], str) else " + ".join(rule[side]) for side in ("source", "target")
            )
            click.echo(f"  /rules/{position}  {' -> '.join(sides)}")
            click.echo(f"      {rule['doubt']}")
    for items, what in (
        (left, "of the source without a counterpart, in 'ignore'"),
        (missing, "of the target made by no rule"),
    ):
        if items:
            click.echo(f"{counted(len(items), 'tensor')} {what}:")
            for tensor in items[:_SHOWN]:
                click.echo(f"  {plain(tensor.name)} {tensor.shape}{' ' + tensor.kind if tensor.kind else ''}")
            if len(items) > _SHOWN:
                click.echo(f"  ... and {len(items) - _SHOWN} more; --json lists all")
    for sentence in aside:
        click.echo(f"left aside: {sentence}")
    for path in files:
        click.echo(f"written: {path}")
    entries = [entry for entry in (*rules, *result.table.get("ignore", ())) if "doubt" in entry]
    if entries:
        click.echo(f"next: settle {counted(len(entries), 'doubt')}, then converter lint {files[-1]}")
    else:
        click.echo(f"next: converter lint {files[-1]}")
