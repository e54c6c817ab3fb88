"""Deep adaptation network: multi-kernel MMD between the domains, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import kernel_weights, mmd
from netgraft.finetune.toolbox.adversary import ramp
from netgraft.finetune.toolbox.bottleneck import Bottleneck
from netgraft.finetune.toolbox.domains import DomainAdaptation, head_of, layer_names
from netgraft.finetune.toolbox.kernel_weights import KernelWeights
from netgraft.finetune.toolbox.taps import submodule


@dataclass(frozen=True)
class DeepAdaptation(DomainAdaptation):
    """The distributions of both domains' features are drawn together, layer by layer (DAN, MK-MMD).

    L = J + weight * sum_l MMD^2(f_l(x_s), f_l(x_t)) under K = sum_u beta_u exp(-d^2 / (2 sigma_u^2)), where sigma_u^2
    is 1/8, 1/4, 1/2, 1 and 2 times the mean squared distance in the batch, and beta_u = 1. With ``kernels`` the betas
    of each layer solve min beta^T (Q + epsilon I) beta such that d^T beta = 1, beta >= 0: d_u is the MMD^2 under the
    kernel u in linear time, Q the covariance of its terms; of each batch, or of an epoch's batches for the next epoch.
    With ``bottleneck`` a linear layer of that width stands before the classifier, which is drawn anew; the rest then
    learns at ``backbone_rate`` times the learning rate, and the bottleneck's features are the layer ``features``.

    Long et al. 2015, "Learning transferable features with deep adaptation networks"; the kernels' widths
    are those of the Transfer Learning Library. The paper's own: --set kernels=batch bottleneck=256.

    Departs from the paper: betas are multiplied so that their mean is 1, since ``weight`` is what scales the loss; they
    are all 1 where no d_u is above 0, and in the first epoch of kernels=epoch. The kernels' widths follow the batch. No
    ReLU follows the bottleneck, so that its product with the classifier is written as the network's own classifier.
    """

    weight: float = field(default=1.0, metadata={"help": "weight of the discrepancies"})
    estimator: mmd.Estimator = field(default="linear", metadata={"help": "linear time, or over all pairs of images"})
    layers: str = field(
        default="features,logits", metadata={"help": "module paths; features and logits are the classifier's ends"}
    )
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})
    kernels: Literal["equal", "batch", "epoch"] = field(
        default="equal", metadata={"help": "weights of the kernels: all 1, or the best for each batch or epoch"}
    )
    epsilon: float = field(default=1e-3, metadata={"help": "of the programme for these weights"})
    bottleneck: int = field(default=0, metadata={"help": "width of a layer before the classifier; 0: none"})
    backbone_rate: float = field(
        default=0.1, metadata={"help": "with a bottleneck: factor of the learning rate of the network below it"}
    )

    def __post_init__(self) -> None:
        if self.bottleneck < 0 or self.epsilon <= 0:
            raise ValueError("bottleneck is at least 0 and epsilon above 0.")

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        names = layer_names(run, self.layers)
        found = {"target": Part(run.target_module, rate=self.backbone_rate if self.bottleneck else 1.0)}
        if self.bottleneck:
            head = head_of(run)
            found["bottleneck"] = Part(Bottleneck(submodule(run.target_module, head), self.bottleneck, head))
        if self.kernels == "epoch":
            found["kernels"] = Part(KernelWeights(len(names)))
        return found

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        names = layer_names(run, self.layers)
        bottleneck = parts["bottleneck"].module if self.bottleneck else None
        assert bottleneck is None or isinstance(bottleneck, Bottleneck)
        trained = tuple(name for name in parts if name != "kernels")
        for batch in batches:
            sides = self.sides(run, batch, names, bottleneck=bottleneck)
            all_ = mmd.gather(run.gather, [*(sides.source[n] for n in names), *(sides.target[n] for n in names)])
            pairs = list(zip(all_[: len(names)], all_[len(names) :], strict=True))
            weights = self._weights(pairs, parts)
            kernels = [mmd.gaussians(weights=one) for one in weights]
            found = [mmd.mmd([s], [t], [k], self.estimator) for (s, t), k in zip(pairs, kernels, strict=True)]
            distance = self.weight * ramp(run, self.steepness) * torch.stack(found).sum()
            yield Update(trained, {"task": sides.task, "mmd": distance})
            if bottleneck is not None:
                bottleneck.fold(submodule(run.target_module, head_of(run)))
        if self.kernels == "epoch":
            _kept(parts).solve(self.epsilon)

    def _weights(self, pairs: Sequence[tuple[Tensor, Tensor]], parts: Mapping[str, Part]) -> Sequence[Tensor | None]:
        """The kernels' weights for each layer's samples; None for 1."""
        if self.kernels == "equal":
            return [None] * len(pairs)
        found = [kernel_weights.statistics(s, t) for s, t in pairs]
        if self.kernels == "batch":
            return [kernel_weights.best_weights(one, self.epsilon) for one in found]
        _kept(parts).add(found)
        return list(_kept(parts).each)


def _kept(parts: Mapping[str, Part]) -> KernelWeights:
    module = parts["kernels"].module
    assert isinstance(module, KernelWeights)
    return module
