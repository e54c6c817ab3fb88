"""Wasserstein distance guided representation learning: a critic measures how far the domains are apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox.adversary import Discriminator, ramp
from netgraft.finetune.toolbox.domains import FEATURES, DomainAdaptation, feature_width


@dataclass(frozen=True)
class WassersteinGuided(DomainAdaptation):
    """The Wasserstein distance of both domains' features, as a critic estimates it, becomes small (WDGRL).

    W = mean C(f(x_s)) - mean C(f(x_t)), f what the classifier reads. For each batch the critic C descends
    -W + penalty * mean (|grad_h C(h)| - 1)^2 ``critic_steps`` times, on features that stay as they are; h are the
    features of both domains and a random point between f(x_s) and f(x_t) of each pair of images. Then the network
    descends J + weight * W against the new C.

    Shen et al. 2018, "Wasserstein distance guided representation learning for domain adaptation".

    Departs from the paper: the critic has two hidden layers; its learning rate, its width, the number of its steps and
    the weights are netgraft's, unless you set them.
    """

    weight: float = field(default=0.1, metadata={"help": "weight of the distance"})
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})
    critic_steps: int = field(default=5, metadata={"help": "steps of the critic for each batch"})
    penalty: float = field(default=10.0, metadata={"help": "weight of the penalty of the critic's slope"})
    hidden: int = field(default=100, metadata={"help": "width of the critic"})
    critic_lr: float = field(default=1e-3, metadata={"help": "Adam's learning rate of the critic"})

    category: ClassVar[str] = "mapping"

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise ValueError("critic_steps is at least 1.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        critic = Discriminator(feature_width(run), self.hidden)
        return {"target": Part(run.target_module), "critic": Part(critic, lr=self.critic_lr, opt="adam")}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        critic = parts["critic"].module
        for batch in batches:
            sides = self.sides(run, batch)
            source, target = sides.source[FEATURES], sides.target[FEATURES]
            constant = source.detach(), target.detach()
            for step in range(self.critic_steps):
                shares = run.random(batch, f"between {step}", 1)
                slope = self.penalty * slope_penalty(critic, *constant, shares)
                yield Update(("critic",), {"critic": slope - distance(critic, *constant)})
            found = self.weight * ramp(run, self.steepness) * distance(critic, source, target)
            yield Update(("target",), {"task": sides.task, "wasserstein": found})


def distance(critic: nn.Module, source: Tensor, target: Tensor) -> Tensor:  # [n, d], [m, d]
    """Mean C(source) - mean C(target): a scalar, the Wasserstein distance where C is the best with slopes of 1."""
    found: Tensor = critic(source).mean() - critic(target).mean()
    return found


def slope_penalty(critic: nn.Module, source: Tensor, target: Tensor, shares: Tensor) -> Tensor:
    """The mean of (|grad_h C(h)| - 1)^2 over the rows of both and the points between them; a scalar with a graph.

    The i-th point is ``shares[i] * source[i] + (1 - shares[i]) * target[i]``, shares ``[n, 1]`` in [0, 1].
    """
    count = min(len(source), len(target), len(shares))
    between = shares[:count] * source[:count] + (1 - shares[:count]) * target[:count]
    points = torch.cat([source, target, between]).detach().requires_grad_()
    values = critic(points.view_as(points))  # counters of FLOPs take no leaf for a module's input
    (slopes,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    found: Tensor = (slopes.norm(dim=1) - 1).square().mean()
    return found
