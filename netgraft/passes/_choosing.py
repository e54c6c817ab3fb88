"""Of many images those that look to the source as what it was trained on did, by what its batch norms remember.

Images that no photograph resembles give a layer other means and variances than those it was trained with, and what the
source answers there says little of what it does. The images kept are those whose means and variances, taken together,
are near the running ones: what Yin et al. descend for single images (DeepInversion, arXiv:1912.08795), as a
choice among given ones. They are chosen greedily, since of images that are near one by one many are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.models.batch_norm import batch_norms
from netgraft.passes.protocol import Stage

BLOCK = 64
"""So many images are chosen at a time, out of as many times that as there are candidates for each."""
_LEAST = 0.01  # of a layer's mean variance: what a channel that is dead, or nearly, is taken to vary by


class Chosen(NamedTuple):
    """Which images, and how far the statistics of all and of these are from the running ones (``departures``)."""

    places: Tensor  # [wanted], ascending
    of_all: float
    of_chosen: float


def nearest_to_statistics(stage: Stage, images: Tensor, wanted: int, batch: int) -> Chosen:
    """``wanted`` of the images whose statistics, taken together, are nearest to the source's running ones.

    Raises UsageError for a source without batch norms.
    """
    check_has_statistics(stage)
    blocks = max(wanted // BLOCK, 1)
    places: list[int] = []
    total, everything = torch.zeros(()), torch.zeros(())
    quotas = torch.arange(wanted).tensor_split(blocks)
    for block, quota in zip(torch.arange(len(images)).tensor_split(blocks), quotas, strict=True):
        seen = torch.cat([departures(stage, images[some]) for some in block.split(batch)])
        everything = everything + seen.sum(0, dtype=torch.float64)
        found, total = _greedily(seen, len(quota), total)
        places += [int(block[place]) for place in found]
        stage.progress(f"chose {len(places)} of {wanted} images by {stage.source.model.name}'s statistics")
    both = ((everything / len(images)).square().sum(), (total / wanted).square().sum())
    return Chosen(torch.tensor(sorted(places)), float(both[0]), float(both[1]))


def check_has_statistics(stage: Stage) -> None:
    """UsageError for a source without batch norms."""
    if not batch_norms(stage.source.module):
        raise UsageError(
            f"{stage.source.model.name} has no batch norms whose statistics images could be chosen by.",
            hint="Leave choose=statistics out.",
        )


@torch.no_grad()
def departures(stage: Stage, images: Tensor) -> Tensor:
    """How each image departs from the source's statistics, ``[images, numbers]`` on the CPU.

    For every channel of every batch norm: its mean less the running one, in running standard deviations, and its
    variance around the running mean, in running variances, less 1, over the square root of 2. The squares of a set's
    mean departures, summed, are the mean over channels and layers of about twice the divergence KL(set || running) of
    normal distributions. Layers that do not show which image a value belongs to are left out.
    """
    with _watching(stage.source.module) as seen:
        stage.source.module(stage.shown(images, stage.source))
    found = []
    for norm, inputs in seen:
        values = [each for each in (_by_image(x, len(images), norm.num_features) for x in inputs) if each is not None]
        if values:
            x = torch.cat(values, 2)  # [images, channels, places]
            variance = norm.running_var.float()
            spread = variance.clamp_min(_LEAST * float(variance.mean())) + norm.eps
            x = (x.float() - norm.running_mean.float()[:, None]) / spread.sqrt()[:, None]
            of_variance = (x.square().mean(2) - variance / spread) / 2**0.5
            found.append(torch.cat([x.mean(2), of_variance], 1) / norm.num_features**0.5)
    if not found:
        raise UsageError(
            f"No batch norm of {stage.source.model.name} sees the images one by one.",
            hint="Leave choose=statistics out.",
        )
    together: Tensor = torch.cat(found, 1) / len(found) ** 0.5
    return together.cpu()


def _greedily(seen: Tensor, wanted: int, total: Tensor) -> tuple[list[int], Tensor]:
    """The images that bring the sum of departures nearest to zero, one after the other, and that sum."""
    own = seen.square().sum(1, dtype=torch.float64)
    left = torch.zeros(len(seen), dtype=torch.float64)
    found = []
    for _ in range(wanted):
        along = seen @ total.to(seen).expand(seen.shape[1])
        best = int((2 * along.double() + own + left).argmin())
        found.append(best)
        left[best] = torch.inf
        total = total + seen[best].double()
    return found, total


def _by_image(x: Tensor, images: int, channels: int) -> Tensor | None:
    """A batch norm's input as ``[images, channels, places]``; None where its rows are no images."""
    if x.dim() == 2 and len(x) % images == 0:  # tokens of one image after the other
        return x.reshape(images, -1, channels).transpose(1, 2)
    return x.flatten(2) if x.dim() > 2 and len(x) == images else None


@contextmanager
def _watching(module: torch.nn.Module) -> Iterator[Sequence[tuple[Any, list[Tensor]]]]:
    """The batch norms of a network and the inputs that they get meanwhile."""
    seen: list[tuple[Any, list[Tensor]]] = [(norm, []) for norm in batch_norms(module).values()]
    handles = [
        norm.register_forward_pre_hook(lambda _, inputs, into=into: into.append(inputs[0])) for norm, into in seen
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
