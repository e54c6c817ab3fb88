"""Fine-tuning that leaves most weights where they start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.finetune.protocol import Part, Penalty, Run
from netgraft.finetune.toolbox.starting_point import StartingPoint
from netgraft.finetune.toolbox.terms import l1_penalty, scratch


@dataclass(frozen=True)
class L1SP(StartingPoint):
    """Weights that came from a source are drawn towards their start by the absolute distance, new ones towards zero.

    L = J + alpha ||theta_S - theta_S^0||_1 + beta/2 ||theta_new||^2 (L1-SP of Li, Grandvalet, Davoine, "Explicit
    Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018). A weight leaves its
    start only where the task's gradient is larger than alpha. The gradient, alpha sign(theta_S - theta_S^0), is known:
    no graph, no backward pass. theta_S, theta^0 and theta_new are those of l2-sp.

    Departs from the paper: what l2-sp says of theta_S and of biases and norms. Steps follow the subgradient, which is 0
    at the start: a weight that has left comes near to its start again, and seldom meets it exactly. The paper chose
    alpha by cross-validation; the default is netgraft's own.
    """

    alpha: float = field(default=1e-4, metadata={"help": "strength of the pull towards the start"})

    category: ClassVar[str] = "network"

    def pull(
        self,
        run: Run,  # noqa: ARG002
        parts: Mapping[str, Part],  # noqa: ARG002
        old: Mapping[str, Tensor],
        towards: list[Tensor],
    ) -> Callable[[], Penalty]:
        weights = list(old.values())
        return functools.partial(l1_penalty, weights, self.alpha, towards, out=scratch(weights))
