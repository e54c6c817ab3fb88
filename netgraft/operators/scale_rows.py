from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import along, computable, per_row


@dataclass(frozen=True)
class ScaleRows:
    """Multiply each row by a number of the source, as a layer scale behind a layer does with what it puts out.

    gamma (W x + b) = (gamma W) x + gamma b: for a target that has no layer scale there. CaiT, arXiv:2103.17239.
    """

    fate: ClassVar[str] = "stacked"

    by: str = field(metadata={"help": "key of the source's tensor with one number per row"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "layer scale multiplied in"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        factors = per_row("scale-rows", weight, source, self.by, "numbers")
        values = computable("scale-rows", weight)
        return (values * along(factors, 0, values)).to(weight.dtype)
