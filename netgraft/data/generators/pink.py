from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks
from netgraft.data.generators._fields import power_law_field, standardise
from netgraft.data.generators._finish import check_finish, correlate, finish


@dataclass(frozen=True)
class Pink:
    """1/f noise: the amplitude spectrum of photographs, without their edges.

    RGB channels have the covariance of photographs' colours. Field 1987: amplitudes fall as frequency ** -1.
    """

    exponent: float = field(default=1.0, metadata={"help": "the amplitude falls as frequency to the minus this"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.1, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.04, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        channels, height, width = size
        fields = standardise(correlate(power_law_field(count, channels, (height, width), self.exponent, generator)))
        images = (fields * 0.22 + 0.5).clamp_(0, 1)
        return finish(images, self.contrast, self.shading, self.noise, generator)
