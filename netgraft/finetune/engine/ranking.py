"""How good an order is: average precision of classes, and of what is searched for."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 256
"""Queries whose distances to the gallery are in memory at the same time."""


def average_precisions(scores: Tensor, labels: Tensor) -> Tensor:  # [N, K], [N, K] of 0 and 1 -> float64 [K]
    """Of each class the sum over thresholds t of (R_t - R_(t-1)) P_t, recall and precision; NaN without a positive.

    Images of equal score pass a threshold together, so that the order in which they come does not matter.
    """
    return torch.stack([_precision(s, y) for s, y in zip(scores.double().T, labels.double().T, strict=True)])


def _precision(scores: Tensor, labels: Tensor) -> Tensor:
    ordered, order = scores.sort(descending=True)
    right = labels[order]
    _, group, sizes = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0) - 1
    precision = right.cumsum(0)[ends] / (ends + 1)  # at every threshold
    found: Tensor = (precision[group] * right).sum() / right.sum()
    return found


def found_in_order(distances: Tensor, counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query ``[Q]`` the rank of its first match, and the mean precision at its matches.

    All are ``[Q, G]``: distances, what of the gallery ``counts``, and what of it is ``wanted``. Equal distances are in
    the gallery's order. Without a match the precision is NaN.
    """
    order = distances.argsort(dim=1, stable=True)
    ranks = counts.gather(1, order).cumsum(1)
    hits = wanted.gather(1, order)
    first = ranks.masked_fill(~hits, distances.shape[1] + 1).amin(1)
    precision = hits.cumsum(1).double() / ranks.clamp(min=1)
    return first, (precision * hits).sum(1) / hits.sum(1)
