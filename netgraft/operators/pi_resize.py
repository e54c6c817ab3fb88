from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import computable, kernel_words, positive, resized_kernel
from netgraft.operators._taps import cubic, dual, linear, resample


@dataclass(frozen=True)
class PiResize:
    """Resize a patch embedding so that it answers a resized patch as before (FlexiViT's pseudo-inverse resize).

    The last ``len(size)`` axes of [..., *kernel] become ``size``. With B the matrix that resizes a patch x to x' = B x,
    the result is the w' = (B^T)^+ w that minimises E (<x, w> - <B x, w'>)^2 for white x; where the patch grows B has
    full column rank and the two products are equal. B is a product of one matrix per axis, and so is its
    pseudo-inverse. Meant for layers whose stride is their kernel: there the receptive field grows with the image. (An
    image resized as a whole also mixes neighbouring patches at their borders, which no kernel can undo.) Types below
    float32 are computed in float32 and rounded once. FlexiViT (arXiv:2212.08013); OPERATORS D4 (v).
    """

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "patch size of the result, such as 32,32"})
    interpolation: Literal["bicubic", "bilinear"] = field(
        default="bicubic", metadata={"help": "how the patch is thought to be resized"}
    )
    antialias: bool = field(default=True, metadata={"help": "whether the patch is smoothed when it shrinks"})

    def __post_init__(self) -> None:
        positive(self.size)
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation must be bicubic or bilinear: {self.interpolation}")

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return kernel_words("pi-resize", before, self.size)

    def __call__(self, weight: Tensor) -> Tensor:
        first = resized_kernel("pi-resize", weight, self.size)
        if first is None:
            return weight
        build = cubic if self.interpolation == "bicubic" else linear
        lengths = zip(weight.shape[first:], self.size, strict=True)
        matrices = [dual(build(old, new, self.antialias)) if old != new else None for old, new in lengths]
        return resample(computable("pi-resize", weight), first, matrices).to(weight.dtype)
