from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, log_uniform, uniform
from netgraft.data.generators._fields import smooth_field
from netgraft.data.generators._finish import check_finish, colours, finish


@dataclass(frozen=True)
class Blobs:
    """Thresholded smooth noise: blobs of one colour on another.

    The noise is Gaussian, of random smoothness and threshold (the darker or lighter part covers a fifth to four
    fifths, mostly); edges are 1 to 3 pixels wide.
    """

    smallest: float = field(default=0.05, metadata={"help": "least correlation length, in image sides"})
    largest: float = field(default=0.2, metadata={"help": "largest correlation length, in image sides"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.15, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.06, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)
        if not 0 < self.smallest <= self.largest:
            raise ValueError(f"smallest and largest must be positive and in order: {self.smallest}, {self.largest}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        channels, height, width = size
        side = min(height, width)
        length = (log_uniform(self.smallest, self.largest, (count,), generator) * side).clamp_min(1.25)
        level = uniform(-0.8, 0.8, (count, 1, 1, 1), generator)
        steepness = length.reshape(-1, 1, 1, 1) / uniform(1, 3, (count, 1, 1, 1), generator)
        noise = smooth_field(count, (height, width), length, generator)
        mask = ((noise - level) * steepness + 0.5).clamp_(0, 1)  # [count, 1, H, W]
        ground = colours(count, 1, channels, (0, 0.3), generator).reshape(count, channels, 1, 1)
        ink = colours(count, 1, channels, (0.7, 1), generator).reshape(count, channels, 1, 1)
        return finish(torch.lerp(ground, ink, mask), self.contrast, self.shading, self.noise, generator)
