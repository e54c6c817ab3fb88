"""Domain-adversarial training by gradient reversal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox.adversary import Discriminator, domain_loss, ramp, recognised, reverse
from netgraft.finetune.toolbox.domains import FEATURES, DomainAdaptation, feature_width


@dataclass(frozen=True)
class DomainAdversarial(DomainAdaptation):
    """Features from which a discriminator cannot tell the domain, by gradient reversal (DANN).

    With L_D = -(mean log D(f(x_s)) + mean log(1 - D(f(x_t)))) / 2, f what the classifier reads: D descends L_D, and the
    network descends J - weight * r(p) * L_D, in one backward pass; r(p) = 2 / (1 + exp(-steepness * p)) - 1, p the part
    of the training that is done.

    Ganin & Lempitsky 2015, "Unsupervised domain adaptation by backpropagation"; Ganin et al. 2016, "Domain-adversarial
    training of neural networks".

    Departs from the paper: the discriminator has two hidden layers for every network, and --lambda multiplies its own
    gradient too (as in the second paper), ``weight`` the reversed one alone (as in the first).
    """

    weight: float = field(default=1.0, metadata={"help": "factor of the reversed gradient"})
    steepness: float = field(default=10.0, metadata={"help": "of the reversed gradient's growth from 0; 0: constant"})
    hidden: int = field(default=1024, metadata={"help": "width of the discriminator"})

    category: ClassVar[str] = "adversarial"

    def parts(self, run: Run) -> Mapping[str, Part]:
        discriminator = Discriminator(feature_width(run), self.hidden)
        return {"target": Part(run.target_module), "discriminator": Part(discriminator)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        discriminator = parts["discriminator"].module
        for batch in batches:
            sides, strength = self.sides(run, batch), self.weight * ramp(run, self.steepness)
            source, target = (discriminator(reverse(side[FEATURES], strength)) for side in (sides.source, sides.target))
            run.note("domain_accuracy", recognised(source, target))
            losses = {"task": sides.task, "domain": domain_loss(source, target)}
            yield Update(("target", "discriminator"), losses)
