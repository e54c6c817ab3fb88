"""A distribution over classes for each class, instead of one class alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftLabels(nn.Module):
    """A distribution over classes for each class, ``each`` [K, K]; a row of zeros where there is none."""

    each: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("each", torch.zeros(classes, classes))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:  # [B, K], [B]
        """The mean cross-entropy of the labels' distributions with the logits'; a scalar."""
        return -(self.each[labels] * logits.log_softmax(1)).sum(1).mean()
