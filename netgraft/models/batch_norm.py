"""The running statistics of BatchNorm layers, estimated anew: the mean over batches of what each layer sees."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Statistics(NamedTuple):
    """What a BatchNorm layer holds beside its affine parameters."""

    mean: Tensor  # [channels]
    variance: Tensor  # [channels]
    batches: Tensor  # [], how many have been counted


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The layers of ``module`` with running statistics, by name: BatchNorm, synchronised ones, timm's with an act."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: norm for name, norm in found.items() if norm.track_running_stats and norm.running_mean is not None}


def statistics(norm: Any) -> Statistics:
    """A copy of a BatchNorm layer's statistics."""
    return Statistics(*(t.detach().clone() for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)))


@contextmanager
def recalibrating(module: nn.Module, left: Container[str] = ()) -> Iterator[dict[str, _BatchNorm]]:
    """Batches that ``module`` is shown meanwhile set its running statistics to their mean over these batches.

    Those of the layers named in ``left`` stay, and normalise as they do; the others are yielded by name.

    Meanwhile the BatchNorm layers normalise by the batch they see and everything else is in eval mode, without
    gradients. Afterwards modes and momenta are as they were, and so are the statistics of a layer that saw no batch, or
    of all layers where showing them fails. Every batch counts alike: they should be of about equal size (OPERATORS D8).
    """
    norms = {name: norm for name, norm in batch_norms(module).items() if name not in left}
    modes = {part: part.training for part in module.modules()}
    before = {name: (norm.momentum, statistics(norm)) for name, norm in norms.items()}
    module.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    done = False
    try:
        with torch.no_grad():
            yield norms
        done = True
    finally:
        for part, training in modes.items():
            part.training = training
        for name, norm in norms.items():
            norm.momentum, old = before[name]
            if not done or not int(norm.num_batches_tracked):  # type: ignore[arg-type]
                _put(norm, old)


def _put(norm: Any, old: Statistics) -> None:
    for tensor, value in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), old, strict=True):
        tensor.copy_(value)
