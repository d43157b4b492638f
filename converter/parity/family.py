"""What a family of models offers: all that parity, certificates, publishing and the command line know of one.

A family is a package with a module `family`, in which FAMILY is an object of the class below. A spec names it
(`"family": "NAME"`); the command line finds it by that name, and nobody else imports it. All else that is known of a
model is data: its spec and tables, whose taps say which module computes what. This module needs no torch, so that a
folder can be packaged without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from converter.errors import ModelError
from converter.mapping.spec import Config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from converter.checkpoint import Checkpoint
    from converter.parity.capture import Capture, Detections
    from converter.parity.graph import Graph

M = TypeVar("M")  # the class of the family's models, an nn.Module


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a model is run on.

    tensors  the keyword arguments of the model's forward
    facts    what a capture says of them beside: captions, sizes of images, whatever detection needs; JSON
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Derived:
    """An activation that no module returns: `compute` makes it of the model's output. `method` says where."""

    method: str
    compute: Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A mistake that re-implementations make, to be made on purpose: what a comparison is worth is what it catches.

    make        a context in which the model makes this mistake
    where       pattern of the modules that must then be found off by themselves
    detections  it shows in what is detected only
    invisible   why no output can show it, where that is so
    """

    name: str
    make: Callable[[Any], AbstractContextManager[None]]
    where: str
    detections: bool = False
    invisible: str | None = None


@dataclass(frozen=True, slots=True)
class Companions:
    """What is published beside weights.

    files   by name, for example those of a tokenizer
    config  entries of `config.json`, for example the preprocessing
    doubts  sentences for the card on what of it was not verified
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    doubts: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a detector is asked for, as a family reads it without any weights.

    prompt    what `Detector.detect` takes
    captions  the texts that the model reads
    phrases   what is looked for; label n is the n-th of them, counted from 1
    read      a file as a Pillow picture that `Detector` takes. ModelError if it cannot be used
    facts     what else decides what is found, besides weights: tokens, preprocessing; JSON
    size      (height, width) in which the model sees such a picture: those of one size can be one batch
    """

    prompt: Any
    captions: Sequence[str]
    phrases: Sequence[str]
    read: Callable[[Path], Any]
    facts: Mapping[str, Any]
    size: Callable[[Any], tuple[int, int]]


class Detector(Protocol):
    """Finds in pictures what a prompt names.

    encode  a prompt as the model reads it, which `detect` takes in its place: for many pictures it is read once
    detect  for a picture that `Query.read` gave what is found in it, for a list of them, which is one batch, a list
    draw    a copy of the picture with what was found in it, Pillow's

    What is found is the family's own, with `width`, `height`, and `as_lists()` for JSON. A threshold is a score from
    0 to 1.
    """

    def encode(self, prompt: Any) -> Any: ...
    def detect(self, images: Any, prompt: Any, threshold: float = 0.5, max_detections: int = 100) -> Any: ...
    def draw(self, image: Any, found: Any, line_width: int | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Class:
    """A class of a data set, and how captions name it: `text` or else `name`, between `prefix` and `suffix`."""

    id: int
    name: str
    prefix: str = ""
    text: str | None = None
    suffix: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A picture as a worker hands it to the process that has the model.

    pixels         (H, W, 3) uint8, resized
    width, height  of the picture itself
    size           (height, width) in which the model sees it: those of one size can be one batch
    is_unturned    its EXIF says that it is to be turned, and it was used as it is stored
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    size: tuple[int, int]
    is_unturned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """What is predicted in one picture: ids of classes (N,), x, y, width, height in its pixels (N, 4), scores (N,)."""

    classes: NDArray[np.int64]
    boxes: NDArray[np.floating[Any]]
    scores: NDArray[np.floating[Any]]


class Task(Protocol):
    """How a model is asked about all pictures of a data set, without any weights yet. It can be sent to a process.

    captions  the texts that the model reads
    facts     all that decides the result besides weights and pictures: the protocol, tokens, preprocessing; JSON
    metric    by which the result is measured: 'coco', 'lvis' or 'lvis-fixed'
    read      a picture file; ModelError if it cannot be used
    runner    a function from prepared pictures of one size, which are one batch, to their boxes
    """

    @property
    def captions(self) -> Sequence[str]: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def metric(self) -> str: ...
    def read(self, path: Path) -> Prepared: ...
    def runner(self, model: Any) -> Callable[[Sequence[Prepared]], Sequence[Boxes]]: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """Which protocol a task follows: `name`, and settings of it that are to be `changed`, by name, as text."""

    name: str
    changed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set that a family's protocol knows.

    name         as it is told
    annotations  its file, and `pictures` the folder that names of files begin at, below the folder that is given
    classes      in place of those that the file states; none for those of the file
    """

    name: str
    annotations: str
    pictures: str
    classes: tuple[Class, ...] = ()


