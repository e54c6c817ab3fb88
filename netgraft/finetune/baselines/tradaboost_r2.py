"""Two-stage TrAdaBoost.R2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from netgraft.finetune.baselines._checks import Array, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._learners import fitted
from netgraft.finetune.toolbox.boosting_regression import (
    RegressionEnsemble,
    adaboost_r2,
    adjusted_errors,
    share_factor,
)


@dataclass
class TwoStageTrAdaBoostR2:
    """Regression on both domains: the source's weight falls in steps, and each step boosts the target's images alone.

    Step t = 1 .. S: model_t by AdaBoost.R2', in which the source's weights are frozen; its error by cross-validation
    on the target; then w_s <- w_s beta^e, e = |y - h(x)| / max |y - h(x)| of a learner h with the weights as they are,
    and beta such that the target's share is m / (n + m) + t / (S - 1) (1 - m / (n + m)). The model of the least error
    is kept.

    Pardoe and Stone, "Boosting for regression transfer", ICML 2010.

    Departs from the paper: learners take weights instead of drawing images by them; in AdaBoost.R2' the target's
    weights keep their sum, as the source's must; the error is the mean squared error.
    """

    base: Any = field(metadata={"help": "an estimator with fit(x, y, sample_weight) and predict(x)"})
    steps: int = field(default=10, metadata={"help": "S: how often the source's weight falls"})
    rounds: int = field(default=10, metadata={"help": "N: of boosting in each step"})
    folds: int = field(default=5, metadata={"help": "F: of the cross-validation on the target"})
    seed: int = field(default=0, metadata={"help": "of the folds"})

    category: ClassVar[str] = "instances"

    def fit(
        self, source: ArrayLike, source_y: ArrayLike, target: ArrayLike, target_y: ArrayLike
    ) -> TwoStageTrAdaBoostR2:
        """Boost on features ``[n, d]``, ``[m, d]`` and their numbers. Raises UsageError."""
        at_least(1, rounds=self.rounds)
        at_least(2, steps=self.steps, folds=self.folds)
        both_domains(source, target)
        (x_s, y_s), (x_t, y_t) = labelled(source, source_y, "source"), labelled(target, target_y, "target")
        at_least(self.folds, images_of_the_target=len(x_t))
        x, y, n = np.concatenate([x_s, x_t]), np.concatenate([y_s, y_t]).astype(float), len(x_s)
        order = np.random.default_rng(self.seed).permutation(len(x_t)) + n
        held_out = np.array_split(order, self.folds)
        weights, first = np.full(len(x), 1 / len(x)), len(x_t) / len(x)
        models, self.errors_, self.shares_ = [], [], []
        for step in range(1, self.steps + 1):
            self.shares_.append(float(weights[n:].sum()))
            models.append(self._boosted(x, y, weights, n))
            self.errors_.append(self._error(x, y, weights, n, held_out))
            if step < self.steps:
                errors = adjusted_errors(fitted(self.base, x, y, weights).predict(x), y)[:n]
                share = first + step / (self.steps - 1) * (1 - first)
                beta = share_factor(weights[:n], weights[n:], errors, share)
                weights = np.concatenate([weights[:n] * beta**errors, weights[n:]])
                weights /= weights.sum()
        self.step_ = int(np.argmin(self.errors_))
        self.model_ = models[self.step_]
        return self

    def predict(self, x: ArrayLike) -> Array:  # [k, d] -> [k]
        return self.model_.predict(features(x, "features"))

    def _boosted(self, x: Array, y: Array, weights: Array, frozen: int) -> RegressionEnsemble:
        return adaboost_r2(lambda w: fitted(self.base, x, y, w), x, y, weights, self.rounds, frozen=frozen)

    def _error(self, x: Array, y: Array, weights: Array, n: int, held_out: list[Array]) -> float:
        """The mean squared error on the target's images, each by a model that has not seen it."""
        squares = np.empty(len(x) - n)
        for fold in held_out:
            rest = np.setdiff1d(np.arange(len(x)), fold)
            model = self._boosted(x[rest], y[rest], weights[rest], n)
            squares[fold - n] = (model.predict(x[fold]) - y[fold]) ** 2
        return float(squares.mean())
