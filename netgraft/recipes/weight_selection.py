"""Parts of a larger network's tensors (Xu et al., ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph, Slot
from netgraft.plan import Pairing, Step
from netgraft.recipes._by_tensor import moves_by_tensor
from netgraft.recipes._same import copy_all, same_backbone
from netgraft.recipes.protocol import Draft, LayerOptions, Task


@dataclass(frozen=True)
class WeightSelection(LayerOptions):
    """A smaller network of the source's family: the first layers of each stage, of each tensor evenly spaced entries.

    The N layers of a stage of the target take the first N of the source's stage. Along every axis of a tensor, taps of
    kernels and statistics of norms too, with n entries in the source and m in the target, every (n / m)-th entry is
    taken where that is whole, else linspace(0, n - 1, m) rounded; the same for all axes of these lengths, so that
    channels stay together. A row to measure others against.

    Source: Xu et al., "Initializing Models with Larger Ones" (weight selection, ICLR 2024, arXiv:2311.18823):
    first-N layer selection, uniform element selection; ``selection`` has the others it compares.

    Departs from the paper:
    - Layers are paired by where they stand and what they do (matcher ``first-of-stage``), not by equal names.
    - The paper selects from larger networks only. A tensor that is longer along any axis than the source's keeps the
      target's own initialisation as a whole, as does one with other axes, or a table of other tokens.
    - The released code rounds linspace(0, n, m), whose last entry is not there; here it ends at n - 1.
    - The classifier head moves only when its size is equal, or when asked for (``head``); the paper leaves it.
    """

    matcher: str = field(default="first-of-stage", metadata={"help": "which layer goes to which (netgraft matchers)"})
    selection: Literal["uniform", "consecutive", "random"] = field(
        default="uniform",
        metadata={"help": "evenly spaced entries, the first ones, or the same random ones everywhere"},
    )
    seed: int = field(default=0, metadata={"help": "draws the random ones"})

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """All layers one to one where the backbones are the same, else what the matcher says."""
        if (same := self._same(source, target)) is not None:
            return same
        pairing: Pairing = plugins.create("matchers", self.matcher, {})(source, target)
        return pairing

    def plan(self, task: Task) -> Draft:
        """Copies of one and the same backbone, else of every tensor of a pair what fits."""
        if self._same(task.source, task.target) is not None:
            return copy_all(task, self.head)
        return Draft(*moves_by_tensor(task, self._made), "no layer of the source stands in this place of its stage")

    def _same(self, source: LayerGraph, target: LayerGraph) -> Pairing | None:
        return None if self.maps or self.skip else same_backbone(source, target)

    def _made(self, source: Layer, target: Layer, role: str, slot: Slot) -> tuple[Slot, tuple[Step, ...]] | str:
        partner = source.tensors.get(role)
        if partner is None:
            return f"{source.name} in the source has no {role}"
        return _unfit(target, partner, slot) or (partner, self._steps(partner, slot))

    def _steps(self, partner: Slot, slot: Slot) -> tuple[Step, ...]:
        drawn = {"seed": self.seed} if self.selection == "random" else {}
        return tuple(
            Step("subset", {"dim": dim, "size": after, "mode": self.selection, **drawn})
            for dim, (before, after) in enumerate(zip(partner.shape, slot.shape, strict=True))
            if before != after
        )


def _unfit(target_layer: Layer, partner: Slot, slot: Slot) -> str:
    """Why no part of the partner's tensor can be taken; empty if one can."""
    if len(partner.shape) != len(slot.shape):
        return f"{partner.key} of shape {list(partner.shape)} has other axes than {list(slot.shape)}"
    for dim, (before, after) in enumerate(zip(partner.shape, slot.shape, strict=True)):
        if before < after:
            return f"axis {dim} is longer than in {partner.key}, {after} of {before}: parts are taken of larger tensors"
    if target_layer.kind == "embedding" and partner.shape[0] != slot.shape[0]:
        return f"which of its {slot.shape[0]} tokens are which of the source's {partner.shape[0]} is not known"
    return ""
