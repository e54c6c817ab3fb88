from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.channels.index_map import check
from netgraft.errors import PlanError
from netgraft.operators._checks import axis, entries


@dataclass(frozen=True)
class Fill:
    """Replace every value by one constant, such as the zero last layer of an inserted block.

    With ``rows`` only those of these entries along axis 0, as the biases of the queries in a fused projection.
    Same shape and dtype; a constant that an integer type cannot hold is refused. OPERATORS D7: a residual block whose
    last affine is zero is the identity.
    """

    fate: ClassVar[str] = "set"

    value: float = field(metadata={"help": "what every value becomes"})
    rows: tuple[tuple[int, int], ...] | None = field(
        default=None, metadata={"help": "runs (start, count) of entries along axis 0; none: all"}
    )

    def __post_init__(self) -> None:
        if any(start < 0 for start, _ in check(self.rows or ())):
            raise ValueError(f"rows start at 0 or above: {self.rows}")

    def __call__(self, weight: Tensor) -> Tensor:
        result = torch.full_like(weight, self.value)
        if not weight.is_floating_point() and torch.full((), self.value, dtype=weight.dtype).item() != self.value:
            raise PlanError(f"fill: {weight.dtype} cannot hold {self.value}.", where=f"shape {tuple(weight.shape)}")
        if self.rows is None:
            return result
        rows = entries("fill", weight, axis("fill", weight, 0), self.rows)
        some = weight.clone()
        some[rows] = result[rows]
        return some
