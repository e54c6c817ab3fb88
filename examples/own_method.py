"""A fine-tuning method of one's own: ``netgraft finetune ... --method ./examples/own_method.py --set strength=100``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Need, Part, Penalty, Run, Update
from netgraft.finetune.toolbox.domains import check_labels
from netgraft.finetune.toolbox.terms import cross_entropy


@dataclass(frozen=True)
class ElasticWeightConsolidation:
    """Weights stay near their start, the more the source's images depend on them (EWC).

    L = J + strength/2 sum_i F_i (theta_i - theta_i^0)^2, with F_i = E (d log p(y|x) / d theta_i)^2 at theta^0, the
    diagonal of the Fisher information: the mean over the images of --source-data that stand beside one epoch's
    batches, by the network in eval mode, before the first step. The gradient is known and costs no backward pass.

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017 (arXiv:1612.00796).

    Departs from the paper: y is drawn from the network's own p (the Fisher information), or is the label
    (``fisher=empirical``, which many codes take for it). The paper does not say which, nor how many images it takes.
    """

    strength: float = field(default=100.0, metadata={"help": "how strongly weights that matter are held"})
    fisher: Literal["true", "empirical"] = field(default="true", metadata={"help": "y drawn from p(y|x), or the label"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START, Need.SOURCE_DATA})
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        zeros = [nn.Parameter(torch.zeros_like(weight), requires_grad=False) for weight in trained(run).values()]
        return {"target": Part(run.target_module), "fisher": Part(nn.ParameterList(zeros))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        weights = list(trained(run).values())
        fisher: list[Tensor] = list(parts["fisher"].module.parameters())
        count = 0
        for batch in batches:
            images = batch.source
            assert images is not None, "Need.SOURCE_DATA"
            check_labels(run, images)
            squares = [torch.zeros_like(weight) for weight in weights]
            for x, y in zip(images.x, self._classes(run, images), strict=True):
                loss = cross_entropy(run.target(x[None], train=False).logits, y[None])
                gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
                torch._foreach_addcmul_(squares, gradients, gradients, 1 / len(images.x))
            torch._foreach_add_(fisher, list(run.reduce(squares)))
            count += 1
        torch._foreach_div_(fisher, count)

    @torch.no_grad()
    def _classes(self, run: Run, images: Batch) -> Tensor:  # [B]
        """y of each image; drawn by the network's probabilities the same however many processes there are."""
        if self.fisher == "empirical":
            return images.y
        up_to = run.target(images, train=False).logits.softmax(1).cumsum(1)
        return (run.random(images, "labels", 1) > up_to[:, :-1]).sum(1)

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        weights, fisher = trained(run), list(parts["fisher"].module.parameters())
        start = [run.start[name] for name in weights]
        for batch in batches:
            with torch.no_grad():
                away = torch._foreach_sub(list(weights.values()), start)
                pull = [self.strength * f * d for f, d in zip(fisher, away, strict=True)]
                value = torch.stack([(p * d).sum() for p, d in zip(pull, away, strict=True)]).sum() / 2
            penalty = Penalty(value, list(weights.values()), pull)
            yield Update(("target",), {"task": run.task(run.target(batch), batch)}, {"ewc": penalty})


def trained(run: Run) -> dict[str, Tensor]:
    """The target's parameters that train, by name."""
    return {name: parameter for name, parameter in run.target_module.named_parameters() if parameter.requires_grad}
