"""Files as a whole: hashes and stamps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint.hashes import file_sha256, stamps
from converter.errors import CheckpointError


@pytest.mark.parametrize("look", [file_sha256, lambda path: stamps([path])])
def test_a_file_that_is_not_there_any_more(look: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth: cannot be read: No such file or directory\. Check the path"):
        look(tmp_path / "gone.pth")
