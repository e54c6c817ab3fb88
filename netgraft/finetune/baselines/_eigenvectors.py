"""Leading directions of one symmetric matrix relative to another."""

from __future__ import annotations

import numpy as np

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array


def leading(
    gain: Array,  # [n, n] symmetric
    cost: Array,  # [n, n] symmetric, positive definite
    count: int,
) -> tuple[Array, Array]:
    """The ``count`` largest eigenvalues of gain v = value cost v, and v ``[n, count]`` with v^T cost v = 1.

    Each v has its largest element above 0. Raises UsageError where fewer eigenvalues are above 0.
    """
    root = np.linalg.cholesky(cost)
    inner = np.linalg.solve(root, np.linalg.solve(root, gain).T)
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    positive = int((values > 1e-12 * max(values[0], 1e-300)).sum())
    if positive < count:
        what = "There are not so many directions in these features."
        raise UsageError(what, where=f"dimensions={count}", hint=f"dimensions is at most {positive}.")
    return values, upright(np.linalg.solve(root.T, vectors))


def upright(vectors: Array) -> Array:  # [n, count]
    """The same columns, each with the sign that makes its largest element positive."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
