from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import axis


@dataclass(frozen=True)
class Transpose:
    """Exchange two axes, such as the [in, out] of GPT-2's Conv1D for the [out, in] of a linear layer.

    With ``flip`` the order of every other axis is reversed: a convolution [out, in, *kernel] becomes the transposed
    convolution [in, out, *kernel] that computes the same at stride 1 with padding dilation * (k - 1) - p, and back.
    (The adjoint of a convolution, by contrast, is the transposed convolution with the very same tensor.) Any dtype; the
    result is a view where nothing is flipped. Undone by itself.
    """

    fate: ClassVar[str] = "exact"

    dim0: int = field(default=0, metadata={"help": "one axis; negative counts from the end"})
    dim1: int = field(default=1, metadata={"help": "the axis it changes places with"})
    flip: bool = field(default=False, metadata={"help": "reverse all other axes, which are the kernel's"})

    def laid_out(self, shape: Shape) -> Shape:
        axes = list(shape)
        axes[self.dim0], axes[self.dim1] = axes[self.dim1], axes[self.dim0]
        return tuple(axes)

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "transpose"

    def __call__(self, weight: Tensor) -> Tensor:
        first, second = axis("transpose", weight, self.dim0), axis("transpose", weight, self.dim1)
        result = weight.transpose(first, second) if first != second else weight
        others = [dim for dim in range(weight.ndim) if dim not in (first, second)]
        return result.flip(others) if self.flip and others else result
