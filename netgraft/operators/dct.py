from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import pi, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import computable, positive


@dataclass(frozen=True)
class Dct:
    """Cut or pad the frequencies of a tensor along every axis whose length changes.

    Along an axis of length n that becomes m, with C_n the orthonormal DCT-II [frequency, place] and k = min(n, m),

        w' = g C_m[:k]^T C_n[:k] w.

    The k lowest frequencies stay and missing ones are zero (FRONT, arXiv:2603.07523). With g = sqrt(m / n) a constant
    stays the same constant; with g = 1 what is padded keeps its sum of squares. Axes of equal length are left alone.
    ``floor`` lifts what falls below the smallest value of the source to it: a variance must not ring below zero.
    Computed in float64, rounded to float32, then to a smaller type.
    """

    fate: ClassVar[str] = "stacked"

    size: tuple[int, ...] = field(metadata={"help": "the shape of the result"})
    keep: Literal["constant", "energy"] = field(
        default="constant", metadata={"help": "what the scale preserves: a constant tensor, or the sum of squares"}
    )
    floor: bool = field(default=False, metadata={"help": "nothing below the smallest value of the source"})

    def __post_init__(self) -> None:
        positive(self.size)
        if self.keep not in ("constant", "energy"):
            raise ValueError(f"keep is constant or energy: {self.keep}")

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        """As the shapes stand beside it, only what is done to them."""
        return "low frequencies" if self.keep == "constant" else "low frequencies, sum of squares"

    def __call__(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        if shape == self.size:
            return weight
        if len(shape) != len(self.size) or 0 in shape:
            raise PlanError(f"dct: a tensor of shape {shape} cannot become one of {self.size}.")
        values = computable("dct", weight)
        result = values.double()
        for dim, (before, after) in enumerate(zip(shape, self.size, strict=True)):
            if before != after:
                matrix = _resampled(before, after, self.keep == "constant").to(result.device)
                result = torch.tensordot(matrix, result, ([1], [dim])).movedim(0, dim)
        if self.floor:
            result = result.clamp(min=values.min().double())
        return result.to(values.dtype).to(weight.dtype)


@lru_cache(maxsize=64)
def _resampled(before: int, after: int, constant: bool) -> Tensor:
    """[after, before]: from places to the frequencies that both have, and back to places."""
    kept = min(before, after)
    matrix = _transform(after)[:kept].T @ _transform(before)[:kept]
    return matrix * sqrt(after / before) if constant else matrix


def _transform(length: int) -> Tensor:
    """[frequency, place]: the orthonormal DCT-II."""
    places = torch.arange(length, dtype=torch.float64)
    matrix = torch.cos(pi / length * (places + 0.5) * places[:, None]) * sqrt(2 / length)
    matrix[0] /= sqrt(2)
    return matrix
