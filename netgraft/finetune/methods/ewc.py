"""Fine-tuning that holds the weights that matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.fisher import WithFisher, information
from netgraft.finetune.toolbox.starting_point import split
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class ElasticWeightConsolidation(WithFisher):
    """Weights that came from a source stay near their start, the more the source's predictions depend on them (EWC).

    L = J + strength/2 sum_i F_i (theta_i - theta_i^0)^2 (Kirkpatrick et al., "Overcoming catastrophic forgetting in
    neural networks", PNAS 2017), with F_i = E (d log p(y|x) / d theta_i)^2 at theta^0, the diagonal of the
    Fisher information: the mean over ``images`` images of the square of each one's own gradient, measured once before
    the first step. The network is in eval mode, and p(y|x) is the target's own at theta^0. ``fisher=true`` draws one y
    from it for each image, ``expected`` takes the mean over all y, ``empirical`` the image's label (not the Fisher
    information, though often taken for it). The gradient is known: no graph, no backward pass in a step.

    F belongs to the source's task: give its images, --source-data, of which those beside the first epoch's batches are
    taken. Their labels matter to ``empirical`` alone, and must be the target's classes there. Without --source-data F
    is taken on the target's images: it then says which weights the start's predictions for these depend on, which is
    not the old task of the paper. Where the classifier is new, p(y|x) is that of its random start.

    Departs from the paper: new weights, by the ledger of --init, are free, as they have no old value worth keeping.
    The paper says neither how y is chosen nor how many images are taken, nor gives a strength that suits all tasks.
    """

    strength: float = field(default=100.0, metadata={"help": "the paper's lambda: how strongly weights are held"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START})
    category: ClassVar[str] = "network"

    def held(self, run: Run) -> Mapping[str, Tensor]:
        return split(run).old

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        held = self.held(run)
        weights, towards = list(held.values()), [run.start[name] for name in held]
        roots, out = [f.sqrt() for f in information(parts)], scratch(weights)
        for batch in batches:
            penalty = l2_penalty(weights, self.strength, towards, scale=roots, out=out)
            penalties = {"ewc": penalty} if weights else {}
            yield Update(("target",), {"task": run.task(run.target(batch), batch)}, penalties)
