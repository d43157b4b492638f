"""Every error that converter raises on purpose, with the exit code the command line gives it.

    ConverterError                 1   base; never raised itself
    ├── CheckpointError            3   the input file cannot be used
    │   ├── NotACheckpointError        it is something else (HTML, LFS pointer, TorchScript, empty, ...)
    │   ├── CorruptCheckpointError     it is damaged, truncated, or lies about its contents
    │   ├── UnsupportedCheckpointError it is sound, but holds what this tool does not read
    │   └── RootError                  the wanted state dict is not in it, or several are
    ├── TableError                 4   a mapping table or a target spec is wrong, or a table in doubt
    ├── PlanError                  5   table and checkpoint do not fit; carries all problems at once
    ├── DestinationError           6   the output cannot be written there
    ├── ModelError                 7   weights or inputs do not fit the in-house model
    ├── CaptureError               8   a capture, certificate or evaluation cannot be used: nothing was compared
    │   └── OtherWeightsError          the capture was made of other weights than those to be compared
    └── HubError                   9   the Hub, or what is to go there: not published, or not downloaded

1 is the exit code of a comparison that found a difference. 2 is click's own code for a wrong command line, 70 that of
a fault in this program, 141 that of output which nobody reads any more. 129, 130 and 143 are SIGHUP, Ctrl-C and
SIGTERM. Once the result is on the disk the code is 0, whatever fails then. A package that is not
installed is 8, the Hub's 9.
A message says what was found, where, what was expected and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


class ConverterError(Exception):
    """Base of all errors raised on purpose; `exit_code` is part of the command line's interface.

    `problems` holds one line for each reason, where there are several.
    """

    exit_code = 1

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in problems)]))
        self.problems = tuple(problems)


class CheckpointError(ConverterError):
    """The input file cannot be used."""

    exit_code = 3


class NotACheckpointError(CheckpointError):
    """The file is not a checkpoint: it is of another known kind, or of none."""


class CorruptCheckpointError(CheckpointError):
    """The file is damaged, truncated or contradicts itself."""


def damaged(where: str, problem: str) -> CorruptCheckpointError:
    """The error for a file that contradicts itself, as no program writes it; `where` begins with its name."""
    return CorruptCheckpointError(f"{where}: {problem}. The file is damaged or crafted; get it again.")


def unreadable(where: str, error: OSError) -> CheckpointError:
    """The error for a file that is there, or was, and that the system does not let be read; `where` is its name."""
    return CheckpointError(f"{where}: cannot be read: {error.strerror}. Check the path.")


class UnsupportedCheckpointError(CheckpointError):
    """The file is sound, but holds something that this tool does not read."""


class RootError(CheckpointError):
    """The wanted state dict is not in the file, or there are several and none can be preferred."""


class TableError(ConverterError):
    """A mapping table or target spec is invalid."""

    exit_code = 4


class PlanError(ConverterError):
    """A table does not fit a checkpoint."""

    exit_code = 5


class DestinationError(ConverterError):
    """The output cannot be written where it was asked for; what was there is untouched."""

    exit_code = 6


class ModelError(ConverterError):
    """Weights, configuration or inputs do not fit the in-house model."""

    exit_code = 7


class CaptureError(ConverterError):
    """A capture, certificate or evaluation is damaged, or belongs to something else; nothing was compared."""

    exit_code = 8


class OtherWeightsError(CaptureError):
    """A capture was made of other weights than those to be compared with it."""


class HubError(ConverterError):
    """A model cannot be published as it is, or the Hub did not do what was asked. Nothing is half published."""

    exit_code = 9


class ConverterWarning(UserWarning):
    """Something that does not change the result, or comes too late to."""


# extra of pyproject.toml -> the modules that it brings, with the names of their packages
EXTRAS = {
    "model": {"torch": "torch"},
    "draft": {"scipy": "scipy"},
    "hub": {"huggingface_hub": "huggingface_hub"},
    "detect": {"torch": "torch", "PIL": "pillow", "tokenizers": "tokenizers", "huggingface_hub": "huggingface_hub"},
    "evaluate": {
        "torch": "torch",
        "PIL": "pillow",
        "tokenizers": "tokenizers",
        "huggingface_hub": "huggingface_hub",
        "faster_coco_eval": "faster-coco-eval",
    },
    "onnx": {
        "torch": "torch",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnx_ir": "onnx_ir",
        "onnxruntime": "onnxruntime",
    },
    "package": {
        "tokenizers": "tokenizers",
        "huggingface_hub": "huggingface_hub",
        "cyclonedx": "cyclonedx-python-lib",
    },
    # model-signing 1.1.1 imports OpenSSL and does not say that it needs it
    "sign": {
        "torch": "torch",
        "huggingface_hub": "huggingface_hub",
        "model_signing": "model-signing",
        "OpenSSL": "pyopenssl",
    },
    "transformers": {
        "torch": "torch",
        "transformers": "transformers",
        "PIL": "pillow",
        "tokenizers": "tokenizers",
        "huggingface_hub": "huggingface_hub",
    },
}


class MissingPackageError(ModuleNotFoundError):
    """What an extra brings is not installed. The message says all that is missing, and how to install it at once.

    `module`: the first that is missing.
    """

    module = ""


def missing_package(what: str, extra: str) -> MissingPackageError:
    """The error of `what`, a command or a class, where something of the extra is missing."""
    absent = {module: package for module, package in EXTRAS[extra].items() if find_spec(module) is None}
    *others, last = absent.values() or EXTRAS[extra].values()
    listed = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
    error = MissingPackageError(f"{what} needs {listed} not installed: {_installing(extra)}")
    error.module = next(iter(absent), "")
    return error


def require(what: str, extra: str, modules: Sequence[str]) -> None:
    """MissingPackageError unless these modules of an extra, which `what` cannot do without, are installed."""
    if any(find_spec(module) is None for module in modules):
        raise missing_package(what, extra)


def _installing(extra: str) -> str:
    """The command that installs an extra: for an installed converter, a checkout, or a copy of the code alone."""
    from importlib.metadata import PackageNotFoundError, version

    from converter import __version__

    try:
        if version("converter") == __version__:  # pip takes the one that is there; another's of that name is on PyPI
            return f"pip install 'converter[{extra}]'"
    except PackageNotFoundError:
        pass
    checkout = Path(__file__).parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install '{checkout}[{extra}]'"
    return f"pip install {' '.join(EXTRAS[extra].values())}"
