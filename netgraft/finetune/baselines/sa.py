"""Subspace alignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array, at_least, both_domains, features
from netgraft.finetune.baselines._eigenvectors import upright


@dataclass
class SubspaceAlignment:
    """The principal directions of the source are turned into those of the target (SA).

    P_s, P_t are the leading principal directions of each domain; M = P_s^T P_t minimises |P_s M - P_t|^2. A source
    image becomes x P_s M, a target image x P_t.

    Fernando, Habrard, Sebban and Tuytelaars, "Unsupervised visual domain adaptation using subspace alignment", ICCV
    2013.

    Departs from the paper: the number of directions is an option, not found by the paper's bound.
    """

    dimensions: int = field(default=30, metadata={"help": "directions of each domain"})
    standardise: bool = field(
        default=True, metadata={"help": "features of variance 1 in each domain, not only of mean 0"}
    )

    category: ClassVar[str] = "mapping"

    def fit(self, source: ArrayLike, target: ArrayLike) -> SubspaceAlignment:
        """Find the directions for features ``[n_s, d]`` and ``[n_t, d]``. Raises UsageError where there are fewer."""
        at_least(1, dimensions=self.dimensions)
        first, second = both_domains(source, target)
        self.means_, self.scales_ = {}, {}
        directions = {}
        for name, x in (("source", first), ("target", second)):
            deviation = x.std(axis=0)
            self.means_[name] = x.mean(axis=0)
            self.scales_[name] = np.where(self.standardise & (deviation > 1e-12), deviation, 1.0)
            directions[name] = self._principal(self._centred(x, name), name)
        self.alignment_ = directions["source"].T @ directions["target"]
        self.maps_ = {"source": directions["source"] @ self.alignment_, "target": directions["target"]}
        return self

    def transform(self, x: ArrayLike, domain: Literal["source", "target"]) -> Array:  # [n, d] -> [n, dimensions]
        """Features of one domain in the target's directions."""
        found: Array = self._centred(features(x, "features"), domain) @ self.maps_[domain]
        return found

    def _centred(self, x: Array, domain: str) -> Array:
        found: Array = (x - self.means_[domain]) / self.scales_[domain]
        return found

    def _principal(self, x: Array, domain: str) -> Array:  # [n, d] -> [d, dimensions]
        _, sizes, rows = np.linalg.svd(x, full_matrices=False)
        rank = int((sizes > 1e-10 * sizes[0]).sum())
        if rank < self.dimensions:
            what = f"The {domain} has fewer directions than that."
            raise UsageError(what, where=f"dimensions={self.dimensions}", hint=f"dimensions is at most {rank}.")
        return upright(rows[: self.dimensions].T)
