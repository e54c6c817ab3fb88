"""Source and target with one and the same backbone: there is nothing to convert, the whole of it is copied."""

from __future__ import annotations

from netgraft.architecture.graph import LayerGraph, same_wiring
from netgraft.plan import Kept, Move, Pair, Pairing, keep_rest, moves_to


def same_backbone(source: LayerGraph, target: LayerGraph, left_out: str = "") -> Pairing | None:
    """All layers one to one, if the two architectures differ in nothing but the size of the head.

    With ``left_out``, the reason for it, norms are not among them.
    """
    same = same_wiring(target, source)
    if same is None:
        return None
    heads = {layer.name for layer in target.heads()}
    for ours, theirs in same.items():
        shapes = [
            {role: slot.shape for role, slot in layer.tensors.items()}
            for layer in (target.layers[ours], source.layers[theirs])
        ]
        if shapes[0] != shapes[1] and ours not in heads:
            return None
    norms = [ours for ours in same if left_out and target.layers[ours].is_norm]
    pairs = (Pair(theirs, ours, "same architecture") for ours, theirs in same.items() if ours not in norms)
    return Pairing(tuple(pairs), dict.fromkeys(norms, left_out))


def copy_all(
    pairing: Pairing, source: LayerGraph, target: LayerGraph, head: str
) -> tuple[Pairing, list[Move], list[Kept]]:
    """Every tensor of a pairing from ``same_backbone``; those of a head only where its size is equal."""
    heads = {layer.name for layer in target.heads()}
    moves: dict[str, Move] = {}
    reasons: dict[str, str] = {}
    for pair in pairing.pairs:
        there, here = source.layers[pair.source], target.layers[pair.target]
        if pair.target in heads and (head == "never" or there.out_channels != here.out_channels):
            sizes = f"{there.out_channels} outputs in the source, {here.out_channels} in the target"
            why = "head=never" if head == "never" else sizes
            reasons[pair.target] = f"the head keeps its own initialisation: {why}"
            continue
        for role, slot in here.tensors.items():
            partner = there.tensors[role]
            if partner.shape == slot.shape:
                for move in moves_to(slot, partner.key, partner.shape, (), pair.why):
                    moves.setdefault(move.key, move)
    for theirs, ours in zip(source.loose.values(), target.loose.values(), strict=True):
        if theirs.shape == ours.shape:
            for move in moves_to(ours, theirs.key, theirs.shape, (), "same architecture"):
                moves.setdefault(move.key, move)
    found = list(moves.values())
    return pairing, found, keep_rest(target, found, reasons, "follows no transferred layer on the chain")
