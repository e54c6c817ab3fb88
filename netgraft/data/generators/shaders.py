from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, normal
from netgraft.data.generators._finish import check_finish, colours, finish
from netgraft.data.generators._programs import LEAVES, WARPS, Dice, Place, joined, shaped, standard, turn

_SMALL = 100  # pixels along the shorter side below which an image is drawn twice as fine, and averaged


@dataclass(frozen=True)
class Shaders:
    """Random small programs, a new one for every image: warped coordinates, waves, noise, shapes, colours.

    A program warps the plane once or several times (ripples, swirls, polar coordinates, tiles, mirrors, noise ...),
    takes fields of what results (waves, rings, things, cells, fractal noise), joins them in a random expression, and
    looks colours up by its value. Such programs, by the thousand, teach networks more than other images that are no
    photographs, and the more of them differ the better (Baradad et al., "Procedural Image Programs for Representation
    Learning", arXiv:2211.16412, who took 21,000 from people; these are drawn at random).
    """

    warps: int = field(default=3, metadata={"help": "the plane is warped up to this often"})
    depth: int = field(default=2, metadata={"help": "how deep expressions are nested, at most"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.1, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.04, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)
        if self.warps < 0 or not 0 <= self.depth <= 6:
            raise ValueError(f"warps must not be negative, and depth between 0 and 6: {self.warps}, {self.depth}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        finer = 2 if min(size[1:]) < _SMALL else 1
        shape = (size[1] * finer, size[2] * finer)
        images = torch.stack([self._image(size[0], shape, generator) for _ in range(count)])
        if finer > 1:
            images = F.avg_pool2d(images, finer)
        return finish(images, self.contrast, self.shading, self.noise, generator)

    def _image(self, channels: int, shape: tuple[int, int], generator: Generator) -> Tensor:
        """One image ``[channels, *shape]``, in [0, 1]."""
        program = _Program(self, shape, generator)
        image = program.colour(program.value(self.depth), channels)
        if program.dice.whether(0.35):  # another one in front of it, or seen through it
            front = program.colour(program.value(self.depth), channels)
            mask = program.value(self.depth - 1)
            image = torch.lerp(image, front, torch.sigmoid((mask - program.dice.between(-0.5, 1)) * 20))
        if program.dice.whether(0.3):
            image = _lit(image, program.value(self.depth - 1), program.dice)
        return image.clamp_(0, 1)


class _Program:
    """Coordinates of one image, warped in several ways, and expressions of them."""

    def __init__(self, wanted: Shaders, shape: tuple[int, int], generator: Generator) -> None:
        side, device = min(shape), generator.device
        y, x = ((torch.arange(n, device=device) + 0.5) * (2 / side) - n / side for n in shape)
        self.dice = dice = Dice(generator, finest=max(side * math.pi / 8, 2.0))
        place: Place = (x.expand(shape), y[:, None].expand(shape))
        place = turn(place, dice.phase())
        zoom = dice.between(0.5, 1.8)
        place = place[0] * zoom + dice.between(-0.6, 0.6), place[1] * zoom + dice.between(-0.6, 0.6)
        self.plain = standard(place[0], place[0])  # where an expression comes out constant: then nothing would be seen
        self.places = [place]
        for _ in range(dice.pick(range(wanted.warps + 1))):
            place = dice.pick(WARPS)(place, dice)
            self.places.append((place[0].clamp(-8, 8), place[1].clamp(-8, 8)))
            place = self.places[-1]

    def value(self, depth: int) -> Tensor:
        """A random expression ``[H, W]`` nested at most so deeply, with mean 0 and variance 1."""
        dice = self.dice
        if depth < 1 or dice.whether(0.2):
            found = dice.pick(LEAVES)(self._place(), dice)
        else:
            found = joined(self.value(depth - 1), self.value(depth - 2), lambda: self.value(0), dice)
        return standard(shaped(standard(found, self.plain), dice), self.plain)

    def _place(self) -> Place:
        """The coordinates as they were warped last, mostly."""
        return self.places[-1] if self.dice.whether(0.7) else self.dice.pick(self.places)

    def colour(self, value: Tensor, channels: int) -> Tensor:
        """Colours ``[channels, H, W]`` for values: a palette of several, with or without steps, or cosines of them."""
        dice, generator = self.dice, self.dice.generator
        if dice.whether(0.3):  # a + b cos(2 pi (c t + d)), as is usual for shaders
            apart = normal((channels, 1, 1), generator) * (dice.between(0, 0.12) if channels == 3 else 0.3)
            level = colours(1, 1, channels, (0.3, 0.7), generator).reshape(channels, 1, 1)
            turns = 2 * math.pi * (value * dice.between(0.1, 0.6) + dice.between(0, 1) + apart)
            return level + dice.between(0.15, 0.5) * torch.cos(turns)
        number = dice.pick((2, 2, 3, 4, 6))
        palette = colours(1, number, channels, (0, 1), generator)[0].T  # [channels, number]
        at = torch.sigmoid(value * dice.between(1, 3)) * (number - 1)
        steep = dice.between(4, 30) if dice.whether(0.4) else 1.0  # plain colours with edges between them
        image = palette[:, 0, None, None]
        for k in range(number - 1):
            share = ((at - (k + 0.5)) * steep + 0.5).clamp_(0, 1)
            image = torch.addcmul(image, (palette[:, k + 1] - palette[:, k])[:, None, None], share)
        return image


def _lit(image: Tensor, height: Tensor, dice: Dice) -> Tensor:
    """The image as a relief with these heights, lit from one side."""
    down, across = torch.gradient(height)
    angle = dice.phase()
    slope = standard(down * math.sin(angle) + across * math.cos(angle), height)
    return image * (1 + dice.between(0.05, 0.3) * slope)
