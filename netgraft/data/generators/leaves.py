from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, log_uniform, normal, uniform
from netgraft.data.generators._finish import check_finish, colours, finish

_ROUNDNESS = (1.0, 2.0, 2.0, 2.0, 2.0, 8.0)  # p of |x|^p + |y|^p < 1: a diamond, ellipses, a box with round corners


@dataclass(frozen=True)
class Leaves:
    """Dead leaves: shapes of one colour each that cover one another, as objects in photographs do.

    Radii follow the power law r ** -3 up to half the image's side, which gives the scale invariance of photographs
    (Lee, Mumford, Huang 2001); in each image from another least radius on, no less than 1.5 pixels.
    Shapes are diamonds, ellipses and boxes, upright. Edges are smoothed over a pixel.
    """

    leaves: int = field(default=200, metadata={"help": "how many leaves fall on an image, at most 255"})
    smallest: float = field(default=0.03, metadata={"help": "least radius of all, in image sides"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.15, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.06, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)
        if not 0 < self.leaves < 256:
            raise ValueError(f"leaves must be between 1 and 255: {self.leaves}")
        if not 0 < self.smallest <= 0.12:
            raise ValueError(f"smallest must be above 0 and at most 0.12: {self.smallest}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        channels, height, width = size
        finer = 4 if min(height, width) <= 16 else 2 if min(height, width) <= 96 else 1
        window = max(finer, 2)
        rows, columns = (side * finer + window - finer for side in (height, width))
        index = self._pile(count, (rows, columns), finer, generator)
        palette = colours(count, self.leaves + 1, channels, (0, 1), generator).transpose(1, 2)  # [count, C, leaves + 1]
        chosen = index.long().reshape(count, 1, -1).expand(-1, channels, -1)
        images = palette.gather(2, chosen).reshape(count, channels, rows, columns)
        images = F.avg_pool2d(images, window, stride=finer)
        return finish(images, self.contrast, self.shading, self.noise, generator)

    def _pile(self, count: int, shape: tuple[int, int], finer: int, generator: Generator) -> Tensor:
        """Which leaf lies on top, ``[count, *shape]``, 0 where none does."""
        side = min(shape)
        each = (count, self.leaves)
        smallest = min(0.12, max(self.smallest, 1.5 * finer / side))
        least = log_uniform(smallest, 0.12, (count, 1), generator)
        rest = uniform(0, 1, each, generator)
        radius = (rest * least**-2 + (1 - rest) * 0.5**-2) ** -0.5 * side  # inverts the law's distribution
        aspect = (normal(each, generator) * 0.25).exp()
        power = torch.tensor(_ROUNDNESS, device=generator.device)[
            torch.randint(len(_ROUNDNESS), each, generator=generator, device=generator.device)
        ]
        # |y|^p + |x|^p < 1 is a comparison of a column with a row
        down, across = (
            (torch.arange(n, device=generator.device) - uniform(0, n, (*each, 1), generator)).div_(half[..., None])
            for n, half in zip(shape, (radius * aspect, radius / aspect), strict=True)
        )
        down = 1 - down.abs_() ** power[..., None]
        across = across.abs_() ** power[..., None]
        index = torch.zeros((count, *shape), dtype=torch.uint8, device=generator.device)
        for k in range(self.leaves):
            index.masked_fill_(down[:, k, :, None] > across[:, k, None, :], k + 1)
        return index
