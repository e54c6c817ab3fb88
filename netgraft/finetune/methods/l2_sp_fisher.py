"""Fine-tuning that stays near its starting point where that matters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.finetune.protocol import Part, Penalty, Run
from netgraft.finetune.toolbox.fisher import WithFisher, information
from netgraft.finetune.toolbox.starting_point import StartingPoint, split
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class L2SPFisher(WithFisher, StartingPoint):
    """L2-SP that weighs each weight by how much the source's predictions depend on it (Fisher information).

    L = J + alpha/2 sum_(i in S) F_i (theta_i - theta_i^0)^2 + beta/2 ||theta_new||^2 (L2-SP-Fisher of Li, Grandvalet,
    Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018).
    theta_S, theta^0 and theta_new are those of l2-sp; F, its images and ``fisher`` are those of ewc. The paper's F is
    ``fisher=expected``: for each image the mean over all classes by their probability. The gradient is known: no graph,
    no backward pass in a step.

    Departs from the paper: what l2-sp says of theta_S and of biases and norms. By default one class is drawn for each
    image, which has the same mean and costs one backward pass in place of one for each class. p(y|x) is that of the
    target at theta^0, not of the source network, whose classifier the target may not have. alpha is netgraft's own.
    """

    alpha: float = field(default=100.0, metadata={"help": "strength of the pull towards the start, beside F"})

    category: ClassVar[str] = "network"

    def held(self, run: Run) -> Mapping[str, Tensor]:
        return split(run, self.scope).old

    def pull(
        self,
        run: Run,  # noqa: ARG002
        parts: Mapping[str, Part],
        old: Mapping[str, Tensor],
        towards: list[Tensor],
    ) -> Callable[[], Penalty]:
        weights, roots = list(old.values()), [f.sqrt() for f in information(parts)]
        return functools.partial(l2_penalty, weights, self.alpha, towards, scale=roots, out=scratch(weights))
