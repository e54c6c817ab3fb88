"""Fine-tuning that stays near its starting point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.finetune.protocol import Part, Penalty, Run
from netgraft.finetune.toolbox.starting_point import StartingPoint
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class L2SP(StartingPoint):
    """Weights that came from a source are drawn towards where they started, all others towards zero.

    L = J + alpha/2 ||theta_S - theta_S^0||^2 + beta/2 ||theta_new||^2 (Li, Grandvalet, Davoine, "Explicit Inductive
    Bias for Transfer Learning with Convolutional Networks", ICML 2018). The gradient is known: there is no
    graph over the weights and no backward pass for it, with --combine dtnh neither. The optimizer's momentum sees it,
    as in the authors' code. The optimizer's own --weight-decay comes on top of it: set it to 0 for the paper's L.

    theta^0 are the weights of --init, also where a transfer resized or stacked them: so it works across
    architectures. theta_S are the tensors that the ledger of --init takes from the source; what it keeps or sets
    belongs to theta_new. For a file without a ledger theta_new is the classifier.

    Departs from the paper: theta_S follows the ledger, so that a classifier that was transferred is drawn to its
    start too. Biases and norms are free, which is what the authors' code does and the paper does not say; tllib and
    DELTA regularise them (``scope=all``).
    """

    alpha: float = field(default=0.01, metadata={"help": "strength of the pull towards the start; 0.1 in the paper's"})

    category: ClassVar[str] = "network"

    def pull(
        self,
        run: Run,  # noqa: ARG002
        parts: Mapping[str, Part],  # noqa: ARG002
        old: Mapping[str, Tensor],
        towards: list[Tensor],
    ) -> Callable[[], Penalty]:
        weights = list(old.values())
        return functools.partial(l2_penalty, weights, self.alpha, towards, out=scratch(weights))
