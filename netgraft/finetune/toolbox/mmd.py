"""Maximum mean discrepancies between two samples: linear, multi-kernel (MK-MMD) and joint over layers (JMMD).

A sample is a sequence of layers ``[n, d_l]``, one row for each image. With a kernel K between two images

    MMD^2 = E K(s, s') + E K(t, t') - 2 E K(s, t),

which is 0 where the distributions are the same. ``Estimator`` says how the expectations are taken:

``linear``    h_i = K(s_2i, s_2i+1) + K(t_2i, t_2i+1) - K(s_2i, t_2i+1) - K(s_2i+1, t_2i), averaged over i: unbiased,
              2 n evaluations of the kernel (Gretton et al. 2012, "Optimal kernel choice for large-scale two-sample
              tests"; DAN and JAN train with it).
``unbiased``  the U-statistic over all pairs of different images, of smaller variance; as ``linear`` it may be below 0.
``biased``    the V-statistic, of an image with itself too: never below 0, and (E K(s, s) - E K(s, s')) (1/n + 1/m) in
              expectation for two samples of one distribution.

All are pure functions of the whole batch. With several processes ``gather`` the layers first: a mean of the processes'
own estimates is another number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from netgraft.errors import UsageError

Estimator = Literal["linear", "unbiased", "biased"]
Sample = Sequence[Tensor]
"""The layers of a sample, each ``[n, d_l]``."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(squared distances, their mean over all pairs of both samples) -> values of the same shape."""

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""sigma_u^2 over the mean squared distance."""


def gaussians(factors: Sequence[float] = FACTORS, weights: Tensor | None = None) -> Kernel:
    """K = sum_u w_u exp(-d^2 / (2 sigma_u^2)), sigma_u^2 = factor_u * mean d^2: the kernels of MK-MMD.

    ``weights`` [U] are all 1 by default.
    """

    def kernel(squared: Tensor, mean: Tensor) -> Tensor:
        each = [torch.exp(squared / (-2 * factor * mean)) for factor in factors]
        if weights is not None:
            each = [weight.to(values) * values for weight, values in zip(weights, each, strict=True)]
        return sum(each, torch.zeros_like(squared))

    return kernel


def gaussian(sigma: float) -> Kernel:
    """K = exp(-d^2 / (2 sigma^2)), the same whatever the batch."""
    return lambda squared, _: torch.exp(squared / (-2 * sigma**2))


def mmd(source: Sample, target: Sample, kernels: Sequence[Kernel], estimator: Estimator = "unbiased") -> Tensor:
    """The squared discrepancy under K = prod_l K_l, one kernel for each layer; a scalar.

    One layer is MK-MMD, several are JMMD: the discrepancy of the layers' joint distributions. Kernels' widths are taken
    from the batch and not differentiated. Raises UsageError for fewer than two images.
    """
    check_size(source, target, estimator)
    layers = [_centred(s, t) for s, t in zip(source, target, strict=True)]
    means = [_mean_squared_distance(s, t) for s, t in layers]

    def kernel(one: Sample, other: Sample, distances: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        found = [k(distances(a, b), m) for k, a, b, m in zip(kernels, one, other, means, strict=True)]
        return torch.stack(found).prod(0) if len(found) > 1 else found[0]

    if estimator == "linear":
        pairs = zip(*(_neighbours(s, t) for s, t in layers), strict=True)  # four times: what each layer compares
        each = [kernel([a for a, _ in pair], [b for _, b in pair], _between_rows).mean() for pair in pairs]
        return torch.stack([sign * term for sign, term in zip(_SIGNS, each, strict=True)]).sum()
    both = [torch.cat([a, b]) for a, b in layers]
    matrix, n = kernel(both, both, _between_all), len(source[0])
    return _mean(matrix[:n, :n], estimator) + _mean(matrix[n:, n:], estimator) - 2 * matrix[:n, n:].mean()


def linear_terms(source: Tensor, target: Tensor, kernels: Sequence[Kernel]) -> Tensor:  # [n, d], [m, d]
    """h_i of one layer under each kernel, whose mean over i is ``mmd`` with ``linear``: ``[kernels, min(n, m) // 2]``.

    Raises UsageError for fewer than two images.
    """
    check_size([source], [target], "linear")
    s, t = _centred(source, target)
    mean = _mean_squared_distance(s, t)
    squared = [_between_rows(a, b) for a, b in _neighbours(s, t)]
    values = [[sign * kernel(d, mean) for sign, d in zip(_SIGNS, squared, strict=True)] for kernel in kernels]
    return torch.stack([torch.stack(terms).sum(0) for terms in values])


def linear_mmd(source: Tensor, target: Tensor, estimator: Estimator = "biased") -> Tensor:  # [n, d], [m, d]
    """``|mean source - mean target|^2``, the discrepancy under K(a, b) = <a, b>; a scalar.

    By sums of rows: no matrix of the kernel. ``biased`` is the distance of the means itself (DDC).
    """
    check_size([source], [target], estimator)
    s, t = _centred(source, target)
    if estimator == "linear":
        count = min(len(s), len(t)) // 2 * 2
        even, odd = s[0:count:2] - t[0:count:2], s[1:count:2] - t[1:count:2]
        return (even * odd).sum(1).mean()
    if estimator == "biased":
        return (s.mean(0) - t.mean(0)).square().sum()
    within = [(x.sum(0).square().sum() - x.square().sum()) / (len(x) * (len(x) - 1)) for x in (s, t)]
    return within[0] + within[1] - 2 * (s.mean(0) * t.mean(0)).sum()


@torch.no_grad()
def relative_mmd(source: Tensor, target: Tensor) -> Tensor:  # [n, d], [m, d]
    """``|mean source - mean target|^2`` over the mean squared distance between two rows: a scalar.

    0 for equal means, at most 2 for samples of one size. A factor of all features changes nothing.
    """
    return linear_mmd(source, target) / _mean_squared_distance(source, target)


def gather(call: Callable[[Tensor], Tensor], samples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors ``[B, ...]`` of this process as those of all, ``[world * B, d]``, in one collective with gradients.

    ``call`` is ``run.gather``. Rows stand in the order of the processes, which is that of the batch in one process.
    """
    flat = [x.flatten(1) for x in samples]
    return tuple(call(torch.cat(flat, 1)).split([x.shape[1] for x in flat], 1))


def check_size(source: Sample, target: Sample, estimator: Estimator) -> None:
    """Raise UsageError where there are no two images to compare."""
    least = min(len(x) for x in (*source, *target))
    if least < 2 and estimator != "biased":
        raise UsageError("A discrepancy of distributions needs two images of each.", hint="Add --batch-size 32.")


_SIGNS = (1, 1, -1, -1)


def _neighbours(source: Tensor, target: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """What the four kernels of h compare, row by row, in the order of their signs."""
    count = min(len(source), len(target)) // 2 * 2
    (s0, s1), (t0, t1) = ([x[i:count:2] for i in (0, 1)] for x in (source, target))
    return (s0, s1), (t0, t1), (s0, t1), (s1, t0)


def _centred(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both less their common mean, which changes no discrepancy: squared distances by products cancel less."""
    middle = torch.cat([source, target]).detach().mean(0)
    return source - middle, target - middle


@torch.no_grad()
def _mean_squared_distance(source: Tensor, target: Tensor) -> Tensor:
    """Over all pairs of rows of both, a row with itself too: twice the summed variance. A scalar above 0."""
    both = torch.cat([source, target])
    mean = 2 * (both - both.mean(0)).square().sum(1).mean()
    least = torch.finfo(mean.dtype)
    return mean.clamp(min=least.tiny / least.eps)  # a fraction of it is no subnormal number, which may be flushed to 0


def _between_rows(a: Tensor, b: Tensor) -> Tensor:  # [n, d], [n, d] -> [n]
    return (a - b).square().sum(1)


def _between_all(a: Tensor, b: Tensor) -> Tensor:  # [n, d], [m, d] -> [n, m]
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
    return squared.clamp(min=0)


def _mean(matrix: Tensor, estimator: Estimator) -> Tensor:  # [n, n]
    """Over all entries, or over those off the diagonal."""
    if estimator == "biased":
        return matrix.mean()
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))
