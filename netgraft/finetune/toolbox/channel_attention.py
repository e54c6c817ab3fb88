"""How much a source's loss on the target's images grows when a channel of a layer is zeroed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, Run
from netgraft.finetune.toolbox.adapters import channel_axis
from netgraft.finetune.toolbox.domains import FEATURES, listening, pooled
from netgraft.finetune.toolbox.suffix import Suffix
from netgraft.finetune.toolbox.taps import first_tensor, submodule, with_first
from netgraft.finetune.toolbox.terms import cross_entropy
from netgraft.models.running import hearing_outputs

AT_ONCE = 256
"""Images in a pass in which channels are zeroed: as many channels as make so many copies of the batch."""

LR, MOMENTUM, DECAY_EPOCHS = 0.01, 0.9, 6
"""Of the SGD that trains a classifier for the target's classes; the rate is divided by ten after so many epochs."""


class Classified:
    """The source as a classifier of the target's classes: by a linear layer on its features, or by its own answers."""

    def __init__(self, run: Run, probe: nn.Linear | None) -> None:
        self.run, self.probe = run, probe
        assert run.source_module is not None, "Need.SOURCE_MODEL"
        self.module = run.source_module

    def __call__(self, x: Tensor, *, gradients: bool = False) -> Tensor:
        """Logits ``[B, classes]`` in float32; with ``gradients`` they can be differentiated."""
        if self.probe is None:
            return self.run.source(x, params={} if gradients else None).logits
        logits: Tensor = self.probe(_features(self.run, x, gradients=gradients))
        return logits


def _features(run: Run, x: Tensor, *, gradients: bool = False) -> Tensor:
    """What the source's classifier reads, [B, width]."""
    assert run.source_module is not None, "Need.SOURCE_MODEL"
    with listening(run.source_module, source_head(run)) as found:
        run.source(x, params={} if gradients else None)
    return pooled(found[FEATURES])


def source_head(run: Run) -> str:
    """The module path of the source's classifier. Raises UsageError for a source without any."""
    if not run.source_heads:
        hint = "If it puts out the target's classes: --set probe_epochs=0"
        raise UsageError("The source has no classifier whose features could be read.", hint=hint)
    return run.source_heads[0]


def train_probe(run: Run, batches: Iterable[Batch], epochs: int) -> Classified:
    """The source with a linear layer for the target's classes, trained so many epochs on its frozen features.

    It begins at 0. The features of all images are kept on the CPU meanwhile: images times width numbers.
    """
    kept = [(_features(run, batch.x).cpu(), batch.y) for batch in batches]
    probe = nn.Linear(kept[0][0].shape[1], run.classes, device=run.device)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(probe.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = LR * 0.1 ** (epoch // DECAY_EPOCHS)
        for features, labels in kept:
            loss = cross_entropy(probe(features.to(run.device)), labels)
            parameters = list(probe.parameters())
            for parameter, gradient in zip(parameters, run.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
    return Classified(run, probe)


@torch.no_grad()
def exact_increase(classified: Classified, layer: str, batch: Batch) -> Tensor:
    """For each channel of the source's layer how much the mean loss of the batch grows where it is zeroed, ``[C]``.

    Only what is behind the layer is run for each channel, several channels in one pass.
    """

    def run(copies: int) -> Tensor:
        return classified(batch.x.repeat(copies, 1, 1, 1))

    size = len(batch.x)
    suffix = Suffix(classified.module, layer, run, size, [pair.source for pair in classified.run.pairs])
    axis = channel_axis(classified.module, layer, suffix.output.dim())
    plain = cross_entropy(suffix.result, batch.y)
    found = []
    for some in torch.arange(suffix.output.shape[axis]).split(max(1, AT_ONCE // size)):
        zeroed = suffix.output.unsqueeze(0).repeat(len(some), *[1] * suffix.output.dim())
        for copy, channel in zip(zeroed, some.tolist(), strict=True):
            copy.select(axis, channel).zero_()
        logits = suffix(zeroed.flatten(0, 1))
        losses = F.cross_entropy(logits, batch.y.repeat(len(some)), reduction="none")
        found.append(losses.view(len(some), size).mean(1) - plain)
    return torch.cat(found)


def estimated_increase(classified: Classified, layers: Sequence[str], batch: Batch) -> list[Tensor]:
    """The same to first order, of all layers in one forward and one backward pass: ``[C]`` of each.

    With a factor of 1 on each channel the estimate is minus the derivative of the loss by the factor.
    """
    factors: dict[str, Tensor] = {}

    def scale(name: str, _: nn.Module, output: Any) -> Any:
        if name in factors:
            return None
        tensor = first_tensor(output)
        axis = channel_axis(classified.module, name, tensor.dim())
        factors[name] = torch.ones(tensor.shape[axis], device=tensor.device, requires_grad=True)
        scaled = tensor * factors[name].to(tensor.dtype).view([-1 if i == axis else 1 for i in range(tensor.dim())])
        return with_first(output, scaled)

    with hearing_outputs({name: submodule(classified.module, name) for name in layers}, scale):
        loss = cross_entropy(classified(batch.x, gradients=True), batch.y)
    found = torch.autograd.grad(loss, [factors[name] for name in layers], materialize_grads=True)
    return [-gradient for gradient in found]


def attention(increase: Tensor, form: str) -> Tensor:
    """Weights of the channels ``[C]`` that sum to 1, by how much the loss grows without each.

    paper: softmax(increase). code: softmax(z / 5), where z is the increase at mean 0 and variance 1.
    """
    if form == "paper":
        return increase.softmax(0)
    centred = increase - increase.mean()
    spread = centred.square().mean().sqrt()
    return (torch.where(spread > 0, centred / torch.where(spread > 0, spread, 1.0), 0.0) / 5).softmax(0)
