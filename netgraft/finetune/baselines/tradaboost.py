"""TrAdaBoost with its vote, over any classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from netgraft.finetune.baselines._checks import Array, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._learners import fitted
from netgraft.finetune.toolbox.boosting import reweighted, source_factor

LOWEST_FACTOR = 1e-10
"""beta_t of a round without error: its vote is finite."""


@dataclass
class TrAdaBoostVote:
    """Source images that are taken wrongly lose weight from round to round; the later half of the learners vote.

    The weights are those of ``--method tradaboost``. The class of x is the one with the largest
    sum over t = N/2 .. N of log(1 / beta_t) [h_t(x) = class], N/2 rounded up.

    Dai, Yang, Xue and Yu, "Boosting for transfer learning", ICML 2007.

    Departs from the paper: any number of classes; an error above 0.49 is taken for 0.49.
    """

    base: Any = field(metadata={"help": "an estimator with fit(x, y, sample_weight) and predict(x)"})
    rounds: int = field(default=10, metadata={"help": "N"})

    category: ClassVar[str] = "instances"

    def fit(self, source: ArrayLike, source_y: ArrayLike, target: ArrayLike, target_y: ArrayLike) -> TrAdaBoostVote:
        """Boost on features ``[n_s, d]``, ``[n_t, d]`` and their labels. Raises UsageError."""
        at_least(1, rounds=self.rounds)
        both_domains(source, target)
        (x_s, y_s), (x_t, y_t) = labelled(source, source_y, "source"), labelled(target, target_y, "target")
        x, y, n = np.concatenate([x_s, x_t]), np.concatenate([y_s, y_t]), len(x_s)
        self.classes_ = np.unique(y)
        weights = np.full(len(x), 1 / len(x))
        self.learners_: list[Any] = []
        factors = []
        for _ in range(self.rounds):
            learner = fitted(self.base, x, y, weights)
            wrong = (learner.predict(x) != y).astype(float)
            new = reweighted(weights[:n], weights[n:], wrong[:n], wrong[n:], source_factor(n, self.rounds))
            weights = np.concatenate([new.source, new.target])
            self.learners_.append(learner)
            factors.append(float(new.factor))
        self.weights_ = weights
        self.votes_: Sequence[float] = [math.log(1 / max(factor, LOWEST_FACTOR)) for factor in factors]
        return self

    def predict(self, x: ArrayLike) -> Array:  # [n, d] -> [n]
        """The class of each image."""
        rows, first = features(x, "features"), math.ceil(self.rounds / 2) - 1
        score = np.zeros((len(rows), len(self.classes_)))
        for learner, vote in zip(self.learners_[first:], self.votes_[first:], strict=True):
            score += vote * (learner.predict(rows)[:, None] == self.classes_)
        found: Array = self.classes_[score.argmax(axis=1)]
        return found
