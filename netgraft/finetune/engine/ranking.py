"""How good an order is: average precision of classes."""

from __future__ import annotations

import torch
from torch import Tensor


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
