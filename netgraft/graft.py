"""Carries out a plan: source tensors and the target's own initialisation in, the target's new tensors out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators.apply import apply_steps
from netgraft.plan import Plan


def graft(plan: Plan, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The target's state_dict after the plan, in the target's order and dtypes.

    ``source`` and ``target`` are state_dicts; neither is changed, and nothing in the result shares their memory.
    Raises PlanError, before any tensor is made, if the plan does not fit the two.
    """
    plan.check_law(target)
    for move in plan.moves:
        found = source.get(move.source_key) if move.source_key else target[move.key]
        if found is None or tuple(found.shape) != move.source_shape:
            shape = "no such tensor" if found is None else f"shape {list(found.shape)}"
            raise PlanError(
                f"The plan reads {move.source_key} of shape {list(move.source_shape)} from the source.",
                where=f"{move.source_key}: {shape}",
            )
        if tuple(target[move.key].shape) != move.shape:
            shape = f"shape {list(target[move.key].shape)}"
            raise PlanError(f"The plan writes {move.key} of shape {list(move.shape)}.", where=f"{move.key}: {shape}")
    result = {key: own.detach().clone().contiguous() for key, own in target.items()}
    for move in plan.moves:
        origin = source[move.source_key] if move.source_key else target[move.key]
        grafted = apply_steps(origin, move.steps, own=target[move.key], source=source)
        if tuple(grafted.shape) != move.shape:
            raise PlanError(f"The steps of {move.key} gave {list(grafted.shape)}, not {list(move.shape)}.")
        result[move.key] = grafted.to(target[move.key].dtype)
    return result
