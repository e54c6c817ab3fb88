from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import computable, per_row


@dataclass(frozen=True)
class WeightNorm:
    """Make a plain weight of a weight-normalised one: w = g v / ||v||, with one g per row.

    The tensor is the direction v ``[out, ...]``, ``magnitude`` the source's key of g ``[out, 1, ...]``. Salimans and
    Kingma, arXiv:1602.07868. Undone by ``row-norm`` for g and a copy for v.
    """

    fate: ClassVar[str] = "exact"

    magnitude: str = field(metadata={"help": "key of the source's magnitudes g"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "weight norm multiplied out"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        magnitude = per_row("weight-norm", weight, source, self.magnitude, "magnitudes")
        values = computable("weight-norm", weight)
        directions = values.flatten(1)
        lengths = directions.norm(dim=1)
        scaled: Tensor = directions * (magnitude.to(values) / lengths)[:, None]
        return scaled.reshape(weight.shape).to(weight.dtype)
