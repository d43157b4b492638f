"""What is asked of a model: a data set with its pictures, and how captions name its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.display import listed, quoted
from converter.errors import ModelError
from converter.evaluation.dataset import Category, DataSet
from converter.parity.family import Class


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A data set. `data`: by which rules, 'coco', 'lvis' or 'own'; `images`: the folder of its pictures.

    `whole`: with the pictures that are left out.
    """

    name: str
    data: str
    dataset: DataSet
    whole: DataSet
    images: Path | None
    classes: Sequence[Class]

    @property
    def is_limited(self) -> bool:
        """Whether pictures are left out."""
        return self.dataset is not self.whole

    @property
    def folder(self) -> str:
        """Where its results go, where there are several."""
        return self.name.rpartition("/")[2]


def question_of(
    name: str, data: str, whole: DataSet, images: Path | None, limit: int | None = None, captions: object = None
) -> Question:
    """The first `limit` pictures of a data set; `captions`: see `captioned`. ModelError."""
    dataset = whole.limited(limit)
    classes = [Class(each.id, each.name) for each in _asked_for(whole)]
    if captions is not None:
        classes = captioned(classes, captions)
    return Question(name, data, dataset, whole, images, classes)


def _asked_for(dataset: DataSet) -> list[Category]:
    """Categories without the background, which exports of some tools list, and nothing is annotated as."""
    used = {row["category_id"] for row in dataset.content["annotations"]}
    return [each for each in dataset.categories if each.id in used or (each.id != 0 and each.name != "__background__")]


def captioned(classes: Sequence[Class], captions: object, where: str = "captions") -> list[Class]:
    """The classes with what is said of their captions: by name a text, or `prefix`, `name`, `suffix`; or a list.

    A list is as the official configurations have it (CAPTION_PROMPT): one for each class, in order. ModelError.
    """
    if isinstance(captions, Sequence) and not isinstance(captions, str):
        if len(captions) != len(classes):
            raise ModelError(f"{where}: has {len(captions)} captions for {len(classes)} classes.")
        return [_with_caption(each, said, where) for each, said in zip(classes, captions, strict=True)]
    if not isinstance(captions, Mapping):
        raise ModelError(f"{where}: expected an object, class name: caption, or a list of captions.")
    names = {each.name for each in classes}
    if unknown := [str(name) for name in captions if name not in names]:
        raise ModelError(f"{where}: names {listed(map(quoted, unknown))}, which are no classes of the data set.")
    return [_with_caption(each, captions[each.name], where) if each.name in captions else each for each in classes]


def _with_caption(each: Class, said: object, where: str) -> Class:
    if isinstance(said, str):
        return replace(each, text=said)
    if isinstance(said, Mapping) and set(said) <= {"prefix", "name", "suffix"}:
        prefix, name, suffix = said.get("prefix", ""), said.get("name", each.name), said.get("suffix", "")
        if isinstance(prefix, str) and isinstance(name, str) and isinstance(suffix, str):
            return replace(each, prefix=prefix, text=name, suffix=suffix)
    raise ModelError(f"{where}: what it says of {quoted(each.name, 60)} is not a text, nor prefix, name and suffix.")
