"""Heterogeneous model transfer, after the paper (sections 2.2-2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph, Shape, Slot
from netgraft.matchers.protocol import Ablation
from netgraft.plan import Move, Pairing, Step, moves_to
from netgraft.recipes._layout import lay
from netgraft.recipes._norms import with_norms
from netgraft.recipes._same import loose_moves, same_backbone
from netgraft.recipes.protocol import Draft, LayerOptions, Task

NORMS_LEFT_OUT = "norms are left out (norms=none)"


@dataclass(frozen=True)
class Hmt(LayerOptions):
    """The paper's HMT: longest chain to longest chain, kernels interpolated, channels stacked cyclically.

    Source: HMT 2.3. Layers off the chain keep the target's own initialisation (the paper discards them).

    Departs from the paper:
    - Norm layers that follow a transferred layer on the chain are carried along (``norms``); the paper is silent.
    - Pairs of unlike kind (a convolution and a linear layer) are skipped with a reason; the paper has none.
    - The classifier head moves only when its size is equal, or when asked for (``head``).
    - Between lines, images and volumes a kernel is repeated along a new axis, over its length, or summed along one.
    - A linear layer that reads a flattened C x H x W map is stacked over C and interpolated over H x W.
    - Source and target with one and the same backbone (same wiring, equal shapes but for the head) are copied as a
      whole, as in ordinary fine-tuning: the paper's chain exists for backbones that differ.
    """

    matcher: str = field(default="longest-chain", metadata={"help": "which layer goes to which (netgraft matchers)"})
    norms: Literal["all", "affine", "none"] = field(
        default="all", metadata={"help": "norms that follow a transferred layer: with statistics, affine only, or kept"}
    )

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """All layers one to one where the backbones are the same, else what the matcher says, with norms."""
        if (same := self._same(source, target)) is not None:
            return same
        matcher = plugins.create("matchers", self.matcher, {})
        return with_norms(matcher(source, target), source, target, self._left_out)

    def plan(self, task: Task) -> Draft:
        """Moves of every pair, and why the tensors that no operator fits are kept."""
        moves: list[Move] = []
        reasons: dict[str, str] = {}
        decided: set[str] = set()  # a tensor that two layers share moves with the first of them
        for pair in task.pairing.pairs:
            source_layer, target_layer = task.source.layers[pair.source], task.target.layers[pair.target]
            for role, slot in target_layer.tensors.items() if pair.target not in task.stays else ():
                if slot.key in decided:
                    continue
                steps = self._steps(source_layer, target_layer, role)
                if isinstance(steps, str):
                    reasons[slot.key] = steps
                else:
                    decided.add(slot.key)
                    partner = source_layer.tensors[role]
                    moves += moves_to(slot, partner.key, partner.shape, steps, pair.why)
        if self._same(task.source, task.target) is not None:
            moves += loose_moves(task.source, task.target, "same architecture")
        return Draft(moves, reasons, "follows no transferred layer on the chain")

    @property
    def _left_out(self) -> str:
        return NORMS_LEFT_OUT if self.norms == "none" else ""

    def _same(self, source: LayerGraph, target: LayerGraph) -> Pairing | None:
        """The pairs of one and the same backbone; None for others, and where the chain's order is what is tried out."""
        matcher = plugins.create("matchers", self.matcher, {})
        if isinstance(matcher, Ablation) and matcher.ablation:
            return None
        return same_backbone(source, target, self._left_out)

    def _steps(self, source_layer: Layer, target_layer: Layer, role: str) -> tuple[Step, ...] | str:
        """How the tensor in this role is made from its partner, or why it is kept."""
        slot, partner = target_layer.tensors[role], source_layer.tensors.get(role)
        if partner is None:
            return f"{source_layer.name} in the source has no {role}"
        if target_layer.is_norm and self.norms == "affine" and slot.buffer:
            return "only the affine part of norms is carried along (norms=affine)"
        steps = self._laid_out(partner, slot, source_layer, target_layer)
        return (
            f"{partner.key} of shape {list(partner.shape)} cannot become {list(slot.shape)}" if steps is None else steps
        )

    def _laid_out(self, partner: Slot, slot: Slot, source_layer: Layer, target_layer: Layer) -> tuple[Step, ...] | None:
        """As ``resize_steps``, after what the paper has no need of: kernel axes more or fewer, [in, out] for [out, in].

        Groups are no axes: kernels in groups are stacked as they stand.
        """
        laid = lay(source_layer, target_layer, partner, slot)
        turned = laid is not None and any(step.operator == "transpose" for step in laid.before)
        if laid is None or not (turned or len(partner.shape) != len(slot.shape)):
            return resize_steps(partner.shape, slot.shape, source_layer, target_layer)
        steps = resize_steps(laid.partner.shape, laid.slot.shape, source_layer, target_layer)
        return None if steps is None else (*laid.before, *steps, *laid.after)


def resize_steps(source: Shape, target: Shape, source_layer: Layer, target_layer: Layer) -> tuple[Step, ...] | None:
    """HMT 2.3.2 for one tensor: interpolate the kernel axes (2 and on), then stack the channel axes (0 and 1).

    None where the ranks differ, or where a tensor without kernel axes has more than two axes.
    """
    folded = (
        source_layer.flattened
        and target_layer.flattened
        and len(target) == 2
        and source_layer.flattened != target_layer.flattened
    )
    if source == target and not folded:
        return ()
    if len(source) != len(target) or not source:
        return None
    if target_layer.kind == "linear" and len(target) == 2 and (source_layer.flattened or target_layer.flattened):
        return _flattened_steps(source, target, source_layer.flattened, target_layer.flattened)
    if len(target) > 2 and not target_layer.is_conv:
        return None
    steps = []
    if source[2:] != target[2:]:
        steps.append(Step("bilinear", {"size": list(target[2:])}))
    steps += [
        Step("cyclic", {"dim": d, "size": target[d]}) for d in (0, 1) if d < len(target) and source[d] != target[d]
    ]
    return tuple(steps)


def _flattened_steps(source: Shape, target: Shape, source_layer: Shape, target_layer: Shape) -> tuple[Step, ...]:
    """A linear layer on C * H * W features is a kernel of size H x W on C channels."""
    spatial = max(len(source_layer), len(target_layer)) - 1
    source_layer, target_layer = (
        (folded or (shape[1],)) for folded, shape in ((source_layer, source), (target_layer, target))
    )
    source_layer, target_layer = (
        (*folded, *(1,) * (spatial + 1 - len(folded))) for folded in (source_layer, target_layer)
    )
    steps = [Step("unflatten", {"dim": 1, "shape": list(source_layer)})]
    if source_layer[1:] != target_layer[1:]:
        steps.append(Step("bilinear", {"size": list(target_layer[1:])}))
    if source[0] != target[0]:
        steps.append(Step("cyclic", {"dim": 0, "size": target[0]}))
    if source_layer[0] != target_layer[0]:
        steps.append(Step("cyclic", {"dim": 1, "size": target_layer[0]}))
    return (*steps, Step("flatten", {"dim": 1, "ndim": spatial + 1}))
