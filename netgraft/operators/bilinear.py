from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import computable, kernel_words, positive, resized_kernel


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

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})

    def __post_init__(self) -> None:
        positive(self.size)

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return kernel_words("bilinear", before, self.size)

    def __call__(self, weight: Tensor) -> Tensor:
        first = resized_kernel("bilinear", weight, self.size)
        if first is None:
            return weight
        exact = computable("bilinear", weight)
        result = exact.permute(*range(first, weight.ndim), *range(first)).contiguous()  # [*kernel, ...]: fast to index
        for dim, length in enumerate(self.size):
            if result.shape[dim] != length:
                result = _along(result, dim, length)
        axes = len(self.size)
        return result.to(weight.dtype).permute(*range(axes, weight.ndim), *range(axes)).contiguous()


def _along(weight: Tensor, dim: int, length: int) -> Tensor:
    last = weight.shape[dim] - 1
    centre = torch.arange(length, dtype=torch.float64) + 0.5
    x = (centre * weight.shape[dim] / length - 0.5).clamp(0, last)
    low = x.long()
    share = (x - low).to(weight).reshape(-1, *[1] * (weight.ndim - dim - 1))
    left = weight.index_select(dim, low.to(weight.device))
    right = weight.index_select(dim, (low + 1).clamp(max=last).to(weight.device))
    return right.sub_(left).mul_(share).add_(left)  # left + (right - left) * share
