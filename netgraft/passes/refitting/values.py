"""What the heads of an attention are to carry, where what they look at is settled: their values, fitted.

With weights A_h, values V_h x and an output projection P_h, an attention gives the sum over heads of P_h V_h (A_h x).
Where A_h does not depend on the values, W_h = P_h V_h is a regression on A_h x, and its best directions, as many as a
head has channels, are the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from netgraft.passes.refitting.heads import Heads
from netgraft.passes.refitting.moments import gathered, ridge_regression

MOST_NUMBERS = 100_000_000
"""Positions times features that are held at a time."""
LEAST = 1e-4
"""Directions with a smaller share of the largest variance are not told apart from noise."""


@dataclass(frozen=True)
class AimedAttention:
    """An attention whose queries and keys look where they are to look; its values are free."""

    query: str  # layers
    key: str
    value: str
    heads: Heads
    data: tuple[int, ...]  # the input channels that values may read


@dataclass
class PreparedLayers:
    """What was set in the target before it is refitted, and is to stay so."""

    held: dict[str, tuple[int, ...]] = field(default_factory=dict)  # output channels, by layer
    attentions: list[AimedAttention] = field(default_factory=list)


def seen_by_heads(
    x: Tensor,  # [B, tokens, channels]: what queries and keys are made from
    looks: Sequence[tuple[Tensor, Tensor]],  # per head, what makes queries and keys of x: [c, channels] each
    scale: float,  # of their product
    rows: Tensor,  # of B x tokens
    data: Sequence[int],
) -> list[Tensor]:
    """Per head A_h x at ``rows``: [len(rows), len(data)]."""
    found = []
    for query, key in looks:
        weights = ((x @ query.T) @ (x @ key.T).transpose(1, 2) * scale).softmax(-1)
        found.append((weights @ x[..., list(data)]).flatten(0, 1)[rows])
    return found


def best_values(
    seen: Sequence[Tensor],  # per head, [rows, channels]: A_h x
    wanted: Tensor,  # [rows, out]
    fitted: Tensor,  # [rows] bool: the rows that are fitted on
    count: int,  # values of each head
) -> tuple[list[Tensor], float]:
    """Per head V_h [count, channels], whose values have variance 1, and the R^2 of the regression behind them.

    R^2 is that on the rows that were not fitted on.

    What W_h is worth shows in what it makes of A_h x. So its singular vectors are taken in the metric of the covariance
    C_h of A_h x: those of W_h C_h^(1/2), brought back by C_h^(-1/2).
    """
    x, found = torch.cat(list(seen), 1), []
    solution = ridge_regression(gathered([(x[fitted], wanted[fitted])], intercept=True))
    for part, weight in zip(seen, solution.weight.split(seen[0].shape[1], 1), strict=True):
        part = part[fitted]
        centred = (part - part.mean(0)).double()
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(part))
        largest = float(variances.max().clamp(min=1e-12))
        root = (axes * variances.clamp(min=0).sqrt()) @ axes.T
        back = (axes / variances.clamp(min=LEAST * largest).sqrt()) @ axes.T
        _, _, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
        values = torch.zeros(count, part.shape[1], dtype=torch.float64, device=part.device)
        values[: len(right[:count])] = right[:count] @ back
        found.append(values.float())
    return found, solution.r2(x[~fitted], wanted[~fitted])
