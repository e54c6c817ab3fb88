from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import axis


@dataclass(frozen=True)
class ToGrouped:
    """Keep the diagonal blocks of a dense convolution as a grouped or depthwise one.

    [out, in, *kernel] becomes [out, in/g, *kernel]: output group i keeps what it reads from input group i. Exact where
    the dropped blocks are zero, so the left inverse of ``to-dense``. Any dtype.
    """

    fate: ClassVar[str] = "stacked"

    groups: int = field(metadata={"help": "number of groups of the target layer"})

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1: {self.groups}")

    def laid_out(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] // self.groups, *shape[2:])

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"the blocks of {self.groups} groups"

    def __call__(self, weight: Tensor) -> Tensor:
        axis("to-grouped", weight, 1)
        if weight.shape[0] % self.groups or weight.shape[1] % self.groups:
            raise PlanError(
                f"to-grouped: axes 0 and 1 of {tuple(weight.shape)} do not both split into {self.groups} groups."
            )
        if self.groups == 1:
            return weight
        rows = weight.tensor_split(self.groups)
        return torch.cat([part.tensor_split(self.groups, dim=1)[group] for group, part in enumerate(rows)])
