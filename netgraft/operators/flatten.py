from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError


@dataclass(frozen=True)
class Flatten:
    """Merge neighbouring axes into one, such as channels and positions into a linear layer's flattened input.

    [n, C, H, W] becomes [n, C*H*W] with ``dim=1`` and ``ndim=3``, in ``torch.flatten``'s order (the last axis runs
    fastest). No value changes, any dtype; the result is a view where the memory allows it. Undone by ``unflatten``.
    """

    fate: ClassVar[str] = "exact"

    dim: int = field(metadata={"help": "first axis to merge; negative counts from the end"})
    ndim: int = field(metadata={"help": "number of axes to merge"})

    def __post_init__(self) -> None:
        if self.ndim < 1:
            raise ValueError(f"ndim must be at least 1: {self.ndim}")

    def laid_out(self, shape: Shape) -> Shape:
        dim = self.dim % len(shape)
        return (*shape[:dim], prod(shape[dim : dim + self.ndim]), *shape[dim + self.ndim :])

    def __call__(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        dim = self.dim % len(shape) if -len(shape) <= self.dim < len(shape) else len(shape)
        if dim + self.ndim > len(shape):
            raise PlanError(f"flatten: {shape} does not have {self.ndim} axes from axis {self.dim} on.")
        return weight.reshape(*shape[:dim], prod(shape[dim : dim + self.ndim]), *shape[dim + self.ndim :])
