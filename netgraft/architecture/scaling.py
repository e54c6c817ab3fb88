"""Finds weights that can be multiplied by a number without changing what a network computes.

LayerNorm and RMSNorm give the same for x and for c x. So everything that is added up in a residual stream can be
multiplied by one number, where the stream is read through such norms alone::

    patches - linear -+- add ------------------ add ------------- norm - head
             position-+   +- norm - attention -+

Here the linear layer, the position embedding and the attention's last layer are one ``Region``: all three times c, and
the head reads what it read before. A ``Trade`` is a norm's gamma and beta and the linear layers that alone read them:
one may be multiplied by c, the others by 1 / c. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph, Node, Slot
from netgraft.architecture.operations import ADDS, MOVES, SCALES


@dataclass(frozen=True)
class Region:
    """Values that are added up, and read by norms only: scaling all that is written there changes nothing else."""

    writers: tuple[Layer, ...]  # kernels, weight and bias
    parameters: tuple[Slot, ...]  # position embeddings, class tokens; gamma and beta of norms whose values are added
    stream: bool  # whether values are added in it


@dataclass(frozen=True)
class Trade:
    """A norm's gamma and beta, and the kernels that alone read it: one may be multiplied by c, the others by 1 / c."""

    norm: Layer
    readers: tuple[Layer, ...]


def find_regions(graph: LayerGraph) -> list[Region]:
    """Every region of ``graph`` that can be scaled, in order."""
    usable = usable_layers(graph)
    found: list[Region] = []
    seen: set[str] = set()
    for node in graph.nodes:
        if not _is_norm(graph, node) or node.inputs[0] in seen:
            continue
        nodes = _close(graph, node.inputs[0], usable)
        if nodes is None:
            continue
        seen |= {each.id for each in nodes}
        layers = [layer for each in nodes if (layer := graph.layer_of(each))]
        writers = tuple(layer for layer in layers if _is_linear(layer))
        slots = [
            slot
            for layer in layers
            for role, slot in layer.tensors.items()
            if layer.kind == "parameter" or (layer.rules.scale_free and role in ("weight", "bias"))
        ]
        found.append(Region(writers, tuple(slots), any(each.op == "add" for each in nodes)))
    return found


def find_trades(graph: LayerGraph) -> list[Trade]:
    """Every norm of ``graph`` with a gamma that only linear maps read, no head among them, in order."""
    usable = usable_layers(graph)
    found = []
    for node in graph.nodes:
        norm = graph.layer_of(node)
        if norm is None or not _is_norm(graph, node) or norm.name not in usable or "weight" not in norm.tensors:
            continue
        readers = list(_through(graph, node))
        layers = [layer for layer in readers if layer is not None and _is_linear(layer) and layer.name in usable]
        if 0 < len(layers) == len(readers) and graph.head_names.isdisjoint(layer.name for layer in layers):
            found.append(Trade(norm, tuple(layers)))
    return found


def usable_layers(graph: LayerGraph) -> set[str]:
    """Layers that are called once, and whose tensors are used as they are stored, and by them alone."""
    uses = Counter(slot.key for layer in graph.layers.values() for slot in layer.tensors.values())
    found = set()
    for name, layer in graph.layers.items():
        slots = [slot for role, slot in layer.tensors.items() if role in ("weight", "bias") or len(layer.tensors) == 1]
        own = bool(slots) and all(uses[slot.key] == 1 and not slot.aliases for slot in slots)
        stored = not layer.is_kernel or ("weight" in layer.tensors and layer.tensors["weight"].shape == layer.shape)
        node = graph.by_id.get(name)
        if own and stored and layer.calls == 1 and node is not None and not node.facts.get("prepared"):
            # a bias that is put together from parts is another input of its layer
            data = [id for id in node.inputs if id in graph.from_input]
            if layer.kind == "parameter" or len(node.inputs) == len(data) == 1:
                found.add(name)
    return found


def _is_norm(graph: LayerGraph, node: Node) -> bool:
    layer = graph.layer_of(node)
    return layer is not None and layer.rules.scale_free and len(node.inputs) == 1


def _is_linear(layer: Layer) -> bool:
    """Whether what it puts out is linear in its weight and bias, both times c gives c times as much."""
    return layer.is_linear or layer.is_conv


def _close(graph: LayerGraph, start: str, usable: set[str]) -> list[Node] | None:
    """Returns the nodes whose values are scaled together with that of ``start``; None if one of them cannot be."""
    found: dict[str, Node] = {}
    stack = [start]
    while stack:
        node = graph.by_id[stack.pop()]
        if node.id in found:
            continue
        found[node.id] = node
        before = _scaled_with(graph, node, usable)
        if before is None:
            return None
        stack += before
        for id in graph.readers[node.id]:
            reader = graph.by_id[id]
            if _is_norm(graph, reader):
                continue
            if reader.layer is not None:
                return None
            stack.append(id)
    return [node for node in graph.nodes if node.id in found]


def _scaled_with(graph: LayerGraph, node: Node, usable: set[str]) -> tuple[str, ...] | None:
    """Returns the inputs of a node that must be c times as large for its value to be.

    An empty tuple for a layer: its own weights can be multiplied instead. None where neither will do, as behind a ReLU
    with a bias, or a layer whose weights others use too.
    """
    layer = graph.layer_of(node)
    if layer is not None:
        affine = layer.rules.scale_free and "weight" in layer.tensors
        known = layer.kind == "parameter" or affine or _is_linear(layer)
        return () if known and layer.name in usable else None
    if node.op in ADDS:
        return node.inputs if node.adds_data else None
    if node.op in SCALES and len(node.inputs) == 1:
        return node.inputs
    if node.op == "mul" and len(node.inputs) == 2:  # a layer scale
        data = tuple(id for id in node.inputs if id in graph.from_input)
        return data if len(data) == 1 else None
    return None


def _through(graph: LayerGraph, node: Node) -> Iterator[Layer | None]:
    """The layers that read a value, perhaps moved; None for anything else that does."""
    for id in graph.readers[node.id]:
        reader = graph.by_id[id]
        if reader.layer is not None:
            yield graph.layer_of(reader)
        elif reader.op in MOVES and len(reader.inputs) == 1:
            yield from _through(graph, reader)
        else:
            yield None
