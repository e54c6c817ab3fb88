"""Losses as pure functions: means over samples and places, scalars in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.finetune.protocol import Penalty


def cross_entropy(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B]
    smoothing: float = 0.0,
    weights: Tensor | None = None,  # [B]
) -> Tensor:
    """The empirical loss J: the mean over images, of each image's loss times its weight where there are weights."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()


def binary_cross_entropy(
    logits: Tensor,  # [B, K]
    labels: Tensor,  # [B, K] of 0 and 1
    weights: Tensor | None = None,  # [B]
) -> Tensor:
    """J where an image may have several classes: ``BCEWithLogitsLoss``, the mean over images and classes."""
    if weights is None:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return (weights * F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)).mean()


def soft_cross_entropy(logits: Tensor, source: Tensor, temperature: float) -> Tensor:  # [B, K], [B, K]
    """H(softmax(source / T), softmax(logits / T)), a mean over samples; without a factor T^2."""
    return F.cross_entropy(logits / temperature, F.softmax(source / temperature, dim=1))


def match_size(source: Tensor, target: Tensor) -> Tensor:
    """The source's map ``[B, C, h, w]`` at the height and width of the target's ``[B, D, H, W]``, bilinearly.

    From the source to the target as in L2T-ww's code, but by ``size``: its ``scale_factor`` rounds wrongly where sizes
    do not divide. Anything but maps, and maps of the same size, come back as they are.
    """
    if source.dim() != 4 or target.dim() != 4 or source.shape[2:] == target.shape[2:]:
        return source
    return F.interpolate(source, size=target.shape[2:], mode="bilinear", align_corners=False)


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """The mean over all elements of (one - other)^2."""
    return F.mse_loss(one.float(), other.float())


def summed_distance(one: Tensor, other: Tensor) -> Tensor:  # [B, ...], [B, ...]
    """(one - other)^2 summed over channels and places, and averaged over samples."""
    return F.mse_loss(one.float(), other.float(), reduction="sum") / len(one)


@torch.no_grad()
def l2_penalty(
    parameters: Sequence[Tensor],
    weight: float,
    towards: Sequence[Tensor] | None = None,
    *,
    scale: Sequence[Tensor] | None = None,
    out: Sequence[Tensor] | None = None,
) -> Penalty:
    """``weight / 2 * ||theta - towards||^2`` with its gradient ``weight * (theta - towards)``; towards 0 by default.

    A sum over all elements, as weight decay is (L2-SP). A few passes over the parameters, no graph. The
    gradient is written to ``out`` where that is given (``scratch(parameters)``, once per epoch): on a CPU new memory
    in every step takes longer than all the arithmetic. With ``scale``, a factor for each element, it is
    ``weight / 2 * ||scale * (theta - towards)||^2``.
    """
    if not parameters:
        return Penalty(torch.zeros(()), (), ())
    away = _differences(parameters, towards, out)
    if scale is not None:
        torch._foreach_mul_(away, list(scale))
    norms = torch.stack(torch._foreach_norm(away))
    if scale is not None:
        torch._foreach_mul_(away, list(scale))
    torch._foreach_mul_(away, weight)
    return Penalty(weight / 2 * norms.square().sum(), list(parameters), away)


@torch.no_grad()
def l1_penalty(
    parameters: Sequence[Tensor],
    weight: float,
    towards: Sequence[Tensor] | None = None,
    *,
    out: Sequence[Tensor] | None = None,
) -> Penalty:
    """``weight * ||theta - towards||_1`` with its gradient ``weight * sign(theta - towards)``, 0 where they are equal.

    Arguments are those of ``l2_penalty``.
    """
    if not parameters:
        return Penalty(torch.zeros(()), (), ())
    away = _differences(parameters, towards, out)
    norms = torch.stack(torch._foreach_norm(away, 1))
    torch._foreach_sign_(away)
    torch._foreach_mul_(away, weight)
    return Penalty(weight * norms.sum(), list(parameters), away)


@torch.no_grad()
def group_penalty(
    parameters: Sequence[Tensor],
    weight: float,
    towards: Sequence[Tensor] | None = None,
    *,
    transposed: Sequence[int] | None = None,
    out: Sequence[Tensor] | None = None,
) -> Penalty:
    """``weight * sum_g sqrt(p_g) ||(theta - towards)_g||`` over groups g of p_g elements, one for each output channel.

    Its gradient is ``weight * sqrt(p_g) * (theta - towards)_g / ||(theta - towards)_g||``, 0 in a group where all are
    equal. The first axis is that of the output channels. ``transposed`` says which parameters are weights of transposed
    convolutions ``[in, out / groups, ...]``: their number of groups, 0 for all others. Further arguments are those of
    ``l2_penalty``.
    """
    if not parameters:
        return Penalty(torch.zeros(()), (), ())
    away = _differences(parameters, towards, out)
    values = []
    for difference, groups in zip(away, transposed or [0] * len(away), strict=True):
        by_channel = difference.unflatten(0, (groups, -1)) if groups else difference
        within = (1, *range(3, by_channel.dim())) if groups else tuple(range(1, by_channel.dim()))
        norms = torch.linalg.vector_norm(by_channel, dim=within, keepdim=True) if within else by_channel.abs()
        factor = weight * math.sqrt(by_channel.numel() / norms.numel())
        values.append(factor * norms.sum())
        by_channel.mul_(torch.where(norms > 0, factor / norms, 0.0))
    return Penalty(torch.stack(values).sum(), list(parameters), away)


def _differences(
    parameters: Sequence[Tensor], towards: Sequence[Tensor] | None, out: Sequence[Tensor] | None
) -> list[Tensor]:
    """theta - towards, in ``out`` where that is given."""
    away = list(out) if out is not None else scratch(parameters)
    torch._foreach_copy_(away, list(parameters))
    if towards is not None:
        torch._foreach_sub_(away, list(towards))
    return away


def scratch(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Memory for a gradient of each parameter. What is in it means nothing from one step to the next."""
    return [torch.empty_like(parameter) for parameter in parameters]
