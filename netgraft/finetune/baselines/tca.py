"""Transfer component analysis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from netgraft.finetune.baselines._checks import Array, above_zero, at_least, both_domains, features
from netgraft.finetune.baselines._eigenvectors import leading


@dataclass
class TransferComponents:
    """Directions in which the means of both domains are close and the images differ (TCA).

    W minimises tr(W^T K L K W) + mu tr(W^T W) with W^T K H K W = 1: the leading eigenvectors of
    (K L K + mu)^-1 K H K. K is the kernel between all images, H = 1 - 1/n takes the mean away, and L is 1/n_s^2
    between source images, 1/n_t^2 between target images, -1/(n_s n_t) between the two. An image x becomes k(x, .) W.

    Pan, Tsang, Kwok and Yang, "Domain adaptation via transfer component analysis", IEEE Trans. Neural Networks 2011,
    the unsupervised method.

    Departs from the paper: the width of the Gaussian kernel, where none is given, is such that the mean squared
    distance of two images counts 1. Time grows with the cube of the number of images.
    """

    dimensions: int = field(default=30, metadata={"help": "of the new space"})
    kernel: Literal["linear", "gaussian"] = field(default="linear", metadata={"help": "k: x y, or exp(-gamma |x-y|^2)"})
    gamma: float | None = field(
        default=None, metadata={"help": "of the Gaussian kernel; none: by the images' distances"}
    )
    mu: float = field(default=1.0, metadata={"help": "how much W's size costs"})

    category: ClassVar[str] = "mapping"

    def fit(self, source: ArrayLike, target: ArrayLike) -> TransferComponents:
        """Find W for features ``[n_s, d]`` and ``[n_t, d]``. Raises UsageError for what does not fit together."""
        at_least(1, dimensions=self.dimensions)
        above_zero(mu=self.mu)
        first, second = both_domains(source, target)
        self.images_ = np.concatenate([first, second])
        self.gamma_ = self._gamma()
        n = len(self.images_)
        signs = np.concatenate([np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))])
        k = self._kernel(self.images_)
        apart = k @ signs  # L is signs times itself
        centred = k - k.mean(axis=0)
        gain = k @ centred
        cost = np.outer(apart, apart) + self.mu * np.eye(n)
        values, vectors = leading((gain + gain.T) / 2, cost, self.dimensions)
        self.components_ = vectors / np.sqrt(values)
        return self

    def transform(self, x: ArrayLike) -> Array:  # [n, d] -> [n, dimensions]
        """Features of either domain in the new space."""
        return self._kernel(features(x, "features")) @ self.components_

    def _gamma(self) -> float:
        """1 over the mean squared distance of two images, which is twice the sum of their variances."""
        if self.gamma is not None:
            above_zero(gamma=self.gamma)
            return self.gamma
        return float(1 / max(2 * self.images_.var(axis=0).sum(), 1e-300))

    def _kernel(self, x: Array) -> Array:  # [n, d] -> [n, images]
        found: Array = x @ self.images_.T
        if self.kernel == "gaussian":
            squares = (x**2).sum(1)[:, None] + (self.images_**2).sum(1) - 2 * found
            found = np.exp(-self.gamma_ * np.maximum(squares, 0))
        return found
