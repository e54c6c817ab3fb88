"""New branches that can start as nothing, so that what was there before goes on as if they were not.

Where a new branch is added to what was there, its last layer may be zero; where a new gate is multiplied with it, the
gate may be open. For example, a squeeze-and-excitation block put into a trained network::

    y --+-------------------------- mul ---> y sigmoid(W2 relu(W1 mean(y)) + b2)
        +-- mean -- W1 -- relu -- W2 -- sigmoid --+       W2 = 0, b2 large: the gate is nearly 1

Found are the layers at the end of such branches, whatever stands before them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph, Node
from netgraft.architecture.operations import PASSES
from netgraft.architecture.rows import operands

ZERO_AT_ZERO = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "mish", "hardswish", "tanh"),
        *("mul", "div", "getitem"),
    )
)
"""Functions that are zero at zero: a branch that ends in one may start as zero before it."""
OPENINGS = {"sigmoid": 6.0, "hardsigmoid": 3.0}
"""What a gate must be given to be open: sigmoid(6) = 0.998, hardsigmoid(3) = 1."""


@dataclass(frozen=True)
class Neutral:
    """A layer at the end of a new branch, and what its tensors must be for the branch to do nothing."""

    layer: str
    weight: float
    bias: float
    why: str


def neutral_ends(graph: LayerGraph, known: Collection[str]) -> Iterator[Neutral]:
    """The ends of new branches beside what the layers ``known`` compute. Other layers are new."""
    from_known = {node.id for node in graph.nodes if node.layer in known or node.op == "input"}
    reached = _reached(graph, from_known)
    for node in graph.nodes:
        read = [graph.by_id[id] for id in operands(node)]
        if node.op not in ("add", "mul") or len(read) != 2:
            continue
        for branch, other in (read, read[::-1]):
            if branch.id in reached or other.id not in reached:
                continue
            found = _ends(graph, branch, known, gate=node.op == "mul")
            yield from found


def _reached(graph: LayerGraph, known: set[str]) -> set[str]:
    """Nodes at which something from a known layer arrives through operations without weights."""
    found = set(known)
    for node in graph.nodes:
        if node.layer is None and any(id in found for id in node.inputs):
            found.add(node.id)
    return found


def _ends(graph: LayerGraph, branch: Node, known: Collection[str], *, gate: bool) -> list[Neutral]:
    """The last layers of a branch, if they can make it nothing."""
    ends: dict[str, Neutral] = {}
    stack: list[tuple[Node, float | None]] = [(branch, None)]
    while stack:
        node, opening = stack.pop()
        layer = graph.layer_of(node)
        if layer is not None:
            if layer.name in known or not _can_end(layer) or (gate and opening is None):
                return []
            value = opening if gate and opening is not None else 0.0
            what = "new gate: open" if gate else "end of a new branch: zero, so that it adds nothing"
            ends[layer.name] = Neutral(layer.name, 0.0, value, what)
            continue
        if gate and opening is None and node.op in OPENINGS:
            opening = OPENINGS[node.op]
        elif not (node.op in PASSES or (not gate and node.op in ZERO_AT_ZERO) or _is_plain(node, gate)):
            return []
        scales = [graph.by_id[id] for id in node.inputs if graph.by_id[id].op == "parameter"]
        if node.op == "mul" and not gate:  # one zero factor is enough: a layer scale, else the map
            full = [graph.by_id[id] for id in node.inputs if graph.by_id[id].shape == node.shape]
            stack += [(each, opening) for each in (scales or full)[:1]]
            continue
        stack += [(graph.by_id[id], opening) for id in node.inputs]
    return list(ends.values())


def _is_plain(node: Node, gate: bool) -> bool:
    """Whether sums and enlargements on the way do no harm."""
    return node.op in ("interpolate", "upsample_nearest2d", "mean") or (node.op == "add" and not gate)


def _can_end(layer: Layer) -> bool:
    return layer.calls == 1 and (layer.is_kernel or layer.is_norm or layer.kind == "parameter")
