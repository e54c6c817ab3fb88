"""The target with a head for the source's classes, for as long as it learns from the source's answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from netgraft.architecture.graph import Layer
from netgraft.channels.index_map import NEW
from netgraft.channels.layout import axes_of
from netgraft.errors import UsageError
from netgraft.models.running import find_submodule
from netgraft.passes.protocol import Stage
from netgraft.passes.refitting.channels import OutputChannels


def check_classes(head: Layer, classes: int) -> None:
    """Raise UsageError for a head that is to be kept and has another number of outputs than the source has classes."""
    if head.out_channels != classes:
        raise UsageError(
            f"The target's head has {head.out_channels} outputs, and the source {classes} classes.",
            hint="To keep a head with the source's classes, give the target that many: "
            f"--target-arg num_classes={classes}",
        )


class Learner:
    """The target with a head for the source's classes."""

    def __init__(self, stage: Stage, classes: int, head: str) -> None:
        self.stage, self.classes = stage, classes
        heads = stage.target.graph.heads()
        module = find_submodule(stage.target.module, heads[0].name) if len(heads) == 1 else None
        module = None if module is stage.target.module else module
        if not isinstance(module, nn.Linear) and not (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            raise UsageError(
                f"{stage.target.model.name} has no single linear head that could be exchanged for a while.",
                where=", ".join(layer.name for layer in heads) or "no layer before the output",
                hint="Use --recipe refit.",
            )
        self.layer, self.module = heads[0], module
        self.what = head
        if head == "keep":
            check_classes(heads[0], classes)

    @contextmanager
    def prepared(self) -> Iterator[nn.Module]:
        """The network to train; afterwards its own head is back, unless it is to stay."""
        net, own = self.stage.target.module, self.module
        temporary = own if self.what == "keep" else self._like(own)
        if not (self.what == "keep" and self.layer.name in self.stage.fitted):  # else it answers already
            self._start(temporary)
        owner, _, name = self.layer.name.rpartition(".")
        parent = net.get_submodule(owner)
        setattr(parent, name, temporary)
        try:
            yield net
        finally:
            setattr(parent, name, own)

    def _like(self, own: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
        if isinstance(own, nn.Conv2d):
            return nn.Conv2d(own.in_channels, self.classes, 1).to(self.stage.device)
        return nn.Linear(own.in_features, self.classes).to(self.stage.device)

    @torch.no_grad()
    def _start(self, head: nn.Linear | nn.Conv2d) -> None:
        """The source's classifier where a feature follows one of the source's; small random weights elsewhere."""
        weight = head.weight
        weight.mul_(0.1)
        if head.bias is not None:
            head.bias.zero_()
        heads = self.stage.source.graph.heads()
        if len(heads) != 1 or heads[0].transposed or heads[0].out_channels != self.classes:
            return
        if not all("weight" in layer.tensors for layer in (heads[0], self.layer)):  # reparametrised
            return
        tensors = dict(self.stage.source.module.state_dict())
        source_weight = tensors[heads[0].tensors["weight"].key]
        if source_weight.dim() != weight.dim():
            source_weight = source_weight.reshape(*source_weight.shape[:2], *[1] * (weight.dim() - 2))
        index = self._features(heads[0])
        if index is None or source_weight.dim() != weight.dim() or max(index, default=NEW) >= source_weight.shape[1]:
            return
        columns = torch.tensor([i for i, source in enumerate(index) if source != NEW], device=weight.device)
        sources = torch.tensor([source for source in index if source != NEW], device=weight.device)
        weight[:, columns] = source_weight[:, sources].to(weight)
        bias = heads[0].tensors.get("bias")
        if bias is not None and head.bias is not None:
            head.bias.copy_(tensors[bias.key])

    def _features(self, source_layer: Layer) -> list[int] | None:
        """For each feature the target's head reads, the source's behind it."""
        stage = self.stage
        pairs = [
            (stage.source.graph.layers[p.source], stage.target.graph.layers[p.target]) for p in stage.plan.pairing.pairs
        ]
        maps = OutputChannels(stage.source.graph, stage.target.graph, pairs, stage.norms).maps
        source_weight, target_weight = source_layer.tensors["weight"], self.layer.tensors["weight"]
        a, b = axes_of(maps.source, source_weight)[1], axes_of(maps.target, target_weight)[1]
        index = maps.index(a, b)
        return index if index is not None and len(index) == target_weight.shape[1] else None
