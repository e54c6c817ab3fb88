"""Conditional domain-adversarial training: the discriminator sees predictions too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox.adversary import Discriminator, Multilinear, domain_loss, ramp, recognised, reverse
from netgraft.finetune.toolbox.domains import LOGITS, DomainAdaptation, layer_names, layer_width


@dataclass(frozen=True)
class ConditionalAdversarial(DomainAdaptation):
    """A discriminator of features times predictions, by gradient reversal; certain images weigh more (CDAN+E).

    h = f (x) p, f what the classifier reads and p the class probabilities, or (R_f f) * (R_p p) / sqrt(dimensions) with
    random matrices where h has more than 4096 elements. As ``dann`` with D(h) instead of D(f), and each image weighed
    by 1 + exp(-H(p)), of mean 1 in each domain, H the entropy. With several ``layers`` h is the product of all of them
    and p: f_1 (x) ... (x) p, or (R_1 f_1) * ... * (R_p p) / sqrt(dimensions), as in RMAN.

    Long et al. 2018, "Conditional adversarial domain adaptation"; RMAN is its first version: Long et al. 2017, "Domain
    adaptation with randomized multilinear adversarial networks".

    Departs from the paper: p and the weights are taken as constants, as in its authors' code for p; the reversed
    gradient grows as in ``dann``; maps and tokens are averaged over places.
    """

    weight: float = field(default=1.0, metadata={"help": "factor of the reversed gradient"})
    steepness: float = field(default=10.0, metadata={"help": "of the reversed gradient's growth from 0; 0: constant"})
    entropy: bool = field(default=True, metadata={"help": "weigh images by how certain their predictions are"})
    dimensions: int = field(default=1024, metadata={"help": "of the randomised map"})
    longest: int = field(default=4096, metadata={"help": "elements of f (x) p above which the map is randomised"})
    hidden: int = field(default=1024, metadata={"help": "width of the discriminator"})
    layers: str = field(
        default="features", metadata={"help": "module paths to multiply; features is what the classifier reads"}
    )

    category: ClassVar[str] = "adversarial"

    def parts(self, run: Run) -> Mapping[str, Part]:
        widths = [layer_width(run, name) for name in layer_names(run, self.layers)]
        multilinear = Multilinear([*widths, run.classes], self.dimensions, self.longest)
        module = nn.ModuleDict({"map": multilinear, "net": Discriminator(multilinear.width, self.hidden)})
        return {"target": Part(run.target_module), "discriminator": Part(module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        module = parts["discriminator"].module
        assert isinstance(module, nn.ModuleDict)
        names = layer_names(run, self.layers)
        for batch in batches:
            seen, strength = self.sides(run, batch, (*names, LOGITS)), self.weight * ramp(run, self.steepness)
            logits = []
            for side in (seen.source, seen.target):
                predicted = side[LOGITS].detach().softmax(1)
                layers = [reverse(side[name], strength) for name in names]
                logits.append(module["net"](module["map"](*layers, predicted)))
            weights = certainty(run, seen.source[LOGITS], seen.target[LOGITS]) if self.entropy else None
            run.note("domain_accuracy", recognised(logits[0], logits[1]))
            losses = {"task": seen.task, "domain": domain_loss(logits[0], logits[1], weights)}
            yield Update(("target", "discriminator"), losses)


@torch.no_grad()
def certainty(run: Run, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # logits [n, K], [m, K]
    """1 + exp(-entropy) of each image, over the mean of its domain in all processes: [n], [m]."""
    raw = [1 + torch.exp((x.softmax(1) * x.log_softmax(1)).sum(1)) for x in (source, target)]
    means = run.reduce([weights.mean() for weights in raw])
    return raw[0] / means[0], raw[1] / means[1]
