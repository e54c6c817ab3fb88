from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt, prod
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis, computable
from netgraft.operators._taps import cubic, resample


@dataclass(frozen=True)
class RelativeTable:
    """Resize a table of relative position biases to another attention window.

    [..., (2h - 1)(2w - 1) + extra, heads] becomes the same for the window ``size``: head by head the grid of offsets is
    interpolated cubically, offset 0 staying offset 0, and the last ``extra`` rows (BEiT's class token) keep their bits.
    The source's window is ``size_from``, or else square. A table [heads, 2h - 1, 2w - 1] needs ``bicubic`` instead.
    Types below float32 are computed in float32 and rounded once. timm's ``resize_rel_pos_bias_table_simple``;
    OPERATORS D9. Departs from BEiT's resize (timm's ``resize_rel_pos_bias_table``), which spaces the offsets
    geometrically, dense at 0, to extrapolate.
    """

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "attention window of the result, such as 7,7"})
    size_from: tuple[int, ...] | None = field(default=None, metadata={"help": "window of the source; none: square"})
    extra: int = field(default=0, metadata={"help": "number of rows behind the grid"})

    def __post_init__(self) -> None:
        known = self.size_from or self.size
        if not self.size or min(*self.size, *known) < 1 or len(known) != len(self.size):
            raise ValueError(f"windows must be as many positive lengths: {self.size_from}, {self.size}")
        if self.size_from is None and len(self.size) != 2:
            raise ValueError(f"a window of {len(self.size)} axes needs size_from")
        if self.extra < 0:
            raise ValueError(f"extra cannot be negative: {self.extra}")

    def __call__(self, weight: Tensor) -> Tensor:
        shape, dim = tuple(weight.shape), axis("relative-table", weight, -2)
        rows = shape[dim] - self.extra
        side = (isqrt(max(rows, 0)) + 1) // 2
        window = self.size_from or (side, side)
        old, new = ([2 * length - 1 for length in lengths] for lengths in (window, self.size))
        if rows != prod(old):
            what = f"a window of {self.size_from}" if self.size_from else "a square window"
            raise PlanError(f"relative-table: axis {dim} of {shape} is not {what} and {self.extra} extra rows.")
        if old == new:
            return weight
        grid, kept = weight.split([rows, self.extra], dim)
        grid = computable("relative-table", grid).reshape(*shape[:dim], *old, shape[-1])
        matrices = [cubic(a, b) if a != b else None for a, b in zip(old, new, strict=True)]
        resized = resample(grid, dim, matrices).reshape(*shape[:dim], prod(new), shape[-1])
        return torch.cat([resized.to(weight.dtype), kept], dim)
