"""The metric transfer learning framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array, above_zero, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._density_ratio import relative_ratio

LARGEST = 1e6  # element of a metric that begins as 1


@dataclass
class MetricTransfer:
    """Weights of the source's images, and a metric in which classes lie apart, learnt by turns (MTLF).

    A and w descend tr(A^T A) + lam mean_s (w_i - w_i^0)^2 + beta (D_same - D_other), where D is the mean over the pairs
    of labelled images of one class, or of two, of w_i w_j |A (x_i - x_j)|^2. A starts as 1, the source's w as w^0, the
    relative density ratio between the domains; the target's w stay 1. A round is a step of A and one of w. An image
    then has the class of the nearest labelled image, of either domain, by |A (x - x_i)|.

    Xu, Pan, Xiong, Wu, Luo, Min and Song, "A unified framework for metric transfer learning", IEEE Trans. Knowledge and
    Data Engineering 2017, as its authors' published code has it (github.com/xyh2016/MTLF).

    Departs from that code: all pairs are taken, not 100 drawn ones, and means over them; distances are measured in
    units of their mean, so that beta and the rates suit any features. w is projected onto w >= 0 with a mean of 1 over
    the source, where a penalty asks for both. In A's step the sign of a pair of two classes is lost there, which draws
    these together too. The ratio's width and ridge are not found by cross-validation. The defaults are ours.
    In A the loss is a quadratic form without a minimum but 0, or with none: ``rounds`` and ``metric_rate`` say how far
    A goes from the plain distance. Where ``beta`` is so large that A grows, w falls onto a few images.
    """

    beta: float = field(default=5.0, metadata={"help": "how much it counts that classes lie apart"})
    lam: float = field(default=1.0, metadata={"help": "how much it costs that weights leave the density ratio"})
    rounds: int = field(default=100, metadata={"help": "steps of the metric, and of the weights"})
    metric_rate: float = field(default=0.01, metadata={"help": "length of A's steps; 0: the plain distance"})
    weight_rate: float = field(default=0.01, metadata={"help": "length of the weights' steps; 0: the density ratio"})
    ridge: float = field(default=0.1, metadata={"help": "of the density ratio: larger makes weights more alike"})

    category: ClassVar[str] = "instances"

    def fit(
        self,
        source: ArrayLike,
        source_y: ArrayLike,
        target: ArrayLike,
        target_y: ArrayLike,
        *,
        unlabelled: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> MetricTransfer:
        """Learn from features ``[n_s, d]``, ``[n_t, d]`` and their labels.

        ``unlabelled`` ``[n_u, d]`` are further images of the target, for the density ratio; ``weights`` ``[n_s]`` stand
        in place of the ratio, divided by their mean. Raises UsageError.
        """
        self._check()
        (x_s, y_s), (x_t, y_t) = labelled(source, source_y, "source"), labelled(target, target_y, "target")
        both_domains(x_s, x_t)
        more = x_t if unlabelled is None else np.concatenate([x_t, both_domains(x_s, unlabelled)[1]])
        start = relative_ratio(x_s, more, self.ridge) if weights is None else np.asarray(weights, dtype=np.float64)
        start = _of_mean_one(start, len(x_s))
        self.images_, self.labels_ = np.concatenate([x_s, x_t]), np.concatenate([y_s, y_t])
        self.centre_ = self.images_.mean(axis=0)
        pairs = _Pairs(self.images_ - self.centre_, self.labels_)
        metric, w = np.eye(x_s.shape[1]), np.concatenate([start, np.ones(len(x_t))])
        n = len(x_s)
        for _ in range(self.rounds):
            metric = metric - self.metric_rate * 2 * (metric + self.beta * metric @ pairs.scatter(w))
            if not np.abs(metric).max() < LARGEST:
                where = f"metric_rate={self.metric_rate}, beta={self.beta}, rounds={self.rounds}"
                raise UsageError(
                    "The metric grows beyond all measure.", where=where, hint="Take a smaller metric_rate."
                )
            pull = n * self.beta * pairs.distances(metric, w)[:n]
            w[:n] = _projected(w[:n] - self.weight_rate * (2 * self.lam * (w[:n] - start) + pull))
        self.metric_ = metric / pairs.unit
        self.weights_ = w[:n]
        return self

    def transform(self, x: ArrayLike) -> Array:  # [n, d] -> [n, d]
        """Features of either domain whose plain distances are those of the metric."""
        found: Array = (features(x, "features") - self.centre_) @ self.metric_.T
        return found

    def predict(self, x: ArrayLike) -> Array:  # [n, d] -> [n]
        """The class of the nearest labelled image."""
        rows, known = self.transform(x), self.transform(self.images_)
        nearest = ((known**2).sum(1) - 2 * rows @ known.T).argmin(axis=1)
        found: Array = self.labels_[nearest]
        return found

    def _check(self) -> None:
        at_least(1, rounds=self.rounds)
        above_zero(ridge=self.ridge)
        at_least(0, beta=self.beta, lam=self.lam, metric_rate=self.metric_rate, weight_rate=self.weight_rate)


class _Pairs:
    """D_same - D_other over all pairs of images, by sums over classes: time grows with the images, not the pairs."""

    def __init__(self, x: Array, labels: Array) -> None:  # [n, d] of mean 0, [n]
        """Raises UsageError where there is no pair of one class, or none of two, or all images are the same."""
        names = np.unique(labels)
        self.member = (labels[:, None] == names).astype(float)  # [n, classes]
        n, sizes = len(x), self.member.sum(axis=0)
        self.same = (sizes * (sizes - 1)).sum() / 2
        self.other = n * (n - 1) / 2 - self.same
        if not (self.same and self.other):
            raise UsageError("There are two classes at least, one of them with two images.", where=f"{len(names)}, {n}")
        self.unit = float(np.sqrt(2 * x.var(axis=0).sum() * n / (n - 1)))  # root of the mean squared distance
        if not self.unit:
            raise UsageError("All images have the same features.")
        self.x = x / self.unit

    def scatter(self, w: Array) -> Array:  # [n] -> [d, d]
        """Of the differences x_i - x_j: half the gradient of D_same - D_other by A is A times this."""
        of_class = self.member * w[:, None]
        sizes, sums = of_class.sum(axis=0), of_class.T @ self.x
        same = (self.x * (w * (self.member @ sizes))[:, None]).T @ self.x - sums.T @ sums
        everything = w.sum() * (self.x * w[:, None]).T @ self.x - np.outer(sums.sum(axis=0), sums.sum(axis=0))
        found: Array = same / self.same - (everything - same) / self.other
        return found

    def distances(self, metric: Array, w: Array) -> Array:  # [d, d], [n] -> [n]
        """Of each image from all others, by their weights: the gradient of D_same - D_other by w."""
        z = self.x @ metric.T
        of_class, norms = self.member * w[:, None], (z**2).sum(axis=1)
        sizes, sums, squares = of_class.sum(axis=0), of_class.T @ z, of_class.T @ norms
        same = norms * (self.member @ sizes) - 2 * (z * (self.member @ sums)).sum(axis=1) + self.member @ squares
        everything = norms * sizes.sum() - 2 * z @ sums.sum(axis=0) + squares.sum()
        found: Array = same / self.same - (everything - same) / self.other
        return found


def _of_mean_one(weights: Array, n: int) -> Array:
    """Raises UsageError for weights of another number, below 0, or all 0."""
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        what = "The source's images have weights from 0 up, not all of them 0."
        hint = "Where no target image is near the source, give weights=numpy.ones(n)."
        raise UsageError(what, where=f"{weights.shape} for {n} images", hint=hint)
    found: Array = weights / weights.mean()
    return found


def _projected(weights: Array) -> Array:  # [n] -> [n]
    """The nearest ones that are not below 0 and have a mean of 1."""
    ordered = np.sort(weights)[::-1]
    shifts = (np.cumsum(ordered) - len(weights)) / np.arange(1, len(weights) + 1)
    shift = shifts[np.flatnonzero(ordered > shifts)[-1]]
    found: Array = np.maximum(weights - shift, 0)
    return found
