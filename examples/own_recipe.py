"""A recipe of your own: pairs by any matcher, then copies, or longer and shorter axes by one operator.

    netgraft plan netgraft:resnet20-glyphs examples/my_arch.py --recipe examples/own_recipe.py --skip 'body.2*'

--map, --skip and --head come with ``LayerOptions``; what no move makes is kept, with a reason, by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from netgraft import plugins
from netgraft.architecture.graph import LayerGraph
from netgraft.plan import Pairing, Step, moves_to
from netgraft.recipes.protocol import Draft, LayerOptions, Task


@dataclass(frozen=True)
class AxisByAxis(LayerOptions):
    """Copy what has the same shape, and make each axis of the rest longer or shorter by one operator."""

    matcher: str = field(default="wired", metadata={"help": "which layer goes to which"})
    operator: str = field(default="cyclic", metadata={"help": "one with the options dim and size"})

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        pairing: Pairing = plugins.create("matchers", self.matcher, {})(source, target)
        return pairing

    def plan(self, task: Task) -> Draft:
        moves, reasons = [], {}
        for pair in task.pairing.pairs:
            for role, slot in task.target.layers[pair.target].tensors.items():
                partner = task.source.layers[pair.source].tensors.get(role)
                if partner is None or partner.shape[2:] != slot.shape[2:] or len(partner.shape) != len(slot.shape):
                    reasons[slot.key] = f"{pair.source} has no {role} with such a kernel"
                    continue
                axes = [(dim, size) for dim, size in enumerate(slot.shape) if partner.shape[dim] != size]
                steps = tuple(Step(self.operator, {"dim": dim, "size": size}) for dim, size in axes)
                moves += moves_to(slot, partner.key, partner.shape, steps, pair.why)
        return Draft(moves, reasons)
