"""Joint adaptation network: the joint distribution of features and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.adversary import ramp, reverse
from netgraft.finetune.toolbox.domains import FEATURES, LOGITS, DomainAdaptation, feature_width

SIGMA = 0.92
"""Of the kernel between class probabilities: exp(-d^2 / 1.69), as in the Transfer Learning Library."""


@dataclass(frozen=True)
class JointAdaptation(DomainAdaptation):
    """The joint distributions of features and predictions of both domains are drawn together (JAN, JMMD).

    L = J + weight * MMD^2((f(x_s), p(x_s)), (f(x_t), p(x_t))) under K = K_f * K_p: K_f the five Gaussians of ``dan``,
    K_p = exp(-d^2 / (2 * 0.92^2)) between class probabilities. With ``adversarial`` (JAN-A) the kernels read
    theta_f(f) and theta_p(p) instead: linear layers, at first the identity, that ascend the MMD^2 which the network
    descends, by a reversed gradient in the same update.

    Long et al. 2017, "Deep transfer learning with joint adaptation networks"; the kernels' widths, and theta's form
    and rate, are those of the Transfer Learning Library.

    Departs from the paper: f is what the classifier reads, with no layer of 256 put before it. ``weight`` and --lambda
    multiply theta's gradient too.
    """

    weight: float = field(default=1.0, metadata={"help": "weight of the discrepancy"})
    estimator: mmd.Estimator = field(default="linear", metadata={"help": "linear time, or over all pairs of images"})
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})

    adversarial: bool = field(default=False, metadata={"help": "JAN-A: layers before the kernels ascend the MMD"})
    theta_rate: float = field(
        default=0.1, metadata={"help": "with adversarial: factor of the learning rate of these layers"}
    )

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        found = {"target": Part(run.target_module)}
        if self.adversarial:
            theta = nn.ModuleList(_identity(width) for width in (feature_width(run), run.classes))
            found["theta"] = Part(theta, rate=self.theta_rate)
        return found

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        theta = parts["theta"].module if self.adversarial else None
        assert theta is None or isinstance(theta, nn.ModuleList)
        for batch in batches:
            sides = self.sides(run, batch, (FEATURES, LOGITS))
            mine = [end for side in (sides.source, sides.target) for end in (side[FEATURES], side[LOGITS].softmax(1))]
            if theta is not None:
                mine = [_ascending(theta[i % 2], end) for i, end in enumerate(mine)]
            fs, ps, ft, pt = mmd.gather(run.gather, mine)
            found = mmd.mmd([fs, ps], [ft, pt], [mmd.gaussians(), mmd.gaussian(SIGMA)], self.estimator)
            losses = {"task": sides.task, "mmd": self.weight * ramp(run, self.steepness) * found}
            yield Update(tuple(parts), losses)


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _ascending(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, whose gradient reaches the layer's parameters reversed, and ``x`` as it is."""
    return reverse(layer(reverse(x)))
