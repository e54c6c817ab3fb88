"""Batches of images, each a function of (seed, epoch, number): nothing to save, nothing to skip when resuming.

An epoch is a seeded permutation of the images, cut into batches for all processes, of which each takes its slice; with
``class_images`` every batch is drawn by itself (``class_batches``). How an image is augmented depends on (seed, view,
image) alone, whichever process or worker does it.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from netgraft.data.pictures import LabelledPictures, Pixels
from netgraft.errors import UsageError
from netgraft.finetune.engine.class_batches import ClassBatches
from netgraft.finetune.protocol import Batch
from netgraft.finetune.settings import CropMode
from netgraft.models.normalisation import Normalisation


@dataclass(frozen=True)
class Augmentation:
    """The options of timm's ``create_transform``, under its names, and one crop mode more: ``rc``.

    ``rrc``: a crop of random area and aspect, resized. ``rkrc``, ``rkrr``: with probability 1/2 each a random scale and
    aspect, then a crop in the middle or anywhere. ``rc``: resized until the image covers the size / ``crop_pct``, as
    timm does for tests, then a crop of the size anywhere: Resize(256) and RandomCrop(224) of papers with 0.875.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    aa: str | None = None
    reprob: float = 0.0
    train_crop_mode: CropMode = "rrc"
    crop_pct: float = 0.875  # of rc

    def transform(self, size: Sequence[int], normalisation: Normalisation) -> Any:
        from timm.data import create_transform

        mean, std = normalisation.tensors(size[0])
        transform = create_transform(
            (size[0], size[1], size[2]),
            is_training=True,
            train_crop_mode=None if self.train_crop_mode == "rc" else self.train_crop_mode,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=self.color_jitter,
            auto_augment=self.aa,
            re_prob=self.reprob,
            mean=tuple(mean.flatten().tolist()),
            std=tuple(std.flatten().tolist()),
        )
        if self.train_crop_mode == "rc":
            transform.transforms[:1] = self._resize_and_crop(size[1:])
        return transform

    def _resize_and_crop(self, size: Sequence[int]) -> list[Any]:
        from timm.data import transforms

        untyped: Any = transforms
        large = [math.floor(edge / self.crop_pct) for edge in size]
        return [untyped.ResizeKeepRatio(large, interpolation="bilinear"), untyped.RandomCropOrPad(list(size))]


class Views:
    """The images of one data set as networks read them, plain or augmented."""

    def __init__(
        self,
        pictures: LabelledPictures,
        size: Sequence[int],
        normalisation: Normalisation,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        views: int | None = None,  # how many random views of an image there are; None: one for each epoch
    ) -> None:
        self.pixels = Pixels(pictures, size, normalisation)
        self.pictures, self.size, self.seed, self.views = pictures, tuple(size), seed, views
        self.augmentation = augmentation
        self.transform = augmentation.transform(size, normalisation) if augmentation else None

    def __len__(self) -> int:
        return len(self.pictures)

    def view(self, epoch: int) -> int:
        """The number of the view that is seen in an epoch."""
        return 0 if self.transform is None else epoch if self.views is None else epoch % self.views

    def key(self) -> dict[str, Any]:
        """What the images depend on, for the key of a cache."""
        normalisation = [self.pixels.mean.flatten().tolist(), self.pixels.std.flatten().tolist()]
        drawn = None
        if self.transform is not None:  # its text rounds numbers, that of the options does not
            drawn = [repr(self.transform), repr(self.augmentation), self.seed, self.views]
        return {"images": self.pictures.record(), "normalisation": normalisation, "transform": drawn}

    def images(self, ids: Sequence[int], view: int) -> Tensor:  # [n, C, H, W]
        if self.transform is None:
            return self.pixels.batch(ids)
        return torch.stack([self._augmented(i, view) for i in ids])

    def _augmented(self, index: int, view: int) -> Tensor:  # [C, H, W]
        picture, _ = self.pictures[index]
        picture = picture.convert("L" if self.size[0] == 1 else "RGB")
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            number = int(np.random.SeedSequence([self.seed, view, index]).generate_state(1)[0])
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            assert self.transform is not None
            image: Tensor = self.transform(picture)
        random.setstate(states[0])
        np.random.set_state(states[1])
        return image


