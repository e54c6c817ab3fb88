from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis, computable
from netgraft.operators._factors import sinusoids


@dataclass(frozen=True)
class Sincos:
    """Set a table of positions to sines and cosines of the places on a square grid.

    [..., prefix + side^2, width]: the tokens in front of the grid get zeros, place (y, x) gets sin(w x), cos(w x),
    sin(w y), cos(w y) with width / 4 frequencies w from 1 to 1 / temperature, geometrically spaced (Beyer et al.,
    arXiv:2205.01580; used by arXiv:2305.09828 and 2404.01139).
    """

    fate: ClassVar[str] = "set"

    side: int = field(metadata={"help": "tokens along one side of the grid"})
    prefix: int = field(default=0, metadata={"help": "number of tokens in front of the grid"})
    temperature: float = field(default=1e4, metadata={"help": "one over the lowest frequency"})

    def __post_init__(self) -> None:
        if self.side < 1 or self.prefix < 0 or not self.temperature > 1:
            raise ValueError(
                f"side is positive, prefix not negative, temperature above 1: "
                f"{self.side}, {self.prefix}, {self.temperature}"
            )

    def __call__(self, weight: Tensor) -> Tensor:
        axis("sincos", weight, -2)
        shape = tuple(weight.shape)
        if shape[-2] != self.prefix + self.side**2:
            raise PlanError(f"sincos: axis -2 of {shape} is not {self.prefix} tokens and a grid of side {self.side}.")
        values = computable("sincos", weight)
        table = sinusoids(self.side, shape[-1], self.temperature).to(values)
        table = torch.cat([table.new_zeros(self.prefix, shape[-1]), table])
        return table.expand(shape).clone().to(weight.dtype)
