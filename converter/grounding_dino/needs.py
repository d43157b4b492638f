"""What has to be installed for a model of transformers to run."""

from __future__ import annotations

from converter.errors import ModelError, require

OLDEST = 5  # of transformers: 4.57 loads the same files, but is not what this is tested with


def needed(what: str) -> None:
    """MissingPackageError unless `what` can import torch and transformers; ModelError if transformers is too old."""
    from importlib.metadata import version

    require(what, "transformers", ("torch", "transformers"))
    if int(version("transformers").split(".")[0]) < OLDEST:
        raise ModelError(
            f"{what}: found transformers {version('transformers')}, expected {OLDEST} or later: "
            "pip install --upgrade transformers"
        )
