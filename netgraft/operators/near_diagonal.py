from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.channels.index_map import check, indices
from netgraft.operators._checks import computable
from netgraft.operators._factors import check_rank, factors, other_side, set_rows


@dataclass(frozen=True)
class NearDiagonal:
    """Set some rows to one of two factors whose product is near a multiple of the identity.

    With Z of independent normal entries of variance 1 / d, drawn by ``seed``, and r rows of length d,

        alpha Z + beta I ~ L R^T,    L = U_r S_r^(1/2),  R = V_r S_r^(1/2),

    the singular vectors and values of the largest r. The rows are the columns of L ("left") or R ("right"), in this
    order: queries are left and keys right; values are left and the columns of the projection behind them right.
    Mimetic initialisation (Trockman and Kolter, ICML 2023, arXiv:2305.09828). ``dim`` is the axis that the
    rows lie along; all other axes together are their length. Computed in float64.
    """

    fate: ClassVar[str] = "set"

    rows: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of entries along dim, in order"})
    half: Literal["left", "right"] = field(metadata={"help": "which of the two factors"})
    alpha: float = field(metadata={"help": "scale of the random part"})
    beta: float = field(metadata={"help": "what stands on the diagonal"})
    seed: int = field(metadata={"help": "draws the random part: the same for both factors"})
    dim: int = field(default=0, metadata={"help": "axis that the rows lie along; negative counts from the end"})

    def __post_init__(self) -> None:
        check(self.rows)
        if self.half not in ("left", "right") or any(start < 0 for start, _ in self.rows):
            raise ValueError(f"half is left or right, rows start at 0 or above: {self.half}, {self.rows}")

    def __call__(self, weight: Tensor) -> Tensor:
        width, rows = other_side("near-diagonal", weight, self.dim), indices(self.rows)
        values = computable("near-diagonal", weight)
        check_rank("near-diagonal", weight, rows, width)
        both = _both(width, self.alpha, self.beta, self.seed)
        half = both[0 if self.half == "left" else 1][:, : len(rows)].T
        return set_rows("near-diagonal", values, self.dim, rows, half).to(weight.dtype)


@lru_cache(maxsize=32)
def _both(width: int, alpha: float, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return factors(alpha * noise + beta * torch.eye(width, dtype=torch.float64), width)
