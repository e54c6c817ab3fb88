"""Heterogeneous model transfer, as the paper prints it (``hmt``, sections 2.2-2.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph, Shape, Slot
from netgraft.plan import Kept, Move, Pairing, Step, keep_rest, moves_to
from netgraft.recipes._norms import with_norms
from netgraft.recipes._overrides import overridden
from netgraft.recipes._same import same_backbone

NORMS_LEFT_OUT = "norms are left out (norms=none)"


@dataclass(frozen=True)
class Hmt:
    """The paper's HMT: longest chain to longest chain, kernels interpolated, channels stacked cyclically.

    Source: HMT 2.3. Layers off the chain keep the target's own initialisation (the paper discards them).

    Departs from the paper:
    - Norm layers that follow a transferred layer on the chain are carried along (``norms``); the paper is silent.
    - Pairs of unlike kind (a convolution and a linear layer) are skipped with a reason; the paper has none.
    - The classifier head moves only when its size is equal, or when asked for (``head``).
    - A linear layer that reads a flattened C x H x W map is stacked over C and interpolated over H x W.
    - Source and target with one and the same backbone (same wiring, equal shapes but for the head) are copied as a
      whole, as in ordinary fine-tuning: the paper's chain exists for backbones that differ.
    """

    matcher: str = field(default="longest-chain", metadata={"help": "which layer goes to which (netgraft matchers)"})
    norms: Literal["all", "affine", "none"] = field(
        default="all", metadata={"help": "norms that follow a transferred layer: with statistics, affine only, or kept"}
    )
    head: Literal["same-size", "always", "never"] = field(
        default="same-size", metadata={"help": "when the classifier's weights move"}
    )
    maps: tuple[str, ...] = field(
        default=(), metadata={"help": "SOURCE=TARGET layers to pair, whatever the matcher says"}
    )
    skip: tuple[str, ...] = field(
        default=(), metadata={"help": "globs of target layers that keep their initialisation"}
    )

    def plan(self, source: LayerGraph, target: LayerGraph) -> tuple[Pairing, list[Move], list[Kept]]:
        """Pairs, moves and kept keys; every key of ``target`` gets exactly one fate."""
        matcher = plugins.create("matchers", self.matcher, {})
        pairing = (
            None
            if getattr(matcher, "ablation", False)
            else same_backbone(source, target, NORMS_LEFT_OUT if self.norms == "none" else "")
        )
        reasons: dict[str, str] = {}
        loose: list[tuple[Slot, Slot]] = []
        if pairing is not None:
            loose = list(zip(source.loose.values(), target.loose.values(), strict=True))
        else:
            pairing = with_norms(
                matcher(source, target), source, target, NORMS_LEFT_OUT if self.norms == "none" else ""
            )
            pairing = overridden(pairing, source, target, self.maps, self.skip)
        heads = {layer.name for layer in target.heads()}
        source_heads = {layer.name for layer in source.heads()}
        moves: list[Move] = []
        decided: set[str] = set()  # a tensor that two layers share moves with the first of them
        for pair in pairing.pairs:
            there, here = source.layers[pair.source], target.layers[pair.target]
            if pair.target in heads and (reason := self._head_stays(there, here, pair.source in source_heads)):
                reasons[pair.target] = reason
                continue
            for role, slot in here.tensors.items():
                if slot.key in decided:
                    continue
                steps = self._steps(there, here, role)
                if isinstance(steps, str):
                    reasons[slot.key] = steps
                else:
                    decided.add(slot.key)
                    moves += moves_to(slot, there.tensors[role].key, there.tensors[role].shape, steps, pair.why)
        for theirs, ours in loose:
            if theirs.shape == ours.shape:
                moves += moves_to(ours, theirs.key, theirs.shape, (), "same architecture")
        reasons |= {name: reason for name, reason in pairing.unpaired.items() if name in target.layers}
        return pairing, moves, keep_rest(target, moves, reasons, "follows no transferred layer on the chain")

    def _head_stays(self, there: Layer, here: Layer, from_head: bool) -> str:
        if self.head == "always":
            return ""
        if self.head == "never":
            return "the head keeps its own initialisation (head=never)"
        if not from_head:
            return f"the head keeps its own initialisation: its partner {there.name} is not the source's head"
        if there.out_channels != here.out_channels:
            sizes = f"{there.out_channels} outputs in the source, {here.out_channels} in the target"
            return f"the head keeps its own initialisation: {sizes} (--head moves it anyway)"
        return ""

    def _steps(self, there: Layer, here: Layer, role: str) -> tuple[Step, ...] | str:
        """How the tensor in this role is made from its partner, or why it is kept."""
        slot, partner = here.tensors[role], there.tensors.get(role)
        if partner is None:
            return f"{there.name} in the source has no {role}"
        if here.is_norm and self.norms == "affine" and slot.buffer:
            return "only the affine part of norms is carried along (norms=affine)"
        steps = resize_steps(partner.shape, slot.shape, there, here)
        return (
            f"{partner.key} of shape {list(partner.shape)} cannot become {list(slot.shape)}" if steps is None else steps
        )


def resize_steps(source: Shape, target: Shape, there: Layer, here: Layer) -> tuple[Step, ...] | None:
    """HMT 2.3.2 for one tensor: interpolate the kernel axes (2 and on), then stack the channel axes (0 and 1).

    None where the ranks differ, or where a tensor without kernel axes has more than two axes.
    """
    folded = there.flattened and here.flattened and len(target) == 2 and there.flattened != here.flattened
    if source == target and not folded:
        return ()
    if len(source) != len(target) or not source:
        return None
    if here.kind == "linear" and len(target) == 2 and (there.flattened or here.flattened):
        return _flattened_steps(source, target, there.flattened, here.flattened)
    if len(target) > 2 and not here.kind.startswith("conv"):
        return None
    steps = []
    if source[2:] != target[2:]:
        steps.append(Step("bilinear", {"size": list(target[2:])}))
    steps += [
        Step("cyclic", {"dim": d, "size": target[d]}) for d in (0, 1) if d < len(target) and source[d] != target[d]
    ]
    return tuple(steps)


def _flattened_steps(source: Shape, target: Shape, there: Shape, here: Shape) -> tuple[Step, ...]:
    """A linear layer on C * H * W features is a kernel of size H x W on C channels."""
    spatial = max(len(there), len(here)) - 1
    there, here = ((folded or (shape[1],)) for folded, shape in ((there, source), (here, target)))
    there, here = ((*folded, *(1,) * (spatial + 1 - len(folded))) for folded in (there, here))
    steps = [Step("unflatten", {"dim": 1, "shape": list(there)})]
    if there[1:] != here[1:]:
        steps.append(Step("bilinear", {"size": list(here[1:])}))
    if source[0] != target[0]:
        steps.append(Step("cyclic", {"dim": 0, "size": target[0]}))
    if there[0] != here[0]:
        steps.append(Step("cyclic", {"dim": 1, "size": here[0]}))
    return (*steps, Step("flatten", {"dim": 1, "ndim": spatial + 1}))
