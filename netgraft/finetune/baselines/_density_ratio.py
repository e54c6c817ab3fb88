"""How much likelier an image is in the target than in both domains together."""

from __future__ import annotations

import numpy as np

from netgraft.errors import UsageError
from netgraft.finetune.baselines._checks import Array

CENTRES = 100  # kernels at most


def relative_ratio(source: Array, target: Array, ridge: float) -> Array:  # [n_s, d], [n_t, d] -> [n_s]
    """p_t / (p_t / 2 + p_s / 2) at the source's images: RuLSIF with alpha 1/2, between 0 and about 2.

    sum_l theta_l k(x, c_l), negative values taken for 0, with theta = (H + ridge I)^-1 h: h the mean of k over the
    target, H that of k k^T over the target and the source, one half each. k is a Gaussian around up to 100 images of
    the target, as wide as the median distance between two images. Raises UsageError where all images are one.
    """
    everything = np.concatenate([source, target])
    between = _squares(everything, everything)[np.triu_indices(len(everything), 1)]
    width = float(np.median(between[between > 0])) if (between > 0).any() else 0.0
    if not width:
        raise UsageError("All images have the same features.")
    centres = target[np.unique(np.linspace(0, len(target) - 1, CENTRES).round().astype(int))]
    of_source, of_target = (np.exp(-_squares(x, centres) / (2 * width)) for x in (source, target))
    second = (of_source.T @ of_source / len(source) + of_target.T @ of_target / len(target)) / 2
    theta = np.linalg.solve(second + ridge * np.eye(len(centres)), of_target.mean(axis=0))
    found: Array = np.maximum(of_source @ theta, 0)
    return found


def _squares(one: Array, other: Array) -> Array:  # [n, d], [m, d] -> [n, m]
    """Squared distances."""
    found: Array = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.maximum(found, 0)
