"""Fine-tuning that stays near its starting point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class L2SP:
    """Weights that came from a source are drawn towards where they started, all others towards zero.

    L = J + alpha/2 ||theta_S - theta_S^0||^2 + beta/2 ||theta_new||^2 (Li, Grandvalet, Davoine, "Explicit Inductive
    Bias for Transfer Learning with Convolutional Networks", ICML 2018, Eq. 2-3). The gradient is known: there is no
    graph over the weights and no backward pass for it, with --combine dtnh neither. The optimizer's momentum sees it,
    as in the authors' code. The optimizer's own --weight-decay comes on top of it: set it to 0 for the paper's L.

    theta^0 are the weights of --init, also where a transfer resized or stacked them: so it works across
    architectures. theta_S are the tensors that the ledger of --init takes from the source; what it keeps or sets
    belongs to theta_new. For a file without a ledger theta_new is the classifier.

    Departs from the paper: theta_S follows the ledger, so that a classifier that was transferred is drawn to its
    start too. Biases and norms are free, which is what the authors' code does and the paper does not say; tllib and
    DELTA regularise them (``scope=all``).
    """

    alpha: float = field(default=0.01, metadata={"help": "strength of the pull towards the start; 0.1 in the paper's"})
    beta: float = field(default=0.01, metadata={"help": "strength of the pull of new weights towards zero"})
    scope: Literal["weights", "all"] = field(
        default="weights", metadata={"help": "weights: tensors of two and more axes; all: norms and biases too"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START})
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        trained = {name: p for name, p in run.target_module.named_parameters() if p.requires_grad}
        weights = {name: p for name, p in trained.items() if self.scope == "all" or p.dim() > 1}
        old = {name: p for name, p in weights.items() if name in run.transferred}
        new = [p for name, p in weights.items() if name not in old]
        towards = [run.start[name] for name in old]
        old_out, new_out = scratch(list(old.values())), scratch(new)
        for batch in batches:
            penalties = {}
            if old:
                penalties["sp"] = l2_penalty(list(old.values()), self.alpha, towards, out=old_out)
            if new:
                penalties["new"] = l2_penalty(new, self.beta, out=new_out)
            yield Update(("target",), {"task": run.task(run.target(batch), batch)}, penalties)