@dataclass
class Loader(Dataset[Batch]):
    """The training batches of one process."""

    target: Views
    batch_size: int  # of one process
    rank: int = 0
    world: int = 1
    seed: int = 0
    workers: int = 0
    others: Mapping[str, Views] = field(default_factory=dict)  # "source", "unlabelled": beside every batch
    accumulate: int = 1  # batches of a step
    class_images: int = 0  # of each class that a batch has; 0: classes are not looked at

    def __post_init__(self) -> None:
        whole = min(self.batch_size * self.world, len(self.target))
        if self.class_images:
            whole = self.batch_size * self.world
            self.draw = ClassBatches(self.target.pictures, whole, self.class_images, self.seed)
        self.batches = max(1, len(self.target) // whole)
        self.whole = whole  # images of all processes in a batch; what is left of an epoch is dropped
        self.group = min(self.accumulate, self.batches)  # batches of a step, as many as there are
        self.batches -= self.batches % self.group

    def __len__(self) -> int:
        return self.batches

    def weight(self) -> float:
        """This process's share of a batch times the number of processes."""
        low, high = self._slice(self.whole)
        return (high - low) * self.world / self.whole

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``first`` on, on the CPU."""
        numbers = [(epoch, number) for number in range(first, self.batches)]
        pinned = torch.cuda.is_available() and self.workers > 0
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one, which is the method's
            pin_memory=pinned,
        )

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many images each data set has."""
        return {"target": len(self.target), **{name: len(views) for name, views in self.others.items()}}

    def every_image(self, data: str, epoch: int) -> Iterator[Batch]:
        """This process's share of all images of a data set, once, in their order, in an epoch's view; on the CPU.

        Raises UsageError for a data set that the training does not have.
        """
        if data not in self.sizes:
            raise UsageError(f"The training has no images called {data!r}.", hint=f"It has {', '.join(self.sizes)}.")
        views = self.target if data == "target" else self.others[data]
        for ids in torch.arange(len(views))[self.rank :: self.world].split(self.batch_size):
            if len(ids):
                yield self._batch(views, ids, views.view(epoch), data)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        low, high = self._slice(self.whole)
        if self.class_images:
            ids = self.draw(epoch, number)[low:high]
        else:
            ids = _order(len(self.target), self.seed, "target", epoch)[number * self.whole :][low:high]
        beside = {name: self._beside(name, epoch, number) for name in self.others}
        return self._batch(self.target, ids, self.target.view(epoch), "target", **beside)

    def _beside(self, name: str, epoch: int, number: int) -> Batch:
        """As many images of another data set, whose own epochs follow one another without end."""
        views = self.others[name]
        low, high = self._slice(self.whole)
        start = (epoch * self.batches + number) * self.whole
        places = [divmod(start + i, len(views)) for i in range(low, high)]
        orders = {turn: _order(len(views), self.seed, name, turn) for turn, _ in places}
        ids = torch.stack([orders[turn][i] for turn, i in places])
        return self._batch(views, ids, views.view(places[0][0]), name)

    def _batch(self, views: Views, ids: Tensor, view: int, data: str, **beside: Batch) -> Batch:
        labels = torch.full((len(ids),), -1) if data == "unlabelled" else views.pixels.labels[ids]
        return Batch(views.images(ids.tolist(), view), labels, ids, view, data, **beside)

    def _slice(self, whole: int) -> tuple[int, int]:
        return self.rank * whole // self.world, (self.rank + 1) * whole // self.world


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, data: str, epoch: int) -> Tensor:  # [count]
    words = [seed, epoch, *data.encode()]
    number = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Images and labels on the device; numbers stay on the CPU."""
    beside = {name: to_device(other, device) for name in ("source", "unlabelled") if (other := getattr(batch, name))}
    x, y = batch.x.to(device, non_blocking=True), batch.y.to(device, non_blocking=True)
    return Batch(x, y, batch.ids, batch.view, batch.data, **beside)
