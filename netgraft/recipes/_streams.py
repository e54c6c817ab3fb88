"""Residual streams that grow under a norm over all their channels (LEMON, OPERATORS D6)."""

from __future__ import annotations

from collections.abc import Mapping

from netgraft.graph import Layer, Slot
from netgraft.plan import Step


def stretch_step(
    norm: str, here: Layer, slot: Slot, dim: int, size: int, *, reads: bool, seed: Mapping[str, int]
) -> Step:
    """How axis ``dim`` of a tensor of ``here`` takes part in such a stream: writes it, normalises it or reads it.

    ``norm`` is the kind of norm over the stream; ``seed``, an option of what reads, draws unequal shares
    for copies; empty: equal ones.
    """
    if reads:
        return Step("stretch-columns", {"dim": dim, "size": size, **seed})
    if here.kind == norm:
        role = "bias" if slot is here.tensors.get("bias") else "weight"
        return Step("stretch-norm", {"size": size, "role": role, "dim": dim})
    return Step("stretch-rows", {"dim": dim, "size": size, "rest": "mean" if norm == "layer_norm" else "zero"})
