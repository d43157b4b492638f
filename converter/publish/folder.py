"""What may be published: a folder as `package` makes it, in which everything is of the same weights."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import open_checkpoint
from converter.checkpoint.hashes import stamps
from converter.display import file_name, listed, plain
from converter.errors import HubError
from converter.evaluation.record import NAME as EVALUATION
from converter.evaluation.record import evaluations_beside
from converter.hub.hashes import Hashes, hash_bytes, hash_file
from converter.hub.requests import holds_token
from converter.hub.resolve import MODEL_FILES, SIGNATURE
from converter.parity.evidence import Evidence, check_tables, read_evidence
from converter.parity.exports import files_of, held
from converter.parity.family import Family
from converter.parity.setup import read_setup
from converter.publish.bom_record import BOM, StatedBill, bill_beside, bill_problem, check_bill
from converter.publish.bundle import bundle_beside, is_inside
from converter.publish.card import UNVERIFIED, mark_unverified
from converter.publish.checks import (
    check_architecture,
    check_evaluations,
    check_setup,
    check_weights,
    read_records,
)
from converter.publish.evaluated import card_problem, eval_results
from converter.publish.package import CARD, CERTIFICATE, REPORT
from converter.writing.ledger import CustomTable

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

REQUIRED = ("config.json", "conversion.json", CARD)
# may be uploaded; never deleted from the repository: other tools' files, of models of this one, too
KEPT = (CARD, "LICENSE", "NOTICE", "preprocessor_config.json", "processor_config.json")
# likewise, and of any name: nothing tells ours from a stranger's, so one of ours that was renamed stays there, too
GRAPHS = ("*.onnx", "*.onnx.data")
# what this package writes; a commit deletes those that the folder does not have
WRITTEN = (*(name for name in MODEL_FILES if name not in KEPT), REPORT)
GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own, which every snapshot of it has
_SMALL = 10 << 20  # bytes up to which a file other than weights is sent with the commit, from memory


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to publish, and what it held when it was checked; `content` is kept of small ones."""

    name: str
    path: Path
    hashes: Hashes
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a card has to state: the hash of all tensors, tables that were never released, figures of evaluations; and
    what the bill of materials states."""

    sha256: str
    custom: Sequence[CustomTable]
    results: Sequence[EvalResult]
    bill: StatedBill | None


def read_folder(
    folder: Path,
    family_of: Callable[[str], Family[Any]],
    *,
    unverified: bool = False,
    accepted_tables: Collection[str] = (),
    on_bytes: Callable[[int], object] = lambda count: None,
) -> list[LocalFile]:
    """Every file of a folder that may be published, hashed. Raises HubError listing what may not, or what is missing.

    The weights' tensors are hashed, too, and held against `conversion.json`, the certificate and the evaluations, as is
    all else that decides results; `family_of` gives the family of a model by its name. If `unverified` there is no
    certificate, and the card, as it is published, says so. Raises ModelError or CaptureError where the parts do not
    belong together, and for a table that was never released and is not among those accepted.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.name != GIT_ATTRIBUTES)
    except OSError as error:
        raise HubError(
            f"{file_name(folder)}: is not a folder that can be read ({error.strerror}). `converter package` makes "
            "one of what `convert` wrote."
        ) from None
    with _reading(folder):
        _check_names(folder, paths, unverified)
    before = stamps(paths)
    stated = _check_contents(folder, family_of, unverified, accepted_tables, on_bytes)
    files = [_read_file(path, on_bytes) for path in paths]
    after = stamps(paths)
    if changed := sorted(path.name for path, stamp in after.items() if stamp != before[path]):
        raise HubError(
            f"{file_name(folder)}: {', '.join(map(plain, changed))} changed while it was read. Wait until it is "
            "written, and publish again."
        )
    if told := [file.name for file in files if holds_token(file.content or b"")]:
        raise HubError(
            f"{file_name(folder)}: {', '.join(map(plain, told))} holds the token that is in use. Take it out, and make "
            "another token: this one is not secret any more."
        )
    hashes = {file.name: file.hashes.sha256 for file in files}
    return [_card(folder, file, stated, unverified, hashes) if file.name == CARD else file for file in files]


def check_signed(folder: Path, files: Sequence[LocalFile]) -> None:
    """HubError unless the bundle of a signature in the folder, if there is one, names these files as they are.

    Whether the signature holds needs what it is held against: `converter verify` has it. CaptureError for a file that
    is no bundle.
    """
    if (bundle := bundle_beside(folder)) is None:
        return
    hashes = {file.name: file.hashes.sha256 for file in files if file.name != SIGNATURE}
    if differing := bundle.differences(hashes):
        raise HubError(
            f"{file_name(folder)}: {SIGNATURE} is not the signature of what would be published. Sign it again, or "
            f"remove {SIGNATURE}",
            differing,
        )


def _check_names(folder: Path, paths: Iterable[Path], unverified: bool) -> None:
    foreign = [path.name for path in paths if not path.is_file() or not _is_allowed(path.name)]
    if foreign:
        raise HubError(
            f"{file_name(folder)}: holds what is not published: {listed(map(plain, foreign), 10)}. "
            f"Move it elsewhere; expected only {', '.join((*KEPT, *WRITTEN, *GRAPHS))}."
        )
    if links := [path.name for path in paths if path.is_symlink() and not is_inside(path.resolve(), folder.resolve())]:
        raise HubError(
            f"{file_name(folder)}: {', '.join(map(plain, links))}: linked to files elsewhere. Copy here what is "
            "to be published."
        )
    names = {path.name for path in paths}
    if missing := [name for name in REQUIRED if name not in names]:
        raise HubError(
            f"{file_name(folder)}: has no {', '.join(missing)}. `converter package CONVERSION OUT` makes a folder with "
            "all that belongs to a model; publish that."
        )
    if unverified and CERTIFICATE in names:
        raise HubError(
            f"{file_name(folder)}: has {CERTIFICATE}, which says that it is verified. Leave out --unverified, or move "
            "the certificate elsewhere."
        )
    if not unverified and CERTIFICATE not in names:
        raise HubError(
            f"{file_name(folder)}: has no {CERTIFICATE}, so nothing shows that these weights compute what the official "
            f"code does. Write it: converter certify {shlex.quote(str(folder))} --reference CAPTURE; then run "
            "`converter package` again, whose card states its numbers."
        )


