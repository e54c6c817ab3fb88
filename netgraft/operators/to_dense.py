from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import axis


@dataclass(frozen=True)
class ToDense:
    """Write a grouped or depthwise convolution as a dense one with zeros between the groups.

    [out, in/g, *kernel] becomes [out, in, *kernel], block-diagonal in its first two axes: the same function, exactly.
    A transposed convolution's [in, out/g, *kernel] becomes [in, out, *kernel] the same way. Any dtype. Undone by
    ``to-grouped``.
    """

    fate: ClassVar[str] = "stacked"

    groups: int = field(metadata={"help": "number of groups of the source layer"})

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1: {self.groups}")

    def laid_out(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] * self.groups, *shape[2:])

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"{self.groups} groups as one"

    def __call__(self, weight: Tensor) -> Tensor:
        axis("to-dense", weight, 1)
        rows, columns = weight.shape[:2]
        if rows % self.groups:
            raise PlanError(f"to-dense: axis 0 of {tuple(weight.shape)} does not split into {self.groups} groups.")
        if self.groups == 1:
            return weight
        result = weight.new_zeros((rows, columns * self.groups, *weight.shape[2:]))
        for group, block in enumerate(weight.tensor_split(self.groups)):
            result.narrow(0, group * len(block), len(block)).narrow(1, group * columns, columns).copy_(block)
        return result
