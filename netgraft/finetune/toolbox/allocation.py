"""What CETL remembers of the weights of its decoder and its target between stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from netgraft.finetune.protocol import Run
from netgraft.finetune.toolbox.generalized_fisher import (
    PairedFisher,
    WeightAllocation,
    generalized,
    scaled_fisher,
)


@dataclass(frozen=True)
class AllocationRule:
    """How Fisher information becomes the weights' importance."""

    generalized: bool  # GFI of Eq. 10; else F itself
    threshold: float  # u
    probability: float  # p
    cap: float  # largest F, in units of its mean; 0: no bound


class AllocationMemory(nn.Module):
    """Fisher information of the decoder's and the target's weights, and the three DWAs that came of it."""

    def __init__(self, decoder: int, target: int) -> None:
        """The numbers of weights of each."""
        super().__init__()
        self.of_decoder, self.of_target = PairedFisher(decoder), PairedFisher(target)
        self.dwa1, self.dwa2, self.dwa3 = (WeightAllocation(size) for size in (decoder, decoder, target))

    @property
    def dwa(self) -> dict[str, WeightAllocation]:
        return {"dwa1": self.dwa1, "dwa2": self.dwa2, "dwa3": self.dwa3}

    def keep(
        self, run: Run, name: str, fisher: PairedFisher, parameters: Sequence[Tensor], rule: AllocationRule
    ) -> None:
        """Hold the DWA of this name to the weights as they are, by the first task's Fisher information.

        Logs the share of the weights that both tasks may share.
        """
        importance = scaled_fisher(fisher.fisher[0], rule.cap)
        if rule.generalized:
            relative, numbers = fisher.relative(), run.generator(name)
            run.note(f"{name}_shared", (relative >= rule.threshold).float().mean())
            importance = generalized(
                importance, relative, threshold=rule.threshold, probability=rule.probability, generator=numbers
            )
        self.dwa[name].keep(importance, parameters)
