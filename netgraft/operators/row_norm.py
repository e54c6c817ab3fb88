from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import computable


@dataclass(frozen=True)
class RowNorm:
    """Take the length of each row, ``[out, ...]`` to ``[out, 1, ...]``: the magnitudes g of a weight norm of w.

    Salimans and Kingma, arXiv:1602.07868: with g = ||w|| and v = w the layer computes what it did with w.
    """

    fate: ClassVar[str] = "exact"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "lengths of the rows"

    def __call__(self, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            raise PlanError(f"row-norm: a tensor of shape {tuple(weight.shape)} has no rows.")
        values = computable("row-norm", weight)
        lengths: Tensor = values.flatten(1).norm(dim=1)
        return lengths.reshape(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)