def _check_contents(
    folder: Path,
    family_of: Callable[[str], Family[Any]],
    unverified: bool,
    accepted_tables: Collection[str],
    on_bytes: Callable[[int], object],
) -> _Stated:
    """Hold weights, configuration, ledger, certificate and evaluations against one another."""
    with open_checkpoint(folder) as checkpoint:
        used = {path.name for path in checkpoint.files}
        unused = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in used)
        if unused:
            raise HubError(
                f"{file_name(folder)}: {', '.join(map(plain, unused))} is not of this model, whose weights are in "
                f"{', '.join(map(plain, sorted(used)))}. Move it elsewhere."
            )
        config, ledger = read_records(folder, checkpoint)
        check_architecture(folder, checkpoint, config)
        evidence = None
        if not unverified:
            from converter.parity.certificate import open_fingerprint

            evidence = read_evidence(folder / CERTIFICATE)
            with open_fingerprint(evidence):
                pass  # a stranger will compare with it
            check_setup(folder, read_setup(folder, checkpoint, family_of(config["model"])), evidence.setup)
        _check_exported(folder, evidence)
        custom = check_tables(folder, ledger, evidence, accepted_tables)
        evaluations = evaluations_beside(folder)
        check_evaluations(folder, evaluations, ledger, evidence)
        check_weights(folder, checkpoint, ledger, evidence, on_bytes)
        about = family_of(config["model"]).about() if evaluations else {}
        results = eval_results(about, evaluations) if evaluations else ()
        return _Stated(str(ledger["sha256"]), custom, results, bill_beside(folder))


def _check_exported(folder: Path, evidence: Evidence | None) -> None:
    """HubError for a graph that the certificate does not name, or that is not as it was certified."""
    exports = evidence.exports if evidence else ()
    known = files_of(exports)
    there = sorted(path.name for path in folder.iterdir() if path.name.endswith((".onnx", ".onnx.data")))
    problems = held(exports, folder)[0] + [f"{plain(name)}: not certified" for name in there if name not in known]
    if problems:
        raise HubError(
            f"{file_name(folder)}: holds graphs that no comparison is of. Certify with --export, and package again",
            problems,
        )


def _card(folder: Path, file: LocalFile, stated: _Stated, unverified: bool, hashes: Mapping[str, str]) -> LocalFile:
    """The card as it is published: of the certified weights, or marked as UNVERIFIED; naming each table that was never
    released, and the evaluations by the SHA-256 of their file, with no other figures in its metadata. Last, the bill of
    materials, which must be of this folder, and named too. `hashes`: the SHA-256 of each file."""
    again = f"Make it again: converter package {shlex.quote(str(folder))} OUT"
    try:
        text = (file.content or b"").decode()
    except UnicodeDecodeError:
        raise HubError(f"{file_name(file.path)}: is not UTF-8 text. {again}") from None
    if unnamed := [table for table in stated.custom if table.sha256 not in text]:
        raise HubError(f"{file_name(file.path)}: does not name {unnamed[0]}. {again}")
    if problem := card_problem(text, hashes.get(EVALUATION), stated.results):
        raise HubError(f"{file_name(file.path)}: {problem}. {again}")
    if not unverified and UNVERIFIED in text:
        raise HubError(f"{file_name(file.path)}: says UNVERIFIED, but there is {CERTIFICATE}. {again}")
    if not unverified and stated.sha256 not in text:
        raise HubError(
            f"{file_name(file.path)}: is not of these weights, whose hash {stated.sha256} is not in it. {again}"
        )
    if stated.bill is not None:
        check_bill(stated.bill, stated.sha256, hashes)
    if problem := bill_problem(text, hashes.get(BOM)):
        raise HubError(f"{file_name(file.path)}: {problem}. {again}")
    if not unverified:
        return file
    content = mark_unverified(text).encode()
    return replace(file, hashes=hash_bytes(content), content=content)


def _read_file(path: Path, on_bytes: Callable[[int], object]) -> LocalFile:
    with _reading(path):
        if path.name != CARD and (path.suffix == ".safetensors" or path.stat().st_size > _SMALL):
            return LocalFile(path.name, path, hash_file(path, on_bytes))
        content = path.read_bytes()
    on_bytes(len(content))
    return LocalFile(path.name, path, hash_bytes(content), content)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HubError(f"{file_name(path)}: cannot be read: {error.strerror}. Check the path.") from None


def _is_allowed(name: str) -> bool:
    return is_written(name) or name in KEPT or any(fnmatchcase(name, pattern) for pattern in GRAPHS)


def is_written(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in WRITTEN)


def weights_size(folder: Path) -> int:
    """Bytes that `publish` hashes: weights twice, as tensors and as files, others once. 0 of what it will refuse."""
    with suppress(OSError):
        files = [path for path in folder.iterdir() if path.is_file()]
        return sum(path.stat().st_size * (1 + (path.suffix == ".safetensors")) for path in files)
    return 0
