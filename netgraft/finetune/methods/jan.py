"""Joint adaptation network: the joint distribution of features and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.adversary import ramp
from netgraft.finetune.toolbox.domains import FEATURES, LOGITS, DomainAdaptation

SIGMA = 0.92
"""Of the kernel between class probabilities: exp(-d^2 / 1.69), as in the Transfer Learning Library."""


@dataclass(frozen=True)
class JointAdaptation(DomainAdaptation):
    """The joint distributions of features and predictions of both domains are drawn together (JAN, JMMD).

    L = J + weight * MMD^2((f(x_s), p(x_s)), (f(x_t), p(x_t))) under K = K_f * K_p: K_f the five Gaussians of ``dan``,
    K_p = exp(-d^2 / (2 * 0.92^2)) between class probabilities.

    Long et al. 2017, "Deep transfer learning with joint adaptation networks"; the kernels' widths are those of
    the Transfer Learning Library.

    Departs from the paper: f is what the classifier reads, with no layer of 256 put before it. The adversarial variant
    JAN-A is not offered.
    """

    weight: float = field(default=1.0, metadata={"help": "weight of the discrepancy"})
    estimator: mmd.Estimator = field(default="linear", metadata={"help": "linear time, or over all pairs of images"})
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        for batch in batches:
            sides = self.sides(run, batch, (FEATURES, LOGITS))
            mine = [end for side in (sides.source, sides.target) for end in (side[FEATURES], side[LOGITS].softmax(1))]
            fs, ps, ft, pt = mmd.gather(run.gather, mine)
            found = mmd.mmd([fs, ps], [ft, pt], [mmd.gaussians(), mmd.gaussian(SIGMA)], self.estimator)
            yield Update(("target",), {"task": sides.task, "mmd": self.weight * ramp(run, self.steepness) * found})
