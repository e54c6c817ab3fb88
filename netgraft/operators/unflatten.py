from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError


@dataclass(frozen=True)
class Unflatten:
    """Split one axis into several, such as a linear layer's flattened input into channels and positions.

    [n, C*H*W] becomes [n, C, H, W] with ``dim=1`` and ``shape=(C, H, W)``, in ``torch.flatten``'s order (the last axis
    runs fastest). No value changes, any dtype; the result is a view where the memory allows it. Undone by ``flatten``.
    """

    fate: ClassVar[str] = "exact"

    dim: int = field(metadata={"help": "axis to split; negative counts from the end"})
    shape: tuple[int, ...] = field(metadata={"help": "the axes it becomes, such as 64,7,7"})

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 0:
            raise ValueError(f"shape must be one or more lengths: {self.shape}")

    def laid_out(self, shape: Shape) -> Shape:
        dim = self.dim % len(shape)
        return (*shape[:dim], *self.shape, *shape[dim + 1 :])

    def __call__(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        if not -len(shape) <= self.dim < len(shape):
            raise PlanError(f"unflatten: a tensor of shape {shape} has no axis {self.dim}.")
        dim = self.dim % len(shape)
        if shape[dim] != prod(self.shape):
            raise PlanError(f"unflatten: axis {self.dim} of {shape} does not split into {self.shape}.")
        return weight.reshape(*shape[:dim], *self.shape, *shape[dim + 1 :])
