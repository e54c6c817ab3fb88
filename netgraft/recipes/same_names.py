"""What ``load_state_dict(strict=False)`` would load: tensors of equal name and shape, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.plan import Move, Pair, Pairing, moves_to
from netgraft.recipes.protocol import Draft, LayerOptions, Task

WHY = "equal name and shape"
NOTE = "tensors were copied by name and shape: that the target computes the same with them was not looked at"


@dataclass(frozen=True)
class SameNames(LayerOptions):
    """Tensors of equal name and shape, bit for bit; all others keep the target's own initialisation.

    Where one network stands inside the other, as an encoder in a U-Net, names are compared without the path to it:
    ``encoder.conv1.weight`` is ``conv1.weight``. Of all such paths the one under which most tensors agree is taken.
    """

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """Layers that have a tensor of equal name and shape."""
        names = equal_names(source, target)
        owners = {key: name for name, layer in source.layers.items() for s in layer.tensors.values() for key in s.keys}
        found = {
            name: Pair(owners[names[slot.key]], name, WHY)
            for name, layer in target.layers.items()
            for slot in layer.tensors.values()
            if names.get(slot.key) in owners
        }
        return Pairing(tuple(found.values()))

    def plan(self, task: Task) -> Draft:
        """Copies of what fits in each pair, and of tensors outside any layer by name."""
        moves: list[Move] = []
        for pair in task.pairing.pairs:
            for role, slot in task.target.layers[pair.target].tensors.items() if pair.target not in task.stays else ():
                partner = task.source.layers[pair.source].tensors.get(role)
                if partner is not None and partner.shape == slot.shape:
                    moves += moves_to(slot, partner.key, partner.shape, (), pair.why)
        names = equal_names(task.source, task.target)
        for slot in task.target.loose.values():
            if slot.key in names:
                partner = task.source.slots[names[slot.key]]
                moves += moves_to(slot, partner.key, partner.shape, (), WHY)
        return Draft(moves, {}, "no tensor of equal name and shape in the source", (NOTE,))

    def head_stays(self, source: Layer, target: Layer, *, from_head: bool) -> str:
        """Only where it is to stay in any case: equal names and shapes say enough."""
        return super().head_stays(source, target, from_head=from_head) if self.head == "never" else ""


def equal_names(source: LayerGraph, target: LayerGraph) -> Mapping[str, str]:
    """Keys of the source by keys of the target with the same name, below the paths that suit best, and shape."""
    best: dict[str, str] = {}
    shapes = [{key: slot.shape for key, slot in graph.slots.items()} for graph in (source, target)]
    for inner in _paths(shapes[0]):
        if 2 * sum(key.startswith(inner) for key in shapes[0]) <= len(shapes[0]):
            continue  # a part of the source, not the network
        for outer in _paths(shapes[1]):
            names = {outer + key.removeprefix(inner): key for key in shapes[0] if key.startswith(inner)}
            found = {key: partner for key, partner in names.items() if shapes[1].get(key) == shapes[0][partner]}
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
