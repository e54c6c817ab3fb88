"""Running statistics of BatchNorm layers from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from netgraft.architecture.graph import LayerGraph
from netgraft.models.batch_norm import Statistics, batch_norms, recalibrating, statistics
from netgraft.models.running import forward
from netgraft.passes.protocol import LiveModel, Stage
from netgraft.plan import RECALIBRATED, Pairing

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""The roles of the tensors of a BatchNorm layer that hold its statistics."""


@dataclass(frozen=True)
class Recalibrate:
    """Sets the running statistics of every BatchNorm to the images': their mean over batches (OPERATORS D8 i).

    Copied statistics belong to the source's activations; where the target's are others, a network in eval mode
    normalises by the wrong numbers. Nothing but the statistics changes.
    """

    fate: ClassVar[str] = RECALIBRATED

    images: int = field(default=512, metadata={"help": "how many images the statistics are taken from"})
    batch: int = field(default=64, metadata={"help": "images at a time; the statistics are the mean over the batches"})

    def __post_init__(self) -> None:
        if self.images < 2 or self.batch < 2:
            raise ValueError("images and batch must be 2 or more: one image has no variance")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        return statistics_keys(target)

    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``norms``: how many; ``mean_change``, ``std_change``: see ``change``, on average over the norms.

        ``left``: BatchNorm layers of the architecture whose statistics are set by no training, such as frozen ones.
        Norms that are ``stage.settled`` stay as they are.
        """
        target = stage.target
        norms_of = [name for name, layer in target.graph.layers.items() if layer.kind == "batch_norm"]
        known = [name for name in norms_of if name not in stage.settled]
        before = {name: statistics(norm) for name, norm in batch_norms(target.module).items() if name in known}
        left = [name for name in known if name not in before]
        if not before:
            return {"norms": 0, "images": 0, "mean_change": 0.0, "std_change": 0.0, "left": left}
        stage.progress(f"recalibrating the norms of {target.model.name}")
        images = stage.images(self.images, seed=3)
        with recalibrating(target.module, stage.settled) as norms:
            for part in images.tensor_split(-(-len(images) // self.batch)):  # sizes differ by one at most
                show(target, stage.shown(part, target))
        changes = [change(old, statistics(norms[name])) for name, old in before.items()]
        mean, std = (sum(each) / len(changes) for each in zip(*changes, strict=True))
        return {"norms": len(before), "images": len(images), "mean_change": mean, "std_change": std, "left": left}


def statistics_keys(graph: LayerGraph, roles: Sequence[str] = STATISTICS) -> tuple[str, ...]:
    """The keys of these tensors of every BatchNorm that training sets: it counts its batches. Aliases included."""
    norms = [layer for layer in graph.layers.values() if "num_batches_tracked" in layer.tensors]
    slots = [layer.tensors[role] for layer in norms for role in roles if role in layer.tensors]
    return tuple(dict.fromkeys(key for slot in slots for key in slot.keys))


def change(before: Statistics, after: Statistics) -> tuple[float, float]:
    """How far a norm's means have moved, and its standard deviations: both as Euclidean norms over the channels.

    Relative to the norm of the standard deviations before.
    """
    scale = before.variance.double().sqrt().norm().clamp_min(1e-12)
    mean = (after.mean.double() - before.mean.double()).norm() / scale
    std = (after.variance.double().sqrt() - before.variance.double().sqrt()).norm() / scale
    return float(mean), float(std)


def show(network: LiveModel, images: torch.Tensor) -> None:
    """A forward pass. Raises ForwardError where the network fails."""
    hint = "A BatchNorm needs more than one value per channel: are the feature maps 1x1, the batches of one?"
    forward(network.module, images, network.model, hint)
