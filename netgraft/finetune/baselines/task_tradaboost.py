"""TaskTrAdaBoost: several sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._learners import fitted

LOWEST_ERROR = 1e-10
"""Of a learner that makes none: its vote is finite."""


@dataclass
class TaskTrAdaBoost:
    """AdaBoost of each source finds learners of two classes, AdaBoost of the target chooses among them.

    Phase I, in each source: learners h by AdaBoost, alpha = 1/2 ln((1 - error) / error); those with alpha above
    ``least_vote`` are candidates. Phase II, on the target, each round: the candidate of the least weighted error (one
    that is mostly wrong is turned round), which is taken from the candidates; w <- w exp(-alpha y h(x)). The class is
    the sign of sum alpha h(x). New targets need phase II alone (``adapt``).

    Yao and Doretto, "Boosting for transfer learning with multiple sources", CVPR 2010, both phases.

    Departs from the paper: AdaBoost of a source ends with a learner that is never wrong, or wrong half of the time; an
    error of 0 counts as 1e-10.
    """

    base: Any = field(metadata={"help": "an estimator with fit(x, y, sample_weight) and predict(x)"})
    rounds: int = field(default=10, metadata={"help": "M: of boosting, in each source and in the target"})
    least_vote: float = field(default=0.0, metadata={"help": "gamma: learners of smaller alpha are no candidates"})

    category: ClassVar[str] = "instances"

    def fit(
        self, sources: Sequence[tuple[ArrayLike, ArrayLike]], target: ArrayLike, target_y: ArrayLike
    ) -> TaskTrAdaBoost:
        """Both phases, on features ``[n, d]`` and labels ``[n]`` of two classes. Raises UsageError."""
        at_least(1, rounds=self.rounds, sources=len(sources))
        self.candidates_: list[Any] = []
        _, y = labelled(target, target_y, "target")
        self.classes_ = np.unique(y)
        for source, source_y in sources:
            both_domains(source, target)
            x, labels = labelled(source, source_y, "source")
            self._phase_one(x, self._signs(labels))
        if not self.candidates_:
            hint = "A smaller least_vote, or a base that can tell the sources' classes."
            raise UsageError("No source gives a candidate.", where=f"least_vote={self.least_vote}", hint=hint)
        return self.adapt(target, target_y)

    def adapt(self, target: ArrayLike, target_y: ArrayLike) -> TaskTrAdaBoost:
        """Phase II alone, on another target. Raises UsageError for other classes."""
        x, labels = labelled(target, target_y, "target")
        y, weights = self._signs(labels), np.full(len(x), 1 / len(x))
        left = {i: self._vote(one, x) for i, one in enumerate(self.candidates_)}
        self.chosen_: list[tuple[Any, float]] = []  # alpha is below 0 where the learner is turned round
        for _ in range(min(self.rounds, len(left))):
            errors = {i: float(weights[h != y].sum()) for i, h in left.items()}
            best = min(left, key=lambda i: min(errors[i], 1 - errors[i]))
            alpha, h = _alpha(errors[best]), left.pop(best)
            self.chosen_.append((self.candidates_[best], alpha))
            weights = weights * np.exp(-alpha * y * h)
            weights /= weights.sum()
        return self

    def decision_function(self, x: ArrayLike) -> Array:  # [n, d] -> [n]
        """sum alpha h(x): above 0 for the second of ``classes_``."""
        rows = features(x, "features")
        total: Array = sum((alpha * self._vote(one, rows) for one, alpha in self.chosen_), np.zeros(len(rows)))
        return total

    def predict(self, x: ArrayLike) -> Array:  # [n, d] -> [n]
        found: Array = self.classes_[(self.decision_function(x) > 0).astype(int)]
        return found

    def _phase_one(self, x: Array, y: Array) -> None:
        weights = np.full(len(x), 1 / len(x))
        for _ in range(self.rounds):
            learner = fitted(self.base, x, self.classes_[(y > 0).astype(int)], weights)
            h = self._vote(learner, x)
            error = float(weights[h != y].sum())
            alpha = _alpha(error)
            if alpha > self.least_vote:
                self.candidates_.append(learner)
            if error >= 0.5 or error < LOWEST_ERROR:
                return
            weights = weights * np.exp(-alpha * y * h)
            weights /= weights.sum()

    def _vote(self, learner: Any, x: Array) -> Array:
        return np.where(learner.predict(x) == self.classes_[-1], 1.0, -1.0)

    def _signs(self, labels: Array) -> Array:
        """-1 and 1. Raises UsageError for other classes than the target's two."""
        if len(self.classes_) != 2 or not np.isin(labels, self.classes_).all():
            found = ", ".join(map(str, np.union1d(labels, self.classes_)))
            raise UsageError("Source and target have the same two classes.", where=f"here: {found}")
        return np.where(labels == self.classes_[-1], 1.0, -1.0)


def _alpha(error: float) -> float:
    """1/2 ln((1 - error) / error), finite: below 0 for an error above one half."""
    error = min(max(error, LOWEST_ERROR), 1 - LOWEST_ERROR)
    return math.log((1 - error) / error) / 2
