"""Two implementations of one network: all its weights, from the names and shapes of one to those of the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from netgraft.architecture.canonical import canonical
from netgraft.architecture.folding import folded, without_lone_tables
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.isomorphism import isomorphism
from netgraft.errors import CheckFailed
from netgraft.plan import Move, Pairing
from netgraft.recipes._translation import Meeting, loose_moves, meetings, moves_of, pairs_of, table_moves
from netgraft.recipes.protocol import Draft, LayerOptions, Task


@dataclass(frozen=True)
class Translate(LayerOptions):
    """The weights of one network for another implementation of it; refused if the two are not one.

    Both are brought to a form in which names, orders and spellings vanish (``architecture.canonical``), and compared
    part by part. Tensors are split, joined, transposed and reshaped; none is mixed, scaled or interpolated, but where
    a batch norm or a weight norm is multiplied out.
    """

    exact: bool = field(default=True, metadata={"help": "what the recipe claims, and running both proves"})
    tolerance: float = field(default=1e-5, metadata={"help": "the relative error up to which that counts as proven"})

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """Layers that hold the same part. Raises CheckFailed if the two are not one network."""
        found = same_network(source, target)
        if found is None:
            raise CheckFailed(
                "The two are not one network.",
                hint="--recipe auto copies what they have in common, and fits the rest.",
            )
        return Pairing(tuple(pairs_of(found)))

    def plan(self, task: Task) -> Draft:
        """A move for every tensor that has a part in the source."""
        found = same_network(task.source, task.target) or {}
        moves: list[Move] = []
        for name, parts in found.items():
            if name not in task.stays:
                moves += moves_of(task.source, task.target, parts)
        moves += loose_moves(task.source, task.target)
        moves += table_moves(task.source, task.target, found)
        return Draft(moves, {}, "no tensor of the source says what it should be")


def same_network(source: LayerGraph, target: LayerGraph) -> dict[str, list[Meeting]] | None:
    """The parts of each layer of the target with those of the source that they are; None if there is no such map.

    Tried in turn are the two forms as they are, without what may be inside a module, without what edges carry, with
    batch norms folded into the layers before them, and without tables that only one of the two learns.
    """
    forms = canonical(source), canonical(target)
    loose = forms[0].loosely(), forms[1].loosely()
    bare = forms[0].bare(), forms[1].bare()
    deployed = folded(loose[0]), folded(loose[1])
    for one, other in (forms, loose, bare, deployed, without_lone_tables(*bare)):
        same = isomorphism(one, other)
        if same is not None:
            return meetings(one, other, same)
    return None
