"""Regularisers towards the starting point: which weights came from a source, and which are new."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from netgraft.finetune.protocol import Batch, Need, Part, Penalty, Run, Update
from netgraft.finetune.toolbox.terms import l2_penalty, scratch

Scope = Literal["weights", "all"]


class Weights(NamedTuple):
    """The target's parameters that train, by name."""

    old: Mapping[str, Tensor]  # that came from a source: theta_S
    new: Mapping[str, Tensor]


def split(run: Run, scope: Scope = "all") -> Weights:
    """Which parameters came from a source, by ``run.transferred``. ``weights`` leaves out those of one axis."""
    trained = {name: p for name, p in run.target_module.named_parameters() if p.requires_grad}
    weights = {name: p for name, p in trained.items() if scope == "all" or p.dim() > 1}
    old = {name: p for name, p in weights.items() if name in run.transferred}
    return Weights(old, {name: p for name, p in weights.items() if name not in old})


@dataclass(frozen=True)
class StartingPoint(ABC):
    """J, a penalty of how far the old weights are from their start, and L2 of the new ones."""

    alpha: float = field(default=0.01, metadata={"help": "strength of the pull towards the start"})
    beta: float = field(default=0.01, metadata={"help": "strength of the pull of new weights towards zero"})
    scope: Scope = field(
        default="weights", metadata={"help": "weights: tensors of two and more axes; all: norms and biases too"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START})

    @abstractmethod
    def pull(
        self, run: Run, parts: Mapping[str, Part], old: Mapping[str, Tensor], towards: list[Tensor]
    ) -> Callable[[], Penalty]:
        """What gives the penalty of the old weights, of which there are some, at every step of an epoch."""

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        old, new = split(run, self.scope)
        pull = self.pull(run, parts, old, [run.start[name] for name in old]) if old else None
        new_weights = list(new.values())
        out = scratch(new_weights)
        for batch in batches:
            penalties = {}
            if pull is not None:
                penalties["sp"] = pull()
            if new_weights:
                penalties["new"] = l2_penalty(new_weights, self.beta, out=out)
            yield Update(("target",), {"task": run.task(run.target(batch), batch)}, penalties)
