"""Fine-tuning towards small weights: weight decay as a regulariser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class L2:
    """All weights are drawn towards zero: weight decay that lambda and combine rules apply to.

    L = J + alpha/2 ||theta||^2. The gradient, alpha theta, is added without a backward pass. The baseline of L2-SP
    (Li, Grandvalet, Davoine, ICML 2018). The optimizer's own --weight-decay comes on top of it: set it to 0.
    """

    alpha: float = field(default=0.01, metadata={"help": "strength of the pull towards zero"})
    scope: Literal["weights", "all"] = field(
        default="weights", metadata={"help": "weights: tensors of two and more axes; all: norms and biases too"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset()
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        trained = [p for p in run.target_module.parameters() if p.requires_grad]
        weights = [p for p in trained if self.scope == "all" or p.dim() > 1]
        out = scratch(weights)
        for batch in batches:
            task = run.task(run.target(batch), batch)
            yield Update(("target",), {"task": task}, {"l2": l2_penalty(weights, self.alpha, out=out)})
