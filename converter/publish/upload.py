"""Large files sent to the Hub, where nobody sees them until a commit names them, and read once more after that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from converter.display import file_name
from converter.errors import HubError
from converter.hub.hashes import hash_file
from converter.publish.folder import LocalFile
from converter.publish.repository import Repository

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


def upload(files: Sequence[LocalFile], repository: Repository) -> list[CommitOperationAdd]:
    """Send the large files; what the commit is to add. HubError if one is not what it was when it was hashed."""
    additions = [_addition(file, repository) for file in files]
    # Ctrl-C ends an upload of this thread at once; for several, which the client makes in others, it would wait
    alone = [[addition] for file, addition in zip(files, additions, strict=True) if file.content is None]
    others = [addition for file, addition in zip(files, additions, strict=True) if file.content is not None]
    try:
        for group in filter(None, (*alone, others)):
            # by content: what was received whole is not sent again, by another attempt or another run
            repository.ask(
                partial(
                    repository.api.preupload_lfs_files,
                    repository.repo_id,
                    group,
                    revision=repository.revision,
                    create_pr=repository.create_pr,
                    free_memory=False,
                ),
                "uploading; nothing was published",
            )
    except HubError:
        _check_unchanged(files, repository)  # some seconds, to say better than the client what happened
        raise
    _check_unchanged(files, repository)  # storage may believe whatever it gets
    return additions


def _addition(file: LocalFile, repository: Repository) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    try:
        # resolved: the client takes a ~ for somebody's home, and a/.. away though a is a link
        addition = CommitOperationAdd(file.name, str(file.path.resolve()) if file.content is None else file.content)
        if addition.upload_info.sha256.hex() == file.hashes.sha256:
            return addition
    except (OSError, ValueError):  # a ValueError is of a path that is no file
        _check_unchanged([file], repository)
    raise _changed(file, repository)


def _check_unchanged(files: Sequence[LocalFile], repository: Repository) -> None:
    for file in files:
        try:
            is_as_read = file.content is not None or hash_file(file.path) == file.hashes
        except HubError as error:
            raise HubError(f"{error} Nothing was published; run: {repository.again}") from None
        if not is_as_read:
            raise _changed(file, repository)


def _changed(file: LocalFile, repository: Repository) -> HubError:
    return HubError(
        f"{file_name(file.path)}: changed while it was uploaded; nothing was published. Wait until it is written, and "
        f"run: {repository.again}"
    )
