from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis, computable
from netgraft.operators._taps import cubic, resample


@dataclass(frozen=True)
class Positions:
    """Resize a table of absolute position embeddings to another grid of tokens.

    [..., prefix + prod(size_from), width] becomes [..., prefix + prod(size_to), width]: the ``prefix`` first tokens
    (class, distillation, register) keep their bits, the others are a grid in row-major order and are interpolated
    cubically with antialiasing. One axis, two or more. Types below float32 are computed in float32 and rounded once.
    timm's ``resample_abs_pos_embed``; OPERATORS D9.
    """

    fate: ClassVar[str] = "interpolated"

    size_from: tuple[int, ...] = field(metadata={"help": "grid of the source, such as 14,14"})
    size_to: tuple[int, ...] = field(metadata={"help": "grid of the result, such as 16,16"})
    prefix: int = field(default=0, metadata={"help": "number of tokens in front of the grid"})

    def __post_init__(self) -> None:
        if not self.size_from or min(*self.size_from, *self.size_to, 1) < 1:
            raise ValueError(f"grids must be one or more positive lengths: {self.size_from}, {self.size_to}")
        if len(self.size_from) != len(self.size_to):
            raise ValueError(f"grids must have the same number of axes: {self.size_from}, {self.size_to}")
        if self.prefix < 0:
            raise ValueError(f"prefix cannot be negative: {self.prefix}")

    def __call__(self, weight: Tensor) -> Tensor:
        shape, dim = tuple(weight.shape), axis("positions", weight, -2)
        if shape[dim] != self.prefix + prod(self.size_from):
            raise PlanError(
                f"positions: axis {dim} of {shape} is not {self.prefix} tokens and a grid of {self.size_from}."
            )
        if self.size_from == self.size_to:
            return weight
        kept, grid = weight.split([self.prefix, shape[dim] - self.prefix], dim)
        grid = computable("positions", grid).reshape(*shape[:dim], *self.size_from, shape[-1])
        lengths = zip(self.size_from, self.size_to, strict=True)
        matrices = [cubic(old, new, antialias=True) if old != new else None for old, new in lengths]
        resized = resample(grid, dim, matrices).reshape(*shape[:dim], prod(self.size_to), shape[-1])
        return torch.cat([kept, resized.to(weight.dtype)], dim)
