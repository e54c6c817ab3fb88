"""Numbers that belong to single images of a data set: weights that are kept, and measurements of all images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Run


class InstanceWeights(nn.Module):
    """One number for each image of a data set, 1 at first. They are a buffer: saved, resumed, and nothing trains."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(images))

    def of(self, batch: Batch) -> Tensor:
        """Those of a batch's images, ``[B]``."""
        return self.weights[batch.ids.to(self.weights.device)]

    @torch.no_grad()
    def set(self, weights: Tensor) -> None:  # [images]
        self.weights.copy_(weights)


@torch.no_grad()
def over_every_image(run: Run, data: str, measure: Callable[[Batch], Tensor], *shape: int) -> Tensor:
    """``measure(batch)`` ``[B, *shape]`` for all images of a data set: ``[images, *shape]``, on all processes."""
    found = torch.zeros((run.sizes[data], *shape), device=run.device)
    for batch in run.every_image(data):
        found[batch.ids.to(found.device)] = measure(batch).to(found.dtype)
    (mean,) = run.reduce([found])  # each image was measured by one process, and is 0 in the others
    return mean * run.world
