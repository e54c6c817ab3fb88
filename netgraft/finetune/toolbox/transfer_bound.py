"""The two sides of CETL's learning bound (Eq. 14), as far as a batch shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from netgraft.finetune.protocol import Batch, Run


@torch.no_grad()
def bound_sides(
    target: Tensor,  # logits [B, K] of T2
    source: Tensor,  # logits [B, K] of S
    labels: Tensor,  # [B]
    images: Tensor,  # [B, C, H, W]
    by_source: Tensor,  # T1 o S of the images
    by_target: Tensor,  # T1 o T2 of the images
    source_error: Tensor,  # scalar: E_P |S - c_src|
) -> tuple[Tensor, Tensor]:
    """E_Q|T2 - c_tgt|, and E_P|S - c_src| + 2 E_Q|T2 - S| + 3 sup_f |E f(T1 o S) - E f| + 2 sup_f |E f(T1 o T2) - E f|.

    |a - b| of classifiers is the share of images on which they differ. The suprema are over functions that change by
    no more than the distance of two images, the root of the mean square of their difference: for these
    |E f(r(x)) - E f(x)| <= E distance(r(x), x), and the right side of that is what counts here.
    """
    predicted = target.argmax(1)
    left = _share(predicted != labels)
    disagree = _share(predicted != source.argmax(1))
    return left, source_error + 2 * disagree + 3 * _distance(by_source, images) + 2 * _distance(by_target, images)


def note_bound(run: Run, batch: Batch, target: Tensor, source: Tensor, by_source: Tensor, by_target: Tensor) -> None:
    """Log both sides as ``bound_left`` and ``bound_right``. Without source images with labels E_P|S - c_src| is 0."""
    error = torch.zeros((), device=source.device)
    if batch.source is not None:
        error = _share(run.source(batch.source).logits.argmax(1) != batch.source.y)
    sides = bound_sides(target, source, batch.y, batch.x, by_source, by_target, error)
    for name, side in zip(("bound_left", "bound_right"), sides, strict=True):
        run.note(name, side)


def _share(wrong: Tensor) -> Tensor:
    return wrong.float().mean()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one.float() - other.float()).square().flatten(1).mean(1).sqrt().mean()
