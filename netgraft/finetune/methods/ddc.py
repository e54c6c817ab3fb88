"""Deep domain confusion: the means of the features of both domains at one place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import domains, mmd
from netgraft.finetune.toolbox.adversary import ramp
from netgraft.finetune.toolbox.domains import DomainAdaptation


@dataclass(frozen=True)
class DeepDomainConfusion(DomainAdaptation):
    """The means of both domains' features are drawn together (DDC, a linear MMD).

    L = J + weight * |mean f(x_s) - mean f(x_t)|^2, f what the classifier reads.

    Tzeng et al. 2014, "Deep domain confusion: maximizing for domain invariance".

    Departs from the paper: f is the features that the network has, instead of a layer of 256 put before the classifier,
    whose width and place are chosen by the MMD.
    """

    weight: float = field(default=0.25, metadata={"help": "weight of the distance"})
    estimator: mmd.Estimator = field(default="biased", metadata={"help": "the distance of the means, or unbiased"})
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        for batch in batches:
            sides = self.sides(run, batch)
            source, target = mmd.gather(run.gather, [sides.source[domains.FEATURES], sides.target[domains.FEATURES]])
            distance = self.weight * ramp(run, self.steepness) * mmd.linear_mmd(source, target, self.estimator)
            yield Update(("target",), {"task": sides.task, "mmd": distance})
