"""Where unlabelled images come from, which of them are held out, and how a network is shown them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from netgraft import plugins
from netgraft.data.decode import SUFFIXES
from netgraft.data.synthetic import GENERATORS, make_images
from netgraft.data.unlabelled import Part, cropped, held_out_files, load_folder
from netgraft.models.normalisation import Normalisation

HELD_OUT = ("mosaic", "leaves")
"""Generators whose images nothing is fitted on: the first one that the user's own choice does not draw from."""

APART = 101
"""Between the seeds of images that are drawn one after the other: not a distance that seeds keep elsewhere."""


@dataclass(frozen=True)
class ImageSource:
    """Where images come from: a generator by name, or unlabelled ones of the user's."""

    name: str = "mix"  # a generator's name, or the path of a folder or a single picture with ``folder``
    options: Mapping[str, object] = field(default_factory=dict)
    folder: bool = False
    part: Part = "shown"  # of a folder: what networks are fitted on, or what is held out from that

    @classmethod
    def of(cls, text: str) -> ImageSource:
        """A folder or a picture where there is one of this name, else a generator; a file of Python is one, too."""
        path = Path(text).expanduser()
        file = bool(path.suffix) and path.suffix != ".py" and path.is_file()
        return cls(text, folder=path.is_dir() or file or path.suffix.lower() in SUFFIXES)

    def draw(self, count: int, size: tuple[int, int, int], seed: int, first: int = 0) -> Tensor:
        """``[count, *size]`` float32 in [0, 1], on the CPU, the same for the same arguments.

        ``first``: how many images others have drawn with this seed: of a folder the next ones are taken.
        """
        if self.folder:
            return load_folder(self.name, count, size, seed, self.part, first)
        return make_images(self.name, count, size, seed + APART * first, self.options)

    def made_by(self, count: int) -> str:
        """How ``draw`` gets so many images out of fewer pictures, in a line; nothing where it does not."""
        return cropped(self.name, count, self.part) if self.folder else ""

    def held_out(self) -> ImageSource:
        """Images of another kind than these: another generator, or the part of the folder that ``draw`` leaves out.

        A folder with too few images to hold any back counts as a generator of its own.
        """
        if self.folder and held_out_files(self.name):
            return replace(self, part="held out")
        shown = {self.name}
        if self.name == "mix" and not self.folder:
            shown.update(plugins.create(GENERATORS, "mix", self.options).of)
        return ImageSource(next((name for name in HELD_OUT if name not in shown), HELD_OUT[0]))

    def most(self, wanted: int) -> int:
        """How many different images there are, up to so many."""
        return min(wanted, len(held_out_files(self.name))) if self.folder and self.part == "held out" else wanted


def shown_as(images: Tensor, size: Sequence[int], normalisation: Normalisation) -> Tensor:
    """Images in [0, 1] as a network expects them: its size (channels, height, width) and its normalisation.

    A multiple of the channels repeats them in their order, as timm does with kernels; else each is the mean of all.
    """
    channels, height, width = size
    if tuple(images.shape[2:]) != (height, width):
        images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    if images.shape[1] != channels:
        if channels % images.shape[1]:
            images = images.mean(1, keepdim=True)
        images = images.repeat(1, channels // images.shape[1], 1, 1)
    return normalisation.fitted(channels)(images)
