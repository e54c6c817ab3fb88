"""Deep adaptation network: multi-kernel MMD between the domains, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.adversary import ramp
from netgraft.finetune.toolbox.domains import DomainAdaptation, layer_names


@dataclass(frozen=True)
class DeepAdaptation(DomainAdaptation):
    """The distributions of both domains' features are drawn together, layer by layer (DAN, MK-MMD).

    L = J + weight * sum_l MMD^2(f_l(x_s), f_l(x_t)) under K = sum_u exp(-d^2 / (2 sigma_u^2)), where sigma_u^2
    is 1/8, 1/4, 1/2, 1 and 2 times the mean squared distance in the batch.

    Long et al. 2015, "Learning transferable features with deep adaptation networks"; the kernels' widths are those
    of the Transfer Learning Library.

    Departs from the paper: all kernels weigh 1, where it solves a quadratic programme for their weights; the widths
    follow the batch; layers are those the network has, with no layer of 256 put before the classifier; there is no
    smaller learning rate for the layers below.
    """

    weight: float = field(default=1.0, metadata={"help": "weight of the discrepancies"})
    estimator: mmd.Estimator = field(default="linear", metadata={"help": "linear time, or over all pairs of images"})
    layers: str = field(
        default="features,logits", metadata={"help": "module paths; features and logits are the classifier's ends"}
    )
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        layer_names(run, self.layers)
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        names = layer_names(run, self.layers)
        for batch in batches:
            sides = self.sides(run, batch, names)
            all_ = mmd.gather(run.gather, [*(sides.source[n] for n in names), *(sides.target[n] for n in names)])
            pairs = zip(all_[: len(names)], all_[len(names) :], strict=True)
            found = [mmd.mmd([s], [t], [mmd.gaussians()], self.estimator) for s, t in pairs]
            distance = self.weight * ramp(run, self.steepness) * torch.stack(found).sum()
            yield Update(("target",), {"task": sides.task, "mmd": distance})
