"""Low frequencies of the source's weights, cut or padded to the target's shapes (FRONT)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph, Slot
from netgraft.plan import Pairing, Step
from netgraft.recipes import _tables
from netgraft.recipes._by_tensor import moves_by_tensor
from netgraft.recipes._layout import lay
from netgraft.recipes._norms import with_norms
from netgraft.recipes._same import copy_all, same_backbone
from netgraft.recipes.protocol import Draft, LayerOptions, Task


@dataclass(frozen=True)
class Front(LayerOptions):
    """The discrete cosine transform of each weight tensor, its low frequencies cut or padded to the target's shape.

    With C_n the orthonormal DCT-II of length n, every axis of a tensor that has n entries and is to have m becomes

        W' = sqrt(m / n) C_m[:k]^T C_n[:k] W,  k = min(n, m),

    so that low frequencies stay, others are left out or zero, and a constant tensor stays the same constant. What has
    the target's shape is copied. No training, no images: a row to measure others against.

    Source: Shen et al., "One-for-All Model Initialization with Frequency-Domain Knowledge" (FRONT, arXiv:2603.07523).

    Departs from the paper:
    - Only its abstract was at hand: cosine transform, truncation or padding, training-free. The scale (``keep``), which
      axes are transformed, and all below are netgraft's. The refinement by a spectral regulariser is left out.
    - Depth is settled by pairing layers (``matcher``), of which one may serve several; nothing is transformed over
      layers that were stacked.
    - A fused projection is one tensor: queries, keys and values are not taken apart, nor are heads.
    - Variances of norms do not go below the source's smallest. Tables of positions are interpolated along the grid.
      Tables of tokens of another length are kept.
    - The classifier head moves only when its size is equal, or when asked for (``head``).
    """

    matcher: str = field(default="wired", metadata={"help": "which layer goes to which (netgraft matchers)"})
    keep: Literal["constant", "energy"] = field(
        default="constant", metadata={"help": "what the scale preserves: a constant tensor, or the sum of squares"}
    )

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """All layers one to one where the backbones are the same, else what the matcher says, with norms."""
        if (same := self._same(source, target)) is not None:
            return same
        options = {"reuse": True} if self.matcher == "wired" else {}
        return with_norms(plugins.create("matchers", self.matcher, options)(source, target), source, target)

    def plan(self, task: Task) -> Draft:
        """Copies of one and the same backbone, else every tensor of a pair by its frequencies."""
        if self._same(task.source, task.target) is not None:
            return copy_all(task, self.head)
        return Draft(*moves_by_tensor(task, partial(self._made, task)))

    def _same(self, source: LayerGraph, target: LayerGraph) -> Pairing | None:
        return None if self.maps or self.skip else same_backbone(source, target)

    def _made(
        self, task: Task, source: Layer, target: Layer, role: str, slot: Slot
    ) -> tuple[Slot, tuple[Step, ...]] | str:
        partner = source.tensors.get(role)
        steps = self._steps(task, source, target, partner, slot) if partner is not None else None
        if partner is None or steps is None:
            shape = "none" if partner is None else f"{list(partner.shape)}"
            return f"the {role} of {source.name}, {shape}, cannot become {list(slot.shape)}"
        return partner, steps

    def _steps(
        self, task: Task, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot
    ) -> tuple[Step, ...] | None:
        """From the partner's tensor to the target's; None if no operator does it."""
        laid = lay(source_layer, target_layer, partner, slot)
        if laid is None:
            return None
        before, after = laid.partner.shape, laid.slot.shape
        tokens = target_layer.kind == "embedding" and before[:1] != after[:1]
        if tokens or (before != after and "float" not in partner.dtype):
            return None
        places: tuple[Step, ...] = ()
        if target_layer.kind == "parameter" and before != after:
            places = _tables.resize(task.source, task.target, source_layer, target_layer, partner, slot).steps
        cut: tuple[Step, ...] = ()
        if before != after:
            options: dict[str, object] = {"size": list(after), "keep": self.keep}
            options |= {"floor": True} if slot is target_layer.tensors.get("running_var") else {}
            cut = (Step("dct", options),)
        return (*laid.before, *places, *cut, *laid.after)
