from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.channels.index_map import check, indices
from netgraft.operators._checks import computable
from netgraft.operators._factors import check_rank, factors, other_side, set_rows, sinusoids

CUTOFF = 0.03
"""Directions of the positions with singular values below this share of the largest are not read: they would need large
weights, and noise in the tokens would be multiplied by these."""


@dataclass(frozen=True)
class Impulse:
    """Set some rows to queries or keys by which each token of a grid reads the token one tap away.

    With X [n, d] sinusoidal positions behind a norm, H [n, n] the impulse (1 where token j is token i plus the tap),
    each of its rows less its mean, and r rows, the queries Q and keys K [r, d] minimise

        || X Q^T K X^T - H ||_F,    rank r,

    in closed form: with X = A D B^T on the directions that count, and U S V^T the best rank-r approximation of
    A^T H A, Q^T = B D^-1 U S^(1/2) R and K^T = B D^-1 V S^(1/2) R. R has random orthonormal rows, so that no row of Q
    and K is zero, and cancels. A softmax does not see a row's mean; without one a token in front of the grid, whose
    key is zero, draws no more than an average token. Last, both are scaled so that the logit of the tap is on average
    ``sharpness`` above the mean of all logits of its token. After Zheng et al. (arXiv:2404.01139), who fit Q and K
    through the softmax by Adam.
    """

    fate: ClassVar[str] = "set"

    rows: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of entries along dim, in order"})
    half: Literal["query", "key"] = field(metadata={"help": "which of the two"})
    side: int = field(metadata={"help": "tokens along one side of the grid"})
    tap: tuple[int, int] = field(metadata={"help": "the token that is read: rows down, columns to the right"})
    scale: float = field(metadata={"help": "what the network multiplies products of queries and keys with"})
    sharpness: float = field(default=10.0, metadata={"help": "the tap's logit over the mean logit"})
    centred: bool = field(default=True, metadata={"help": "the norm takes the mean over channels away"})
    temperature: float = field(default=1e4, metadata={"help": "one over the lowest frequency of the positions"})
    seed: int = field(default=0, metadata={"help": "draws the rotation: the same for both halves"})
    dim: int = field(default=0, metadata={"help": "axis that the rows lie along; negative counts from the end"})

    def __post_init__(self) -> None:
        check(self.rows)
        if self.half not in ("query", "key") or any(start < 0 for start, _ in self.rows):
            raise ValueError(f"half is query or key, rows start at 0 or above: {self.half}, {self.rows}")
        if not (self.scale > 0 and self.sharpness > 0 and self.temperature > 1):
            raise ValueError("scale and sharpness are positive, temperature is above 1")
        if self.side < 2 or len(self.tap) != 2 or max(map(abs, self.tap)) >= self.side:
            raise ValueError(f"no token of a grid of side {self.side} has one at {self.tap} from it")

    def __call__(self, weight: Tensor) -> Tensor:
        width, rows = other_side("impulse", weight, self.dim), indices(self.rows)
        values = computable("impulse", weight)
        check_rank("impulse", weight, rows, width)
        both = _both(
            width, len(rows), self.side, self.tap, self.scale, self.sharpness, self.centred, self.temperature, self.seed
        )
        half = both[0 if self.half == "query" else 1]
        return set_rows("impulse", values, self.dim, rows, half.T).to(weight.dtype)


@lru_cache(maxsize=32)
def _both(
    width: int,
    rank: int,
    side: int,
    tap: tuple[int, int],
    scale: float,
    sharpness: float,
    centred: bool,
    temperature: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """[width, rank] each: queries and keys, transposed."""
    tokens = normed(sinusoids(side, width, temperature), centred)
    impulse = shift(side, tap)
    read, made_of = _directions(tokens)
    left, right = factors(read.T @ (impulse - impulse.mean(1, keepdim=True)) @ read, rank)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(rank, left.shape[1], generator=generator, dtype=torch.float64))[0].T
    queries, keys = made_of @ left @ turn, made_of @ right @ turn
    logits = tokens @ queries @ keys.T @ tokens.T
    inside = impulse.sum(1) > 0
    above = ((logits * impulse).sum(1) - logits.mean(1))[inside].mean()
    root = (sharpness / (scale * above)).sqrt()
    return queries * root, keys * root


def normed(
    tokens: Tensor,  # [n, width]
    centred: bool,
) -> Tensor:
    """Each token as a LayerNorm, or without ``centred`` an RMSNorm, leaves it before its weights."""
    tokens = tokens - tokens.mean(1, keepdim=True) if centred else tokens
    return tokens / tokens.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)


def shift(side: int, tap: tuple[int, int]) -> Tensor:
    """[side^2, side^2]: 1 where the second token is the first plus the tap; a row of zeros where that is outside."""
    down, right = (torch.ones(side - abs(step), dtype=torch.float64).diag(step) for step in tap)
    return torch.kron(down, right)


def _directions(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """[n, k] and [width, k]: an orthonormal basis of what the tokens hold, and what makes it of them."""
    left, values, right = torch.linalg.svd(tokens, full_matrices=False)
    kept = int((values > CUTOFF * values[0]).sum())
    return left[:, :kept], right[:kept].T / values[:kept]
