from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, log_uniform, uniform
from netgraft.data.generators._fields import coarse_field
from netgraft.data.generators._finish import check_finish, colours, finish

_CALMEST = 0.3  # waves across the image's shorter side: a mere gradient


@dataclass(frozen=True)
class Mosaic:
    """Cells with bent edges that share the image among them, each striped or shaded in two colours.

    A point belongs to the nearest of some random centres (Voronoi), looked up where a smooth field has moved it to.
    Stripes have a random direction and pitch; the widest are gradients. It is no part of ``mix``: what was fitted on
    ``mix`` is judged on these.
    """

    most: int = field(default=10, metadata={"help": "an image has 2 to this many cells"})
    waves: float = field(default=10.0, metadata={"help": "most stripes across an image"})
    bend: float = field(default=0.08, metadata={"help": "how far edges stray, in image sides"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.15, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.06, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)
        if self.most < 2:
            raise ValueError(f"most must be at least 2: {self.most}")
        if self.waves < _CALMEST or self.bend < 0:
            raise ValueError(f"waves must be at least {_CALMEST}, bend not negative: {self.waves}, {self.bend}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        channels, height, width = size
        side, device = min(height, width), generator.device
        y = ((torch.arange(height, device=device) + 0.5) / side)[:, None]
        x = (torch.arange(width, device=device) + 0.5) / side
        bent = self.bend * coarse_field(count, 2, (height, width), generator)
        y, x = y + bent[:, 0], x + bent[:, 1]  # [count, H, W]
        each = (count, self.most, 1, 1)
        number = torch.randint(2, self.most + 1, (count, 1, 1), generator=generator, device=device)
        rows, columns = (uniform(0, length / side, each, generator) for length in (height, width))
        angle = uniform(0, math.pi, each, generator)
        pitch = log_uniform(_CALMEST, max(min(self.waves, side / 4), _CALMEST), each, generator)
        phase = uniform(0, 1, each, generator)
        sharp = uniform(0.5, 3, each, generator)  # of the stripes' edges
        dark = colours(count, self.most, channels, (0, 1), generator)[..., None, None]
        light = colours(count, self.most, channels, (0, 1), generator)[..., None, None]
        nearest = torch.full((count, height, width), torch.inf, device=device)
        images = torch.empty((count, *size), device=device)
        for k in range(self.most):
            distance = (y - rows[:, k]).square() + (x - columns[:, k]).square()
            along = (y * angle[:, k].sin() + x * angle[:, k].cos()) * pitch[:, k] + phase[:, k]
            wave = (torch.sin(2 * math.pi * along) * sharp[:, k] * 0.5 + 0.5).clamp_(0, 1)[:, None]
            inside = (distance < nearest) & (k < number)
            nearest = torch.where(inside, distance, nearest)
            images = torch.where(inside[:, None], torch.lerp(dark[:, k], light[:, k], wave), images)
        return finish(images, self.contrast, self.shading, self.noise, generator)
