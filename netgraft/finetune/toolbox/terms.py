"""Losses as pure functions: means over samples and places, scalars in float32."""

from __future__ import annotations

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


@torch.no_grad()
def l2_penalty(
    parameters: Sequence[Tensor],
    weight: float,
    towards: Sequence[Tensor] | None = None,
    *,
    out: Sequence[Tensor] | None = None,
) -> Penalty:
    """``weight / 2 * ||theta - towards||^2`` with its gradient ``weight * (theta - towards)``; towards 0 by default.

    A sum over all elements, as weight decay is (L2-SP, Eq. 2-3). A few passes over the parameters, no graph. The
    gradient is written to ``out`` where that is given (``scratch(parameters)``, once per epoch): on a CPU new memory
    in every step takes longer than all the arithmetic.
    """
    parameters = list(parameters)
    if not parameters:
        return Penalty(torch.zeros(()), (), ())
    away = list(out) if out is not None else scratch(parameters)
    torch._foreach_copy_(away, parameters)
    if towards is not None:
        torch._foreach_sub_(away, list(towards))
    norms = torch.stack(torch._foreach_norm(away))
    torch._foreach_mul_(away, weight)
    return Penalty(weight / 2 * norms.square().sum(), parameters, away)


def scratch(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Memory for a gradient of each parameter. What is in it means nothing from one step to the next."""
    return [torch.empty_like(parameter) for parameter in parameters]
