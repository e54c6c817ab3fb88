"""Recipes that treat every tensor by itself, whatever the layers around it do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from netgraft.architecture.graph import Layer, Slot
from netgraft.plan import Move, Step, moves_to
from netgraft.recipes.protocol import Task


def moves_by_tensor(
    task: Task, made: Callable[[Layer, Layer, str, Slot], tuple[Slot, tuple[Step, ...]] | str]
) -> tuple[list[Move], Mapping[str, str]]:
    """Moves for the tensors of all pairs, and why others stay.

    ``made`` is asked with the layer of the source, that of the target, and the role and the slot of the target's
    tensor. It gives the source's slot and the steps from it, or a reason against.
    """
    moves: list[Move] = []
    reasons: dict[str, str] = {}
    for pair in task.pairing.pairs:
        source, target = task.source.layers[pair.source], task.target.layers[pair.target]
        for role, slot in target.tensors.items() if pair.target not in task.stays else ():
            found = made(source, target, role, slot)
            if isinstance(found, str):
                reasons[slot.key] = found
            else:
                partner, steps = found
                moves += moves_to(slot, partner.key, partner.shape, steps, pair.why)
    return moves, reasons
