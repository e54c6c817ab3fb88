from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.operators._checks import add_up, computable, positive, resized_kernel
from netgraft.operators.bilinear import Bilinear


@dataclass(frozen=True)
class BilinearGain:
    """Interpolate the kernel axes linearly and keep every kernel's sum, or its energy.

    Resizes the last ``len(size)`` axes of [..., *kernel] with ``bilinear``, then per kernel, with n_s and n_t taps:
    ``sum``: w' = s R w + (sum w - s sum R w) / n_t with s = n_s / n_t, the linear map nearest to the scaled
    interpolation that keeps the response to constant inputs exactly (to one tap: the sum of taps);
    ``energy``: w' = R w |w| / |R w|, which keeps the response's variance on white inputs; a kernel interpolated to
    zeros stays zero. Types below float32 are computed in float32 and rounded once. OPERATORS D4 (iii), where the
    constant term is left out and the sum kept only on average.
    """

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})
    preserve: Literal["sum", "energy"] = field(default="sum", metadata={"help": "what each kernel keeps"})

    def __post_init__(self) -> None:
        positive(self.size)
        if self.preserve not in ("sum", "energy"):
            raise ValueError(f"preserve must be sum or energy: {self.preserve}")

    def __call__(self, weight: Tensor) -> Tensor:
        first = resized_kernel("bilinear-gain", weight, self.size)
        if first is None:
            return weight
        before = computable("bilinear-gain", weight)
        after = Bilinear(self.size)(before)
        if self.preserve == "energy":
            squares = [add_up(kernel.flatten(first).double().square(), first) for kernel in (before, after)]
            ratio = torch.where(squares[1] > 0, squares[0] / squares[1], 0).sqrt()
            result = after * ratio.to(after)[(..., *[None] * len(self.size))]
        else:
            taps = prod(self.size)
            after = after * (prod(weight.shape[first:]) / taps)
            missing = (add_up(before.flatten(first), first) - add_up(after.flatten(first), first)) / taps
            result = after + missing.to(after)[(..., *[None] * len(self.size))]
        return result.to(weight.dtype)