class Family(ABC, Generic[M]):
    """A family of models. `table` and four methods are required; the others have defaults."""

    table: str  # the mapping table whose taps name the activations that are captured of these models
    files: Sequence[str] = ()  # in a folder of weights, those that decide what a model makes of its inputs
    benchmarks: Sequence[str] = ()  # names of what consists of several data sets
    configurable: Sequence[str] = ()  # of `settings`, those that are read from a folder's config.json if it has them

    @abstractmethod
    def build(self, config: Config) -> M:
        """A model of these sizes, with random numbers. ModelError if they cannot fit together."""

    @abstractmethod
    def load(self, path: Path, checkpoint: Checkpoint) -> M:
        """The model with the weights of `checkpoint`, named as its spec does: float32, on the CPU, in eval mode.

        `path`: the file or folder that it was opened from, where `read_record` finds its configuration. ModelError.
        """

    @abstractmethod
    def config(self, model: M) -> Config:
        """The sizes of a model, as its spec names them."""

    @abstractmethod
    def sample_inputs(self, config: Config) -> Inputs:
        """Small inputs that are the same on every machine, for a certificate's fingerprint."""

    def parameters(self, model: M) -> Mapping[str, nn.Parameter]:
        """The weights by their names in the spec, each once, where the model itself may call them otherwise."""
        return dict(cast("nn.Module", model).named_parameters())

    def run(self, model: M, inputs: Mapping[str, Tensor]) -> Any:
        """What the model makes of `inputs`, which lie on its device."""
        return cast("nn.Module", model)(**inputs)

    def comparing(self, model: M) -> AbstractContextManager[None]:
        """A context in which the model, or a part of it, runs where it is compared: where it computes something else
        than the captured one on purpose, it computes the same here."""
        return nullcontext()

    def inputs(self, capture: Capture) -> Mapping[str, Tensor]:
        """What the model is called with to be compared with a capture; CaptureError if it cannot be.

        An axis may be shorter than captured, where the model does not compute the rest (padding): captured
        activations are then cut likewise.
        """
        return capture.inputs

    def derived(self, model: M) -> Mapping[str, Derived]:
        """Activations that no module returns, by their captured names."""
        return {}

    def detect(self, model: M, out: Any, facts: Mapping[str, Any]) -> Sequence[Detections]:
        """The objects of each image, from the model's output and what the capture says of its inputs."""
        return ()

    def mistakes(self, model: M) -> Sequence[Mistake]:
        """Known mistakes of re-implementations that this model has the place for."""
        return ()

    def graph(self, model: M, size: tuple[int, int] | None, tokens: int | None, *, gathers: bool = False) -> Graph:
        """How `model` is exported, for pictures of (height, width) and so many tokens, or any where that is None.

        `gathers`: without operators that some runtimes lack. ModelError if it cannot be exported like that.
        """
        raise ModelError(f"{type(self).__name__}: models of this family cannot be exported.")

    def output(self, named: Mapping[str, Tensor]) -> Any:
        """The model's output, of its tensors by the steps of their taps: `boxes.0`."""
        raise ModelError(f"{type(self).__name__}: models of this family cannot be exported.")

    def heads(self, model: M) -> Mapping[str, int]:
        """Weights whose rows are divided into heads, by name, with the number of blocks."""
        return {}

    def prompt(
        self,
        names: str | Sequence[str] | None,
        caption: str | None = None,
        spans: Sequence[str] = (),
        phrases: Sequence[str] = (),
    ) -> Any:
        """What to look for: class names, or phrases of a caption. ModelError; a ConverterWarning of a likely mistake.

        Names come as one text, which the family divides, or one by one, to be taken as they are. Phrases of a caption
        come as its words, or as spans, each `from:to` in characters; labels count the former first.
        """
        raise ModelError(f"{type(self).__name__}: models of this family do not detect what a prompt names.")

    def query(self, prompt: Any, source: Path, config: Config, vocabulary: Path | None) -> Query:
        """What a `prompt` asks of a model of these sizes in `source`. ModelError if it cannot be used, HubError."""
        raise ModelError(f"{type(self).__name__}: models of this family do not detect what a prompt names.")

    def detector(self, model: M, source: Path, vocabulary: Path | None) -> Detector:
        """`model`, loaded from `source`, with all that turns pictures and prompts into boxes. ModelError, HubError."""
        raise ModelError(f"{type(self).__name__}: models of this family do not detect what a prompt names.")

    def task(
        self,
        data: str,
        classes: Sequence[Class],
        asked: Asked,
        source: Path,
        config: Config,
        vocabulary: Path | None,
    ) -> Task:
        """How a model of these sizes in `source` is asked about a data set of these classes.

        data: 'coco', 'lvis', or 'own' for any other. ModelError if a class cannot be asked for, or there is no such
        protocol; HubError.
        """
        raise ModelError(f"{type(self).__name__}: models of this family are not evaluated on data sets.")

    def benchmark(self, name: str) -> Sequence[Benchmark]:
        """The data sets of one of `benchmarks`."""
        raise ModelError(f"{type(self).__name__}: knows no benchmark {name}.")

    def settings(self) -> Mapping[str, Any]:
        """What else decides that: preprocessing, thresholds; JSON."""
        return {}

    def companions(self, conversion: Path, config: Config, vocabulary: Path | None) -> Companions:
        """What is published beside a conversion. ModelError where it is not of this model, HubError."""
        return Companions()

    def about(self) -> Mapping[str, Any]:
        """What a model card says of the family; see `converter.publish.card`."""
        return {}
