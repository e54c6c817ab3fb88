from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from netgraft.errors import PlanError


@dataclass(frozen=True)
class Bilinear:
    """Interpolate the kernel axes linearly to another kernel size (HMT's filter interpolation).

    Resizes the last ``len(size)`` axes of [..., *kernel] to ``size``, one axis after the other. Position i of n_t reads
    the source at x = max((i + 1/2) n_s / n_t - 1/2, 0) and lies between the taps floor(x) and min(floor(x) + 1,
    n_s - 1): half-pixel centres, edges clamped, no antialiasing, values not rescaled (the sum over a kernel grows with
    its area). To rounding ``torch.nn.functional.interpolate(..., align_corners=False)``, but made of elementwise
    operations only, so that every machine gives the same bits, and constants stay exact. Types below float32 are
    computed in float32 and rounded once. HMT 2.3.2, which names bilinear interpolation (Figure 3) and nothing more.
    """

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ValueError(f"size must be one or more positive lengths: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        shape, first = tuple(weight.shape), weight.ndim - len(self.size)
        if first < 0:
            raise PlanError(
                f"bilinear: a tensor of shape {shape} does not have the {len(self.size)} axes of {self.size}."
            )
        if shape[first:] == self.size:
            return weight
        if 0 in shape[first:]:
            raise PlanError(f"bilinear: the kernel {shape[first:]} of {shape} is empty.")
        if not weight.is_floating_point():
            raise PlanError(f"bilinear: cannot interpolate a tensor of {weight.dtype}.", where=f"shape {shape}")
        exact = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
        result = exact.permute(*range(first, len(shape)), *range(first)).contiguous()  # [*kernel, ...]: fast to index
        for dim, length in enumerate(self.size):
            if result.shape[dim] != length:
                result = _along(result, dim, length)
        axes = len(self.size)
        return result.to(weight.dtype).permute(*range(axes, len(shape)), *range(axes)).contiguous()


def _along(weight: Tensor, dim: int, length: int) -> Tensor:
    last = weight.shape[dim] - 1
    centre = torch.arange(length, dtype=torch.float64) + 0.5
    x = (centre * weight.shape[dim] / length - 0.5).clamp(0, last)
    low = x.long()
    share = (x - low).to(weight).reshape(-1, *[1] * (weight.ndim - dim - 1))
    left = weight.index_select(dim, low.to(weight.device))
    right = weight.index_select(dim, (low + 1).clamp(max=last).to(weight.device))
    return right.sub_(left).mul_(share).add_(left)  # left + (right - left) * share
