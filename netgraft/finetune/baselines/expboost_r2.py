"""ExpBoost.R2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from netgraft.finetune.baselines._checks import Array, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._learners import fitted
from netgraft.finetune.toolbox.boosting_regression import adaboost_r2, adjusted_errors


@dataclass
class ExpBoostR2:
    """Regression on the target, where in each round an expert of a source may stand in for a new learner.

    AdaBoost.R2 on the target's images alone; in each round the learner is whichever has the least weighted error
    sum w |y - h(x)| / max |y - h(x)|: one fitted with the weights as they are, or one of the experts, each fitted
    beforehand to one source.

    Pardoe and Stone, "Boosting for regression transfer", ICML 2010 (after Rettinger, Zinkevich and Bowling 2006,
    ExpBoost).

    Departs from the paper: learners take weights instead of drawing images by them.
    """

    base: Any = field(metadata={"help": "an estimator with fit(x, y, sample_weight) and predict(x)"})
    rounds: int = field(default=10, metadata={"help": "of boosting"})

    category: ClassVar[str] = "instances"

    def fit(self, sources: Sequence[tuple[ArrayLike, ArrayLike]], target: ArrayLike, target_y: ArrayLike) -> ExpBoostR2:
        """Boost on features ``[m, d]`` and numbers ``[m]``; ``sources`` are pairs of such. Raises UsageError."""
        at_least(1, rounds=self.rounds, sources=len(sources))
        x, y = labelled(target, target_y, "target")
        self.experts_ = []
        for source, source_y in sources:
            both_domains(source, target)
            self.experts_.append(fitted(self.base, *labelled(source, source_y, "source")))

        def best(weights: Array) -> Any:
            learners = [fitted(self.base, x, y, weights), *self.experts_]
            return min(learners, key=lambda one: float((weights * adjusted_errors(one.predict(x), y)).sum()))

        self.model_ = adaboost_r2(best, x, y, np.ones(len(x)), self.rounds)
        return self

    def predict(self, x: ArrayLike) -> Array:  # [k, d] -> [k]
        return self.model_.predict(features(x, "features"))
