from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from netgraft.operators._checks import computable, kernel_start
from netgraft.operators._taps import cubic, resample


@dataclass(frozen=True)
class Bicubic:
    """Interpolate the kernel axes cubically to another kernel size.

    Resizes the last ``len(size)`` axes of [..., *kernel] to ``size``, one axis after the other: half-pixel centres,
    edges clamped, values not rescaled (the sum over a kernel grows with its area). Without ``antialias`` Keys' kernel
    with a = -3/4, with it a = -1/2 widened by the reduction: to rounding
    ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=...)``, on any number of axes.
    Types below float32 are computed in float32 and rounded once. Keys 1981.
    """

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})
    antialias: bool = field(default=False, metadata={"help": "smooth before reducing"})

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ValueError(f"size must be one or more positive lengths: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        first = weight.ndim - len(self.size)
        if first >= 0 and tuple(weight.shape[first:]) == self.size:
            return weight
        first = kernel_start("bicubic", weight, len(self.size))
        lengths = zip(weight.shape[first:], self.size, strict=True)
        matrices = [cubic(old, new, self.antialias) if old != new else None for old, new in lengths]
        return resample(computable("bicubic", weight), first, matrices).to(weight.dtype)
