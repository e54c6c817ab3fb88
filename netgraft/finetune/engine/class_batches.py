"""Batches of a few classes with as many images of each, as losses between images need them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from netgraft.data.pictures import LabelledPictures, by_class
from netgraft.errors import UsageError


class ClassBatches:
    """P classes at random, and of each K images at random (Hermans et al. 2017, "Batch Hard").

    Each batch is drawn by itself, a function of (seed, epoch, number): an epoch has as many batches as a pass over the
    images, but images of small classes are seen more often than those of large ones. Of a class with fewer than K
    images some come several times.
    """

    def __init__(self, pictures: LabelledPictures, size: int, images: int, seed: int) -> None:
        """``size`` images of all processes, ``images`` of each class.

        Raises UsageError where these do not divide, or there are too few classes.
        """
        members = by_class(pictures.labels, len(pictures.classes))
        self.members = [of_class for of_class in members if of_class]
        self.images, self.seed, self.classes = images, seed, size // images
        if size % images or self.classes < 2:
            hint = f"--batch-size times the processes is a multiple of {images}, at least {2 * images}."
            where = f"{size} images, {images} of each class"
            raise UsageError("A batch is not of whole classes.", where=where, hint=hint)
        if self.classes > len(self.members):
            what = f"A batch would have {self.classes} classes, and there are {len(self.members)} to train with."
            hint = f"Let --batch-size times the processes be at most {images * len(self.members)}."
            raise UsageError(what, where=f"{size} images, {images} of each class", hint=hint)

    def __call__(self, epoch: int, number: int) -> Tensor:  # [size]
        """The numbers of the images of a batch, class by class."""
        rng = np.random.default_rng([self.seed, epoch, number, *b"classes"])
        chosen = [self.members[i] for i in rng.choice(len(self.members), self.classes, replace=False)]
        drawn = [rng.choice(of, self.images, replace=len(of) < self.images) for of in chosen]
        return torch.from_numpy(np.concatenate(drawn))
