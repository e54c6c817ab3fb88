"""Copies of an estimator, fitted with weights."""

from __future__ import annotations

import copy
from typing import Any

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array


def fitted(base: Any, x: Array, y: Array, weights: Array | None = None) -> Any:
    """A copy of ``base``, which stays as it is, fitted to images of weights ``[n]``. Raises UsageError."""
    if not (hasattr(base, "fit") and hasattr(base, "predict")):
        hint = "For example sklearn.tree.DecisionTreeRegressor(max_depth=3)."
        raise UsageError("The base estimator has fit(x, y, sample_weight) and predict(x).", where=repr(base), hint=hint)
    learner = copy.deepcopy(base)
    learner.fit(x, y, sample_weight=weights)
    return learner
