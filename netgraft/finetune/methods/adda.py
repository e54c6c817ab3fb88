"""Adversarial discriminative domain adaptation: a second encoder learns to pass for the first."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.adversary import Discriminator, domain_loss, is_source, recognised
from netgraft.finetune.toolbox.domains import FEATURES, feature_width, head_of, listening, pooled


@dataclass(frozen=True)
class AdversarialDiscriminative:
    """The encoder of the target's images learns to pass for the initialisation's of the source's (ADDA).

    M_s is the initialisation, trained on the source beforehand, and frozen; M_t begins as M_s. With each batch D
    descends -(mean log D(M_s(x_s)) + mean log(1 - D(M_t(x_t)))) / 2, and then M_t descends -mean log D(M_t(x_t))
    against the new D. The classifier, which no loss reaches, stays that of the source, and no labels are used.

    Tzeng et al. 2017, "Adversarial discriminative domain adaptation". Train the initialisation first:
    ``netgraft finetune --data SOURCE --method plain``.

    Departs from the paper: the halves of D's loss; M_t's features serve both steps, one forward pass for the two. M_t
    drops nothing, as M_s: D would know its features by their zeros, and no step of M_t could hide them.
    """

    hidden: int = field(default=500, metadata={"help": "width of the discriminator"})
    adam: bool = field(default=True, metadata={"help": "Adam of betas 0.5 and 0.999 for both; else --opt for both"})
    lr: float = field(default=2e-4, metadata={"help": "learning rate of both, with adam"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START, Need.SOURCE_DATA})
    category: ClassVar[str] = "adversarial"
    plain_when: ClassVar[None] = None

    def parts(self, run: Run) -> Mapping[str, Part]:
        reference = copy.deepcopy(run.target_module)
        module = nn.ModuleDict({"net": Discriminator(feature_width(run), self.hidden), "reference": reference})
        if not self.adam:
            return {"target": Part(run.target_module), "discriminator": Part(module, trained=("net",))}
        options = {"betas": (0.5, 0.999)}
        return {
            "target": Part(run.target_module, lr=self.lr, opt="adam", options=options),
            "discriminator": Part(module, lr=self.lr, opt="adam", options=options, trained=("net",)),
        }

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        module = parts["discriminator"].module
        assert isinstance(module, nn.ModuleDict)
        discriminator, reference, head = module["net"], module["reference"], head_of(run)
        for batch in batches:
            assert batch.source is not None, "Need.SOURCE_DATA"
            with torch.no_grad(), run.autocast(), listening(reference, head) as of_source:
                reference(batch.source.x)
            with listening(run.target_module, head) as of_target, _without_chance(run.target_module):
                run.target(batch.unlabelled or batch, stats=True)
            source, target = pooled(of_source[FEATURES]), pooled(of_target[FEATURES])
            logits = discriminator(source), discriminator(target.detach())
            run.note("domain_accuracy", recognised(*logits))
            yield Update(("discriminator",), {"domain": domain_loss(*logits)})
            yield Update(("target",), {"confusion": is_source(discriminator(target)).mean()})


@contextmanager
def _without_chance(module: nn.Module) -> Iterator[None]:
    """Everything but BatchNorm in eval mode: no dropout."""
    changed = [m for m in module.modules() if m.training and not isinstance(m, _BatchNorm)]
    for one in changed:
        one.training = False
    try:
        yield
    finally:
        for one in changed:
            one.training = True
