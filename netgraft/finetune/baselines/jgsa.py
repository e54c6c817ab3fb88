"""Joint geometrical and statistical alignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array, above_zero, at_least, both_domains, features, labelled
from netgraft.finetune.baselines._eigenvectors import leading


@dataclass
class JointAlignment:
    """A map for each domain, close to one another, that bring the domains and their classes together (JGSA).

    A and B are the leading eigenvectors [A; B] of the quotient
    tr(mu B^T S_t B + beta A^T S_b A) / tr([A; B]^T (MMD + [lam + beta S_w, -lam; -lam, lam + mu]) [A; B]):
    S_t the scatter of the target, S_b and S_w those between and within the source's classes. MMD is the sum of the
    squared distances of the domains' means, of all images and of each class, where a target image's class is that of
    the nearest source image: in the features at first, then in the new space, ``rounds`` times. A source image becomes
    x A, a target image x B.

    Zhang, Li and Ogunbona, "Joint geometrical and statistical alignment for visual domain adaptation", CVPR 2017,
    with the defaults of its experiments.

    Departs from the paper: the linear map alone, without its kernels; a class that no target image has adds nothing to
    the MMD. The features are taken as they are (the paper's are of mean 0 and variance 1).
    """

    dimensions: int = field(default=30, metadata={"help": "of the new space"})
    rounds: int = field(default=10, metadata={"help": "how often the target's classes are named anew"})
    lam: float = field(default=1.0, metadata={"help": "how much it costs that A and B differ"})
    mu: float = field(default=1.0, metadata={"help": "how much the target's scatter counts, and B costs"})
    beta: float = field(default=0.1, metadata={"help": "how much the source's classes count"})

    category: ClassVar[str] = "mapping"

    def fit(self, source: ArrayLike, target: ArrayLike, labels: ArrayLike) -> JointAlignment:
        """Find A and B for features ``[n_s, d]``, ``[n_t, d]`` and the source's labels ``[n_s]``. Raises UsageError."""
        at_least(1, dimensions=self.dimensions, rounds=self.rounds)
        above_zero(lam=self.lam, mu=self.mu)
        at_least(0, beta=self.beta)
        first, second = both_domains(source, target)
        _, classes = labelled(first, labels, "source")
        between, within = _scatters(first, classes)
        centred = second - second.mean(axis=0)
        nothing, one = np.zeros_like(between), np.eye(first.shape[1])
        gain = np.block([[self.beta * between, nothing], [nothing, self.mu * centred.T @ centred]])
        near = np.block(
            [[self.lam * one + self.beta * within, -self.lam * one], [-self.lam * one, (self.lam + self.mu) * one]]
        )
        self.labels_ = _nearest(first, classes, second)
        for _ in range(self.rounds):
            _, vectors = leading(gain, near + _discrepancy(first, classes, second, self.labels_), self.dimensions)
            a, b = np.split(vectors, 2)
            self.maps_ = {"source": a, "target": b}
            self.labels_ = _nearest(first @ a, classes, second @ b)
        return self

    def transform(self, x: ArrayLike, domain: Literal["source", "target"]) -> Array:  # [n, d] -> [n, dimensions]
        """Features of one domain in the new space."""
        found: Array = features(x, "features") @ self.maps_[domain]
        return found


def _scatters(x: Array, classes: Array) -> tuple[Array, Array]:
    """Between and within classes, ``[d, d]`` each. Raises UsageError where there is one class alone."""
    names = np.unique(classes)
    if len(names) < 2:
        raise UsageError("The source has at least two classes.", where=f"{len(names)}")
    between, within = np.zeros((2, x.shape[1], x.shape[1]))
    for name in names:
        rows = x[classes == name]
        away, inside = rows.mean(axis=0) - x.mean(axis=0), rows - rows.mean(axis=0)
        between += len(rows) * np.outer(away, away)
        within += inside.T @ inside
    return between, within


def _discrepancy(source: Array, classes: Array, target: Array, guessed: Array) -> Array:  # [2 d, 2 d]
    """tr([A; B]^T this [A; B]) is the sum of |mean of x A - mean of x B|^2 over all images, and over each class."""
    pairs = [(source.mean(axis=0), target.mean(axis=0))]
    for name in np.unique(guessed):
        pairs.append((source[classes == name].mean(axis=0), target[guessed == name].mean(axis=0)))
    rows = np.stack([np.concatenate([one, -other]) for one, other in pairs])
    found: Array = rows.T @ rows
    return found


def _nearest(source: Array, classes: Array, target: Array) -> Array:  # [n_t]
    """The class of the nearest source image."""
    squares = (source**2).sum(1) - 2 * target @ source.T
    found: Array = classes[squares.argmin(axis=1)]
    return found
