"""Fine-tuning that leaves whole filters where they start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from netgraft.finetune.protocol import Part, Penalty, Run
from netgraft.finetune.toolbox.starting_point import StartingPoint
from netgraft.finetune.toolbox.terms import group_penalty, scratch


@dataclass(frozen=True)
class GroupLassoSP(StartingPoint):
    """Filters that came from a source are drawn towards their start as wholes, new weights towards zero.

    L = J + alpha sum_g sqrt(p_g) ||(theta_S - theta_S^0)_g|| + beta/2 ||theta_new||^2 (Group-Lasso-SP of Li,
    Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018).
    A group g is what one output channel of a layer is computed with, its p_g weights. The gradient,
    alpha sqrt(p_g) times the direction from the start, is known: no graph, no backward pass. theta_S, theta^0 and
    theta_new are those of l2-sp.

    Departs from the paper: what l2-sp says of theta_S and of biases and norms, which with ``scope=all`` are a group
    each, number by number. Linear layers have a group for each output too; a tensor that is no layer's weight has one
    for each index of its first axis. Steps follow the subgradient, which is 0 for a group at its start: a filter that
    has left seldom meets it exactly. The paper chose alpha by cross-validation; the default is netgraft's own.
    """

    alpha: float = field(default=1e-4, metadata={"help": "strength of the pull towards the start"})

    category: ClassVar[str] = "network"

    def pull(
        self,
        run: Run,
        parts: Mapping[str, Part],  # noqa: ARG002
        old: Mapping[str, Tensor],
        towards: list[Tensor],
    ) -> Callable[[], Penalty]:
        weights, groups = list(old.values()), _transposed(run.target_module)
        transposed = [groups.get(id(weight), 0) for weight in weights]
        return functools.partial(
            group_penalty, weights, self.alpha, towards, transposed=transposed, out=scratch(weights)
        )


def _transposed(module: nn.Module) -> dict[int, int]:
    """The number of groups of each transposed convolution, by the identity of its weight."""
    return {id(m.weight): m.groups for m in module.modules() if isinstance(m, _ConvTransposeNd)}
