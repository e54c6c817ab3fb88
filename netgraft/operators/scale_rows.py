from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import along, computable


@dataclass(frozen=True)
class ScaleRows:
    """Multiply each row by a number of the source, as a layer scale behind a layer does with what it puts out.

    gamma (W x + b) = (gamma W) x + gamma b: for a target that has no layer scale there. CaiT, arXiv:2103.17239, Eq. 3.
    """

    fate: ClassVar[str] = "stacked"

    by: str = field(metadata={"help": "key of the source's tensor with one number per row"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "layer scale multiplied in"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        factors, rows = source.get(self.by), weight.shape[0] if weight.ndim else 0
        if factors is None or factors.numel() != rows or not rows:
            raise PlanError(f"scale-rows: the source has no {self.by} with {rows} numbers, one per row.")
        values = computable("scale-rows", weight)
        return (values * along(factors.to(values).flatten(), 0, values)).to(weight.dtype)
