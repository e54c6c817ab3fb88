"""Residual transfer network: the source's classifier is the target's and a residual."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Outputs, Part, Run, Update
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.domains import FEATURES, LOGITS, DomainAdaptation


class _Residual(nn.Module):
    """f -> f + W2 relu(W1 f), [B, classes]; W2 starts as zero, so that both classifiers are one at first."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(classes, classes), nn.Linear(classes, classes)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.outer(torch.relu(self.inner(x)))
        return found


@dataclass(frozen=True)
class ResidualTransfer(DomainAdaptation):
    """The source's classifier is the target's plus a residual; entropy and a discrepancy adapt to the target (RTN).

    L = mean CE(f_S(x_s), y_s) + entropy * mean H(softmax f_T(x_t)) + weight * MMD^2(z_s, z_t)

    with f_S = f_T + r(f_T), r two linear layers with a ReLU between, f_T the network's own logits, and z the outer
    product of what the classifier reads and of f_T, both of one image.

    Long, Zhu, Wang and Jordan 2016, "Unsupervised domain adaptation with residual transfer networks".

    Departs from the paper: features are what the classifier reads, with no bottleneck of 256 before it; the kernels of
    the discrepancy are the five Gaussians of ``dan``; r starts at zero rather than at random.
    """

    labels: Literal["source"] = field(
        default="source", metadata={"help": "the images whose labels the task's loss takes"}
    )
    weight: float = field(default=0.3, metadata={"help": "weight of the discrepancy"})
    entropy: float = field(default=0.3, metadata={"help": "weight of the entropy of the target's predictions"})
    estimator: mmd.Estimator = field(default="unbiased", metadata={"help": "linear time, or over all pairs of images"})

    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module), "residual": Part(_Residual(run.classes))}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        for batch in batches:
            sides = self.sides(run, batch, (FEATURES, LOGITS))
            assert batch.source is not None, "Need.SOURCE_DATA"
            logits = parts["residual"].module(sides.source[LOGITS])
            log_p = sides.target[LOGITS].log_softmax(1)
            fused = [_fused(side[FEATURES], side[LOGITS]) for side in (sides.source, sides.target)]
            one, other = mmd.gather(run.gather, fused)
            found = mmd.mmd([one], [other], [mmd.gaussians()], self.estimator)
            losses = {
                "task": run.task(Outputs(logits, {}), batch.source),
                "entropy": self.entropy * -(log_p.exp() * log_p).sum(1).mean(),
                "mmd": self.weight * found,
            }
            yield Update(("target", "residual"), losses)


def _fused(features: Tensor, logits: Tensor) -> Tensor:  # [B, d], [B, classes] -> [B, d * classes]
    return (features[:, :, None] * logits[:, None, :]).flatten(1)
