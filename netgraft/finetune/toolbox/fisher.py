"""The diagonal of the Fisher information of the target's starting point, image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Part, Run
from netgraft.finetune.toolbox.domains import check_labels
from netgraft.finetune.toolbox.labels import check_one_class

Fisher = Literal["true", "expected", "empirical"]


@dataclass(frozen=True)
class WithFisher(ABC):
    """A method whose part "fisher" has the Fisher information of each weight that it holds."""

    fisher: Fisher = field(
        default="true",
        metadata={"help": "y drawn from p(y|x); its mean over all y, a backward pass each; or y the label"},
    )
    images: int = field(
        default=1024,
        metadata={"help": "F is a mean over so many images, rounded up to whole batches; 0: a whole epoch"},
    )

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError("images is at least 0.")

    @abstractmethod
    def held(self, run: Run) -> Mapping[str, Tensor]:
        """The weights whose Fisher information is needed, by name."""

    def parts(self, run: Run) -> Mapping[str, Part]:
        check_one_class(run, "The Fisher information is that of a softmax")
        zeros = [nn.Parameter(torch.zeros_like(weight), requires_grad=False) for weight in self.held(run).values()]
        return {"target": Part(run.target_module), "fisher": Part(nn.ParameterList(zeros))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        if weights := list(self.held(run).values()):
            measured = fisher_information(run, batches, weights, self.fisher, self.images)
            torch._foreach_copy_(information(parts), measured)


def information(parts: Mapping[str, Part]) -> list[Tensor]:
    """What ``prepare`` measured, in the order of the weights that are held."""
    return list(parts["fisher"].module.parameters())


def fisher_information(
    run: Run, batches: Iterable[Batch], weights: Sequence[Tensor], kind: Fisher = "true", most: int = 0
) -> list[Tensor]:
    """F_i = mean over images of (d log p(y|x) / d theta_i)^2, for each weight, of all processes' images.

    One backward pass for each image, or with ``expected`` for each class of each: exact squares, not those of a
    batch's mean gradient. The network is in eval mode. Images are the source's that stand beside the batches, else the
    batches' own, up to the batch that makes them ``most`` or more (0: all). Raises UsageError for ``empirical`` with
    labels that are none of the target's classes.
    """
    sums = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    seen = 0
    for batch in batches:
        images = batch.source or batch
        squares = [torch.zeros_like(one) for one in sums]  # few numbers are added to a small sum: less is rounded off
        for x, chances in zip(images.x, _chances(run, images, kind).tolist(), strict=True):
            _add_squares(squares, run.target(x[None], train=False).logits[0], weights, chances)
        torch._foreach_add_(sums, squares)
        (count,) = run.reduce([torch.tensor(float(len(images.x)), device=run.device)])
        seen += round(float(count) * run.world)
        if 0 < most <= seen:
            break
    means = list(run.reduce(sums))
    torch._foreach_mul_(means, run.world / seen)
    return means


def _add_squares(squares: list[Tensor], logits: Tensor, weights: Sequence[Tensor], chances: list[float]) -> None:
    """Add chance times the squared gradient of log p(y|x) for every class y that has a chance."""
    log_p = logits.log_softmax(0)  # [classes]
    possible = [y for y, chance in enumerate(chances) if chance > 0]
    for y in possible:
        score = torch.autograd.grad(log_p[y], weights, retain_graph=y != possible[-1], materialize_grads=True)
        torch._foreach_addcmul_(squares, score, score, value=chances[y])


@torch.no_grad()
def _chances(run: Run, images: Batch, kind: Fisher) -> Tensor:  # [B, classes]
    """How much each class counts for each image. Drawn classes are the same however many processes there are."""
    if kind == "empirical":
        check_labels(run, images)
        return F.one_hot(images.y, run.classes)
    likely = run.target(images, train=False).logits.softmax(1)
    if kind == "expected":
        return likely
    up_to = likely.cumsum(1)
    drawn = (run.random(images, "fisher", 1) > up_to[:, :-1]).sum(1)
    return F.one_hot(drawn, likely.shape[1])
