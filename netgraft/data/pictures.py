"""Labelled pictures that are decoded when they are asked for, and as batches that a network reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from netgraft.data.decode import as_array
from netgraft.errors import UsageError
from netgraft.models.normalisation import Normalisation

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "test"]
SPLIT_SEED = 0
"""Which images are for testing where the data do not say; the same ones always, so that no draw of few sees them."""
MEMORY = 2**30  # bytes of decoded pictures that are kept


@dataclass(frozen=True)
class LabelledPictures:
    """One split of a data set. Works as a ``torch.utils.data.Dataset`` of (PIL image, label)."""

    name: str  # as typed
    split: Split
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    items: tuple[str, ...]  # what each picture is called: its file, or its number in the data set
    read: Callable[[str, int], Image]  # the picture of that item, plain; an edge of so many pixels is enough, 0: all
    drawn: dict[str, float] = field(default_factory=dict)  # how few were drawn, what was held out, and the seeds
    several: tuple[tuple[int, ...], ...] | None = None  # each picture's classes, of any number; ``labels`` are then -1
    cameras: tuple[int, ...] | None = None  # which camera took each picture, where that is known

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image, int | tuple[int, ...]]:
        label = self.labels[index] if self.several is None else self.several[index]
        return self.read(self.items[index], 0), label

    @property
    def multilabel(self) -> bool:
        """Whether a picture may have several classes, or none."""
        return self.several is not None

    def take(self, indices: Iterable[int]) -> LabelledPictures:
        """Some of the pictures, in that order."""
        indices = list(indices)
        some = replace(self, labels=tuple(self.labels[i] for i in indices), items=tuple(self.items[i] for i in indices))
        if self.several is not None:
            some = replace(some, several=tuple(self.several[i] for i in indices))
        if self.cameras is not None:
            some = replace(some, cameras=tuple(self.cameras[i] for i in indices))
        return some

    def target(self) -> Tensor:
        """What a network learns of the pictures: ``[N]`` int64, or ``[N, classes]`` float32 of 0 and 1 (several)."""
        if self.several is None:
            return torch.tensor(self.labels, dtype=torch.int64)
        target = torch.zeros(len(self), len(self.classes))
        for row, labels in zip(target, self.several, strict=True):
            row[list(labels)] = 1
        return target

    def record(self) -> dict[str, Any]:
        """Which pictures these are, as JSON: ``sha256`` is that of their names and labels, in order."""
        each = self.several if self.several is not None else [(label,) for label in self.labels]
        listed = "\n".join(
            f"{item}\t{';'.join(self.classes[label] for label in labels)}"
            for item, labels in zip(self.items, each, strict=True)
        )
        digest = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
        counts = {"images": len(self), "classes": len(self.classes)}
        return {"data": self.name, "split": self.split, **counts, **self.drawn, "sha256": digest}


def few(pictures: LabelledPictures, count: int, seed: int) -> LabelledPictures:
    """``count`` pictures of each class, drawn with ``seed``, in their old order; fewer are always a part of more.

    Raises UsageError for a class that has not so many, and for pictures with several classes each.
    """
    if count < 1:
        raise UsageError("At least one image per class is needed.", where=f"samples per class: {count}")
    if pictures.multilabel:
        what = "Images with several classes each cannot be drawn class by class."
        raise UsageError(what, where=pictures.name, hint="Leave out --samples-per-class.")
    chosen: list[int] = []
    for label, members in enumerate(by_class(pictures.labels, len(pictures.classes))):
        if len(members) < count:
            raise UsageError(
                f"The class {pictures.classes[label]!r} has {len(members)} images to train with, not {count}.",
                where=pictures.name,
                hint="Take fewer with --samples-per-class, or leave it out to take all.",
            )
        order = np.random.default_rng([seed, label]).permutation(len(members))
        chosen += [members[i] for i in order[:count]]
    return replace(pictures.take(sorted(chosen)), drawn={"samples_per_class": count, "seed": seed})


def part(pictures: LabelledPictures, share: float) -> LabelledPictures:
    """The training or the test part of undivided data: of each class a ``share``, at least one, is for tests.

    Where pictures have several classes it is a share of all. Raises UsageError for a class with a single picture.
    """
    testing = _share_of_each_class(pictures, share, SPLIT_SEED, "tests")
    return pictures.take(i for i in range(len(pictures)) if (i in testing) == (pictures.split == "test"))


def hold_out(pictures: LabelledPictures, share: float, seed: int) -> tuple[LabelledPictures, LabelledPictures]:
    """What is left to train with, and a ``share`` of each class, at least one picture, drawn with ``seed``.

    Both are in their old order. Where pictures have several classes it is a share of all. Raises UsageError for a
    class with a single picture.
    """
    held = _share_of_each_class(pictures, share, seed, "validation")
    drawn = {**pictures.drawn, "held_out": share, "held_out_seed": seed}
    rest, kept = (pictures.take(i for i in range(len(pictures)) if (i in held) == wanted) for wanted in (False, True))
    return replace(rest, drawn=drawn), replace(kept, drawn=drawn)


def _share_of_each_class(pictures: LabelledPictures, share: float, seed: int, use: str) -> set[int]:
    """Indices: of each class a share, at least one and never all."""
    found: set[int] = set()
    groups = by_class(pictures.labels, len(pictures.classes))
    if pictures.multilabel:
        groups = [list(range(len(pictures)))]
    for label, members in enumerate(groups):
        if len(members) < 2:
            whose = "The data have" if pictures.multilabel else f"The class {pictures.classes[label]!r} has"
            what = f"{whose} one image; training and {use} need one each."
            raise UsageError(what, where=pictures.name)
        order = np.random.default_rng([seed, label]).permutation(len(members))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        found.update(members[i] for i in order[:count])
    return found


def by_class(labels: Sequence[int], classes: int) -> list[list[int]]:
    """The indices of each class."""
    members: list[list[int]] = [[] for _ in range(classes)]
    for i, label in enumerate(labels):
        members[label].append(i)
    return members


class Pixels:
    """Pictures as normalised tensors of one size; decoded once where a gigabyte holds them all."""

    def __init__(self, pictures: LabelledPictures, size: Sequence[int], normalisation: Normalisation) -> None:
        if len(size) != 3 or size[0] not in (1, 3):
            shape = ",".join(map(str, size))
            hint = "Images have 1 or 3 channels: --input-size 3,224,224."
            raise UsageError("The network does not read images.", where=f"input size {shape}", hint=hint)
        if not len(pictures):
            raise UsageError(f"There are no images to {pictures.split} with.", where=pictures.name)
        self.pictures = pictures
        self.size = tuple(size)
        self.labels = pictures.target()
        self.mean, self.std = normalisation.tensors(size[0])
        self._kept: Tensor | None = None  # uint8 [N, C, H, W]
        self._keeps = len(pictures) * math.prod(size) <= MEMORY

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Sequence[int]) -> Tensor:  # float32 [n, C, H, W]
        """These pictures, normalised."""
        if self._keeps and self._kept is None:
            self._kept = self._decode(range(len(self)))
        raw = self._decode(indices) if self._kept is None else self._kept[list(indices)]
        return (raw.float() / 255 - self.mean) / self.std

    def all(self) -> Tensor:
        return self.batch(range(len(self)))

    def _decode(self, indices: Iterable[int]) -> Tensor:
        items, least = [self.pictures.items[i] for i in indices], max(self.size[1:])
        return torch.stack([torch.from_numpy(as_array(self.pictures.read(item, least), self.size)) for item in items])
