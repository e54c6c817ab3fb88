"""Simultaneous deep transfer: confused domains, and the source's soft labels on the target's labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.adversary import confusion, domain_loss, recognised
from netgraft.finetune.toolbox.domains import FEATURES, DomainAdaptation, Labels, check_labels, feature_width
from netgraft.finetune.toolbox.soft_labels import SoftLabels


@dataclass(frozen=True)
class SimultaneousTransfer(DomainAdaptation):
    """Domains are confused, and labelled target images keep the source's similarities of classes (Tzeng et al.).

    With each batch a linear classifier D of domains descends -(mean log D(f(x_s)) + mean log(1 - D(f(x_t)))) / 2, and
    then the network descends J + confusion * L_conf + soft * L_soft against the new D, which stays as it is:
    L_conf = -(log D + log(1 - D)) / 2, the mean over both domains, is least where D does not know; L_soft =
    -sum_k l_k^(y) log softmax(z / temperature)_k on the target's images with label y. The soft label l^(y) is the mean
    of softmax(z / temperature) over the source's images of class y, before the training.

    Tzeng et al. 2015, "Simultaneous deep transfer across domains and tasks": domain confusion and soft labels. The
    network that gives the soft labels is the initialisation; train it on the source first:
    ``netgraft finetune --data SOURCE --method plain``. With labels=source there are no soft labels.

    Departs from the paper: both domains weigh one half in D's loss and in L_conf; the soft labels are means over the
    source images that stand beside the target's in the first epoch, and a class without any has no soft label, whose
    images count with a loss of 0.
    """

    labels: Labels = field(default="both", metadata={"help": "the images whose labels the task's loss takes"})
    confusion: float = field(default=0.01, metadata={"help": "weight of the confusion of domains"})
    soft: float = field(default=0.1, metadata={"help": "weight of the soft labels"})
    temperature: float = field(default=2.0, metadata={"help": "how soft the labels are"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START, Need.SOURCE_DATA})
    category: ClassVar[str] = "adversarial"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError("temperature is above 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        discriminator = nn.Sequential(nn.Linear(feature_width(run), 1), nn.Flatten(0))
        found = {"target": Part(run.target_module), "discriminator": Part(discriminator)}
        return found if self.labels == "source" else found | {"soft_labels": Part(SoftLabels(run.classes))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        """The soft label of each class."""
        if self.labels == "source":
            return
        sums = torch.zeros(run.classes, run.classes, device=run.device)
        counts = torch.zeros(run.classes, device=run.device)
        for batch in batches:
            assert batch.source is not None, "Need.SOURCE_DATA"
            check_labels(run, batch.source)
            with torch.no_grad():
                soft = (run.target(batch.source, train=False).logits / self.temperature).softmax(1)
            of_class = F.one_hot(batch.source.y, run.classes).T.to(soft)
            sums, counts = sums + of_class @ soft, counts + of_class.sum(1)
        sums, counts = run.reduce([sums, counts])
        labels = parts["soft_labels"].module
        assert isinstance(labels, SoftLabels)
        labels.each.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None], 0.0))

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        discriminator = parts["discriminator"].module
        for batch in batches:
            sides = self.sides(run, batch)
            source, target = sides.source[FEATURES], sides.target[FEATURES]
            logits = discriminator(source.detach()), discriminator(target.detach())
            run.note("domain_accuracy", recognised(*logits))
            yield Update(("discriminator",), {"domain": domain_loss(*logits)})
            confused = confusion(discriminator(source), discriminator(target))
            losses = {"task": sides.task, "confusion": self.confusion * confused}
            if sides.own is not None:
                losses["soft"] = self.soft * parts["soft_labels"].module(sides.own / self.temperature, batch.y)
            yield Update(("target",), losses)
