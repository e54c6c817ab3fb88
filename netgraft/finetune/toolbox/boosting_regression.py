"""AdaBoost.R2 and what transfer makes of it: errors, weights and votes of learners of numbers, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LOWEST_ERROR = 1e-10
"""Of a learner that makes none: its vote is finite."""


def adjusted_errors(predicted: Array, y: Array) -> Array:  # [n], [n] -> [n]
    """|y - h(x)| over the largest of them, from 0 to 1; zeros where all predictions are right."""
    errors = np.abs(y - predicted)
    largest = errors.max()
    found: Array = errors / largest if largest > 0 else errors
    return found


def share_factor(source: Array, target: Array, errors: Array, share: float) -> float:
    """beta in [0, 1] with which sum w_t / (sum w_t + sum w_s beta^e_s) is ``share``, to 1e-12, by halving.

    ``errors`` are those of the source's images. 0 where not even that gives the target so much (as e = 0 keeps its
    weight), 1 where the target has it already.
    """
    whole = target.sum()
    wanted = whole * (1 - share) / share  # what is left for the source
    low, high = 0.0, 1.0
    if (source * low**errors).sum() >= wanted:
        return low
    if source.sum() <= wanted:
        return high
    while high - low > 1e-12 * high and high > 1e-300:
        middle = (low + high) / 2
        low, high = (middle, high) if (source * middle**errors).sum() < wanted else (low, middle)
    return high


def weighted_median(predictions: Array, votes: Array) -> Array:  # [rounds, n], [rounds] -> [n]
    """For each column the smallest prediction that half of the votes do not exceed (Drucker 1997)."""
    order = predictions.argsort(axis=0, kind="stable")
    reached = votes[order].cumsum(axis=0) >= votes.sum() / 2
    chosen = order[reached.argmax(axis=0), np.arange(predictions.shape[1])]
    median: Array = predictions[chosen, np.arange(predictions.shape[1])]
    return median


@dataclass(frozen=True)
class RegressionEnsemble:
    """Learners that vote by the weighted median."""

    learners: tuple[Any, ...]
    votes: tuple[float, ...]

    def predict(self, x: Array) -> Array:  # [n, d] -> [n]
        return weighted_median(np.stack([one.predict(x) for one in self.learners]), np.array(self.votes))


def adaboost_r2(
    learn: Callable[[Array], Any],  # weights [n] -> a learner, fitted or chosen
    x: Array,  # [n, d]
    y: Array,  # [n]
    weights: Array,  # [n] at the start
    rounds: int,
    *,
    frozen: int = 0,  # so many of the first images keep their weights
) -> RegressionEnsemble:
    """AdaBoost.R2 with a linear loss: error = sum w e over all images, beta = error / (1 - error), w <- w beta^(1 - e).

    With ``frozen`` it is Pardoe and Stone's AdaBoost.R2'. The weights that change keep their sum. It ends at an error
    of one half (whose learner counts only if it is the first) and after a learner that makes no error.
    """
    weights = weights / weights.sum()
    learners: list[Any] = []
    votes: list[float] = []
    for _ in range(rounds):
        learner = learn(weights)
        errors = adjusted_errors(learner.predict(x), y)
        error = float((weights * errors).sum())
        if error >= 0.5 and learners:
            break
        beta = max(error, LOWEST_ERROR) / (1 - error) if error < 0.5 else 1.0
        learners.append(learner)
        votes.append(math.log(1 / beta) if error < 0.5 else 1.0)
        if error >= 0.5 or error < LOWEST_ERROR:
            break
        weights = _next_weights(weights, errors, beta, frozen)
    return RegressionEnsemble(tuple(learners), tuple(votes))


def _next_weights(weights: Array, errors: Array, beta: float, frozen: int) -> Array:
    free = weights[frozen:] * beta ** (1 - errors[frozen:])
    free *= weights[frozen:].sum() / free.sum()
    return np.concatenate([weights[:frozen], free])
