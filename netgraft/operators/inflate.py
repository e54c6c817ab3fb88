from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import computable


@dataclass(frozen=True)
class Inflate:
    """Give a kernel one more axis, such as time: a 2D convolution becomes a 3D one.

    [out, in, h, w] becomes [out, in, T, h, w] with ``dim=2`` and ``size=T``. ``mean``: every slice is w / T, exact on
    inputs constant along the new axis (a still video; away from zero padding along it); ``centre``: slice
    (T - 1) // 2 is w and the others zero, exact frame by frame with ``padding="same"``, any dtype. ``mean`` computes
    types below float32 in float32 and rounds once. I3D (arXiv:1705.07750); OPERATORS D9.
    """

    fate: ClassVar[str] = "stacked"

    size: int = field(metadata={"help": "length of the new axis"})
    dim: int = field(default=2, metadata={"help": "place of the new axis in the result; negative counts from the end"})
    mode: Literal["mean", "centre"] = field(default="mean", metadata={"help": "every slice alike, or one slice"})

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1: {self.size}")
        if self.mode not in ("mean", "centre"):
            raise ValueError(f"mode must be mean or centre: {self.mode}")

    def laid_out(self, shape: Shape) -> Shape:
        dim = self.dim % (len(shape) + 1)
        return (*shape[:dim], self.size, *shape[dim:])

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"inflate to {'x'.join(map(str, self.laid_out(before)[2:]))}"

    def __call__(self, weight: Tensor) -> Tensor:
        if not -weight.ndim - 1 <= self.dim <= weight.ndim:
            raise PlanError(f"inflate: a tensor of shape {tuple(weight.shape)} has no place for an axis {self.dim}.")
        dim = self.dim % (weight.ndim + 1)
        if self.size == 1:
            return weight.unsqueeze(dim)
        shape = (*weight.shape[:dim], self.size, *weight.shape[dim:])
        if self.mode == "mean":
            part = (computable("inflate", weight) / self.size).to(weight.dtype)
            return part.unsqueeze(dim).expand(shape).contiguous()
        result = weight.new_zeros(shape)
        result.select(dim, (self.size - 1) // 2).copy_(weight)
        return result
