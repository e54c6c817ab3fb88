"""Fine-tuning whose answers depend on the image as the source's do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from netgraft.finetune.methods.at import attention, attention_distance, with_places
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Outputs, Part, Run, Update
from netgraft.finetune.toolbox.adapters import check_places, features
from netgraft.finetune.toolbox.stages import check_same_classes


@dataclass(frozen=True)
class JacobianMatching:
    """The gradients of answers, or of attention, with respect to the image are drawn towards the source's.

    L = J + beta sum_j mean_x || u(d a_j^S / dx) - u(d a_j^T / dx) ||^2, u(g) = g / ||g|| for each image. With
    ``of=answers`` a is one number, the logit of the class that the source finds likeliest; the source must put out the
    target's classes. With ``of=attention`` there is one for each pair of layers, the largest value of the sum over
    channels of A^2 (--method at): any classes. ``at`` above 0 adds the match of these maps, at sum_j 1/2 ||Q_S - Q_T||.

    Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018. The whole Jacobian would take a backward
    pass for each output. The gradient of L goes through the image's gradient: a step costs twice one of plain
    fine-tuning, and a forward and a backward pass of the source.

    Departs from the paper: in train mode the target's BatchNorm mixes the images of a batch, and d a / dx is that of
    the sum over the batch. An image without any gradient counts with the constant ||u(.)||^2 of the other network.
    Attention is computed by the kernel that can be differentiated twice.
    """

    beta: float = field(default=1.0, metadata={"help": "weight of the distance of gradients"})
    of: Literal["answers", "attention"] = field(
        default="answers", metadata={"help": "gradients of the likeliest class, or of the paired layers' attention"}
    )
    at: float = field(default=0.0, metadata={"help": "weight of the distance of the attention maps themselves"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_GRADIENTS, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.beta < 0 or self.at < 0:
            raise ValueError("beta and at are at least 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.of == "answers":
            check_same_classes(run, "Add --set of=attention: that compares layers.")
        check_places(self._layers(run))
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        pairs = self._layers(run)
        answers = self.of == "answers"
        for batch in batches:
            x = batch.x.detach().clone().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
                target = run.target(replace(batch, x=x), stats=True)
                source = run.source(x, logits=answers, params={})
            of_target, of_source = features(run.target_module, target), features(run.source_module, source)
            if answers:
                theirs, ours = _likeliest(source, target)
            else:
                theirs = [_largest(of_source[pair.source]) for pair in pairs]
                ours = [_largest(of_target[pair.target]) for pair in pairs]
            constant = [unit(g).detach() for g in gradients(theirs, x)]
            moving = [unit(g) for g in gradients(ours, x, differentiable=True)]
            apart = [(a - b).square().sum(1).mean() for a, b in zip(constant, moving, strict=True)]
            losses = {"task": run.task(target, batch), "jacobian": self.beta * torch.stack(apart).sum()}
            if self.at:
                maps = [(of_source[p.source].detach(), of_target[p.target]) for p in pairs]
                losses["at"] = self.at * torch.stack([attention_distance(*two, "paper") for two in maps]).sum()
            yield Update(("target",), losses)

    def _layers(self, run: Run) -> list[FeaturePair]:
        return with_places(run) if self.of == "attention" or self.at else []


def _likeliest(source: Outputs, target: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of the source's likeliest class, [B] of each network."""
    top = source.logits.detach().argmax(1, keepdim=True)
    return [source.logits.gather(1, top)], [target.logits.gather(1, top)]


def _largest(features: Tensor) -> Tensor:  # [B]
    return attention(features).flatten(1).max(1).values


def gradients(values: Sequence[Tensor], x: Tensor, *, differentiable: bool = False) -> list[Tensor]:
    """Of the sum over the batch of each, with respect to the images."""
    last = len(values) - 1
    return [
        torch.autograd.grad(value.sum(), x, create_graph=differentiable, retain_graph=differentiable or i < last)[0]
        for i, value in enumerate(values)
    ]


def unit(gradient: Tensor) -> Tensor:
    """Each sample's gradient ``[B, ...]`` at length 1, as ``[B, N]``; where it is 0 it stays 0, and is constant."""
    flat = gradient.flatten(1)
    length = flat.norm(dim=1, keepdim=True)
    there = length > 0
    return torch.where(there, flat / torch.where(there, length, 1.0), 0.0)
