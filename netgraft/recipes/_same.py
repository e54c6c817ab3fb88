"""Source and target with one and the same backbone: there is nothing to convert, the whole of it is copied."""

from __future__ import annotations

from collections.abc import Iterator

from netgraft.architecture.graph import LayerGraph, same_wiring
from netgraft.plan import Move, Pair, Pairing, moves_to
from netgraft.recipes.protocol import Draft, Task


def same_backbone(source: LayerGraph, target: LayerGraph, left_out: str = "") -> Pairing | None:
    """All layers one to one, if the two architectures differ in nothing but the size of the head.

    With ``left_out``, the reason for it, norms are not among them.
    """
    same = same_wiring(target, source)
    if same is None:
        return None
    heads = target.head_names
    for target_name, source_name in same.items():
        shapes = [
            {role: slot.shape for role, slot in layer.tensors.items()}
            for layer in (target.layers[target_name], source.layers[source_name])
        ]
        if shapes[0] != shapes[1] and target_name not in heads:
            return None
    norms = [name for name in same if left_out and target.layers[name].is_norm]
    pairs = (Pair(partner, name, "same architecture") for name, partner in same.items() if name not in norms)
    return Pairing(tuple(pairs), dict.fromkeys(norms, left_out))


def copy_all(task: Task, head: str) -> Draft:
    """Every tensor of a pairing from ``same_backbone``; those of a head only where its size is equal."""
    heads = task.target.head_names
    moves: list[Move] = []
    reasons: dict[str, str] = {}
    for pair in task.pairing.pairs:
        source_layer, target_layer = task.source.layers[pair.source], task.target.layers[pair.target]
        if pair.target in heads and head == "never":
            continue
        if pair.target in heads and source_layer.out_channels != target_layer.out_channels:
            sizes = f"{source_layer.out_channels} outputs in the source, {target_layer.out_channels} in the target"
            reasons[pair.target] = f"the head keeps its own initialisation: {sizes}"
            continue
        for role, slot in target_layer.tensors.items():
            partner = source_layer.tensors[role]
            if partner.shape == slot.shape:
                moves += moves_to(slot, partner.key, partner.shape, (), pair.why)
    moves += loose_moves(task.source, task.target, "same architecture")
    return Draft(moves, reasons, "follows no transferred layer on the chain")


def loose_moves(source: LayerGraph, target: LayerGraph, why: str) -> Iterator[Move]:
    """Copies of the tensors outside any layer, for two of the same wiring: those of others do not correspond."""
    for partner, slot in zip(source.loose.values(), target.loose.values(), strict=True):
        if partner.shape == slot.shape:
            yield from moves_to(slot, partner.key, partner.shape, (), why)
