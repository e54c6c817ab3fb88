from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, normal
from netgraft.data.generators._finish import check_finish, finish


@dataclass(frozen=True)
class Noise:
    """White noise: every value of every pixel is independent."""

    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.15, metadata={"help": "largest amplitude of the smooth background"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, 0)

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        images = (normal((count, *size), generator) * 0.22 + 0.5).clamp_(0, 1)
        return finish(images, self.contrast, self.shading, 0, generator)
