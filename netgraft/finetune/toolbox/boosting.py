"""How boosting between two data sets changes the weights of their images: plain arithmetic of arrays or tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

HIGHEST_ERROR = 0.49
"""Of a round: above one half a factor would turn the other way round."""


class Reweighted(NamedTuple):
    """The weights of the next round, all of them of sum 1, and what this round was."""

    source: Any  # [n_s]
    target: Any  # [n_t]
    error: Any  # weighted, on the target's images, before it is cut to HIGHEST_ERROR
    factor: Any  # beta_t: the round's vote counts log(1 / beta_t)


def source_factor(images: int, rounds: int) -> float:
    """beta = 1 / (1 + sqrt(2 ln n_s / N)), what a source image's weight is multiplied by when it is taken wrongly."""
    return 1 / (1 + math.sqrt(2 * math.log(images) / rounds))


def reweighted(
    source: Any,  # [n_s] weights, at least 0
    target: Any,  # [n_t]
    source_wrong: Any,  # [n_s] how wrong this round's network is on each image, |h(x) - y| from 0 to 1
    target_wrong: Any,  # [n_t]
    beta: float,
) -> Reweighted:
    """TrAdaBoost's step (Dai et al. 2007).

    error = sum_t w |h - y| / sum_t w,  beta_t = error / (1 - error),
    w_s <- w_s beta^|h - y|,  w_t <- w_t beta_t^-|h - y|;  then all weights are divided by their sum.
    """
    error = (target * target_wrong).sum() / target.sum()
    cut = error.clip(max=HIGHEST_ERROR)
    factor = cut / (1 - cut)
    # No image is wrong where the error is 0, and then no weight changes: 0 to the power of -0 is 1.
    source, target = source * beta**source_wrong, target * factor ** (-target_wrong)
    whole = source.sum() + target.sum()
    return Reweighted(source / whole, target / whole, error, factor)
