"""What ``load_state_dict(strict=False)`` would load: tensors of equal name and shape, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from netgraft.architecture.graph import LayerGraph
from netgraft.plan import Kept, Move, Pair, Pairing, keep_rest, moves_to
from netgraft.recipes._overrides import overridden

WHY = "equal name and shape"
NOTE = "tensors were copied by name and shape: that the target computes the same with them was not looked at"


@dataclass(frozen=True)
class SameNames:
    """Tensors of equal name and shape, bit for bit; all others keep the target's own initialisation.

    Where one network stands inside the other, as an encoder in a U-Net, names are compared without the path to it:
    ``encoder.conv1.weight`` is ``conv1.weight``. Of all such paths the one under which most tensors agree is taken.
    """

    head: Literal["same-size", "always", "never"] = field(
        default="same-size", metadata={"help": "never: the classifier keeps its own initialisation, whatever its size"}
    )
    maps: tuple[str, ...] = field(
        default=(), metadata={"help": "SOURCE=TARGET layers to pair, whatever their names; equal shapes are copied"}
    )
    skip: tuple[str, ...] = field(
        default=(), metadata={"help": "globs of target layers that keep their initialisation"}
    )

    def plan(self, source: LayerGraph, target: LayerGraph) -> tuple[Pairing, list[Move], list[Kept]]:
        """Pairs, moves and kept keys; every key of ``target`` gets exactly one fate."""
        names = equal_names(source, target)
        owners = {key: name for name, layer in source.layers.items() for s in layer.tensors.values() for key in s.keys}
        found = {
            name: Pair(owners[names[slot.key]], name, WHY)
            for name, layer in target.layers.items()
            for slot in layer.tensors.values()
            if names.get(slot.key) in owners
        }
        pairing = overridden(Pairing(tuple(found.values())), source, target, self.maps, self.skip)
        stays = {layer.name for layer in target.heads()} if self.head == "never" else set()
        reasons = dict(pairing.unpaired) | dict.fromkeys(stays, "the head keeps its own initialisation (head=never)")
        moves: dict[str, Move] = {}
        for pair in pairing.pairs:
            for role, slot in target.layers[pair.target].tensors.items() if pair.target not in stays else ():
                partner = source.layers[pair.source].tensors.get(role)
                if partner is not None and partner.shape == slot.shape:
                    for move in moves_to(slot, partner.key, partner.shape, (), pair.why):
                        moves.setdefault(move.key, move)
        for slot in target.loose.values():
            if slot.key in names:
                partner = source.slots[names[slot.key]]
                moves |= {move.key: move for move in moves_to(slot, partner.key, partner.shape, (), WHY)}
        kept = keep_rest(target, moves.values(), reasons, "no tensor of equal name and shape in the source")
        return replace(pairing, notes=(NOTE,)), list(moves.values()), kept


def equal_names(source: LayerGraph, target: LayerGraph) -> Mapping[str, str]:
    """Keys of the source by keys of the target with the same name, below the paths that suit best, and shape."""
    best: dict[str, str] = {}
    shapes = [{key: slot.shape for key, slot in graph.slots.items()} for graph in (source, target)]
    for inner in _paths(shapes[0]):
        if 2 * sum(key.startswith(inner) for key in shapes[0]) <= len(shapes[0]):
            continue  # a part of the source, not the network
        for outer in _paths(shapes[1]):
            names = {outer + key.removeprefix(inner): key for key in shapes[0] if key.startswith(inner)}
            found = {ours: theirs for ours, theirs in names.items() if shapes[1].get(ours) == shapes[0][theirs]}
            if len(found) > len(best):
                best = found
    return best


def _paths(keys: Mapping[str, object]) -> Iterator[str]:
    """Every module path, with the dot behind it, in order; first the empty one."""
    paths = [""]
    for key in keys:
        parts = key.split(".")[:-1]
        paths += [".".join(parts[: end + 1]) + "." for end in range(len(parts))]
    yield from dict.fromkeys(paths)
