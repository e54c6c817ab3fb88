from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import add_up, axis, computable


@dataclass(frozen=True)
class Deflate:
    """Sum a kernel over one axis and drop the axis: a 3D convolution becomes 2D, a 2D one 1D.

    [out, in, T, h, w] becomes [out, in, h, w] with ``dim=2``: the same answer to inputs constant along that axis (a
    still video; away from zero padding along it). Summed in float64 and rounded once. Undoes ``inflate``.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(default=2, metadata={"help": "axis to drop; negative counts from the end"})

    def laid_out(self, shape: Shape) -> Shape:
        dim = self.dim % len(shape)
        return (*shape[:dim], *shape[dim + 1 :])

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"deflate from {'x'.join(map(str, before[2:]))}"

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("deflate", weight, self.dim)
        if weight.shape[dim] == 0:
            raise PlanError(f"deflate: axis {dim} of {tuple(weight.shape)} is empty.")
        if weight.shape[dim] == 1:
            return weight.squeeze(dim)
        return add_up(computable("deflate", weight), dim).to(weight.dtype)
