"""The pictures of a data set, and what a detector of phrases is asked about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from converter.grounding.prepared import prepare
from converter.grounding.preprocessing import Preprocessing
from converter.grounding.prompt import Caption
from converter.grounding.tokenizer import Tokenizer
from converter.parity.family import Boxes, Prepared


class Choices(Protocol):
    """What of a protocol decides how pictures are read; `to_dict` has all of it."""

    @property
    def filter(self) -> str: ...
    @property
    def upright(self) -> bool: ...
    @property
    def metric(self) -> str: ...
    def to_dict(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Choices)


@dataclass(frozen=True, slots=True, eq=False)
class PhraseTask(ABC, Generic[C]):
    """A `converter.parity.family.Task`, but for the model.

    name      of the protocol, with what was changed of it
    settings  of pictures and captions, as the protocol wants them
    asked     the captions; their labels are ids of classes
    """

    name: str
    protocol: C
    tokenizer: Tokenizer
    settings: Preprocessing
    asked: tuple[Caption, ...]

    @property
    def captions(self) -> Sequence[str]:
        return [caption.text for caption in self.asked]

    @property
    def facts(self) -> Mapping[str, Any]:
        tokens = [
            {"ids": list(caption.ids), "classes": [[label, *at] for label, at in caption.positive_map.items()]}
            for caption in self.asked
        ]
        return {
            "name": self.name,
            "settings": self.protocol.to_dict(),
            "preprocessing": self.settings.to_dict(),
            "captions": list(self.captions),
            "tokens": tokens,
        }

    @property
    def metric(self) -> str:
        return self.protocol.metric

    def read(self, path: Path) -> Prepared:
        """ModelError if it is no picture, damaged, or so long and thin that a side would vanish."""
        return prepare(path, self.size, self.protocol.filter, self.settings.size_multiple, self.protocol.upright)

    @abstractmethod
    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in which the model sees a picture of that size, before it is filled up."""

    @abstractmethod
    def runner(self, model: Any) -> Callable[[Sequence[Prepared]], Sequence[Boxes]]:
        """A function from prepared pictures of one size, which are one batch, to their boxes."""
