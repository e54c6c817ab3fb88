from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import computable, kernel_words, positive, resized_kernel
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

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})
    antialias: bool = field(default=False, metadata={"help": "smooth before reducing"})

    def __post_init__(self) -> None:
        positive(self.size)

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return kernel_words("bicubic", before, self.size)

    def __call__(self, weight: Tensor) -> Tensor:
        first = resized_kernel("bicubic", weight, self.size)
        if first is None:
            return weight
        lengths = zip(weight.shape[first:], self.size, strict=True)
        matrices = [cubic(old, new, self.antialias) if old != new else None for old, new in lengths]
        return resample(computable("bicubic", weight), first, matrices).to(weight.dtype)
