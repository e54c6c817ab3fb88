"""Fine-tuning on the labels and on the source's predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.labels import check_one_class


@dataclass(frozen=True)
class KnowledgeDistillation:
    """The predictions are drawn towards the source's, both softened by a temperature.

    L = J + alpha / (1 - alpha) T^2 KL(softmax(z_S / T) || softmax(z / T)), a mean over samples (Hinton, Vinyals, Dean,
    "Distilling the Knowledge in a Neural Network", 2015). T = 4 is that of the code of attention transfer
    and of RepDistiller. Theirs is alpha = 0.9 too: here, where J keeps its size, that makes steps ten times as long,
    which ordinary learning rates do not bear (examples/few_labels.md).

    The source must put out the target's classes in the same order; another number of classes is refused.

    Departs from the paper: J has no factor, so that lambda = 0 is plain fine-tuning. L is the usual
    (1 - alpha) J + alpha T^2 KL divided by 1 - alpha: for the same steps multiply the learning rate by 1 - alpha.
    """

    alpha: float = field(default=0.5, metadata={"help": "share of the source's predictions, below 1; the rest is J's"})
    temperature: float = field(default=4.0, metadata={"help": "T: how soft the predictions are when compared"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.SAME_CLASSES})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError("alpha is at least 0 and below 1.")
        if self.temperature <= 0:
            raise ValueError("temperature is above 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        check_one_class(run, "The source's predictions are a softmax")
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        weight = self.alpha / (1 - self.alpha)
        for batch in batches:
            target, source = run.target(batch), run.source(batch)
            distance = soft_divergence(target.logits, source.logits, self.temperature)
            yield Update(("target",), {"task": run.task(target, batch), "kd": weight * distance})


def soft_divergence(logits: Tensor, source: Tensor, temperature: float) -> Tensor:  # [B, K], [B, K]
    """T^2 KL(softmax(source / T) || softmax(logits / T)), a mean over samples."""
    of_target, of_source = (F.log_softmax(z / temperature, dim=1) for z in (logits, source))
    return temperature**2 * F.kl_div(of_target, of_source, reduction="batchmean", log_target=True)
