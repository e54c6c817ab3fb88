"""Follows a layer to the end of its branch: past its norm and its layer scale, to the addition that it ends in.

The value there is what the next layer reads, and so what layers of two networks are compared by. A convolution's own
output says little where a batch norm and a residual addition follow. For example::

    x --+-- conv1 - bn1 - relu - conv2 - bn2 --- add
        +---------------------------------------+

The ending of conv1 is bn1 (an activation follows: ``activated``); that of conv2 is the addition, with bn2 as ``norm``
and x as ``skip``. Where a gate is computed from a value and multiplied with it, as in squeeze-and-excitation, the way
goes on behind the product. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from netgraft.architecture.gates import gate_edges
from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import ACTIVATES, MOVES


@dataclass(frozen=True)
class Ending:
    """How the first call of a kernel layer goes on."""

    layer: str
    node: str  # the last node of the path: the addition, else the norm, else the layer's call itself
    norm: str | None = None  # the batch norm that follows directly
    scale: str | None = None  # a layer scale between it and the addition
    add: str | None = None  # the addition of a residual block that it ends
    skip: str | None = None  # what is added to it there
    main: bool = True  # not a shortcut's projection
    late: bool = False  # an activation stands between the layer and its norm
    activated: bool = False  # an activation follows the last node
    gated: bool = False  # a gate multiplies what is added


def find_endings(graph: LayerGraph) -> dict[str, Ending]:
    """The ending of every kernel layer that is called once and feeds the output, by its name."""
    found = {}
    gates = {product: gate for gate, product in gate_edges(graph)}
    for layer in graph.kernels():
        if layer.calls == 1 and layer.name in graph.by_id and layer.name in graph.to_output:
            found[layer.name] = _follow(graph, layer.name, gates)
    by_add: dict[str, list[Ending]] = {}
    for ending in found.values():
        if ending.add is not None:
            by_add.setdefault(ending.add, []).append(ending)
    for endings in by_add.values():  # of several layers that end in one addition, the deepest is the branch
        if len(endings) > 1:
            deepest = max(endings, key=lambda ending: _depth(graph, ending.layer))
            for ending in endings:
                if ending is not deepest:
                    found[ending.layer] = replace(ending, main=False)
    return found


def _follow(graph: LayerGraph, name: str, gates: Mapping[str, str]) -> Ending:
    norm = scale = None
    late = gated = False
    end = current = name

    def ending(add: str | None = None, skip: str | None = None) -> Ending:
        last = add or end
        activated = any(graph.by_id[reader].op in ACTIVATES for reader in graph.readers[last])
        scaled = scale if add is not None else None
        normed = _layer(graph, norm)
        is_late = late and norm is not None
        return Ending(name, last, normed, scaled, add, skip, True, is_late, activated, gated and add is not None)

    while True:
        readers = graph.readers[current]
        product = _behind_gate(graph, current, gates)
        if product is not None and not (late and norm is None):
            gated, current = True, product
            continue
        if len(readers) != 1:
            break
        node = graph.by_id[readers[0]]
        layer = graph.layer_of(node)
        bare = norm is None and scale is None and not gated
        if layer is not None and layer.rules.has_statistics and bare:
            norm = end = current = node.id
        elif layer is None and node.op in ACTIVATES and bare and not late:
            late, current = True, node.id  # counts if a norm follows
        elif late and norm is None and (layer is not None or node.op not in MOVES):
            break
        elif (by := _multiplied_by(graph, node)) and scale is None:
            scale, current = by, node.id
        elif layer is None and node.op in MOVES:
            current = node.id
        elif layer is None and node.op == "add" and (skip := _other(graph, node, current)):
            return ending(node.id, skip)
        else:
            break
    return ending()


def _behind_gate(graph: LayerGraph, current: str, gates: Mapping[str, str]) -> str | None:
    """The product of a value with its gate, if whatever else reads the value only makes that gate.

    An activation that is written out, as x * sigmoid(x), is no gate: number by number it has no weights of its own.
    """
    readers = graph.readers[current]
    for product in readers:
        if gates.get(product, current) == current or graph.by_id[product].shape != graph.by_id[current].shape:
            continue
        others = [id for id in readers if id != product]
        side = list(graph.walk(others, forwards=True, through=partial(_is_other, product)))
        if not others or (
            all(node.op != "output" for node in side)
            and any(node.layer is not None or prod(node.shape) < prod(graph.by_id[current].shape) for node in side)
        ):
            return product
    return None


def _is_other(id: str, node: Node) -> bool:
    return node.id != id


def _layer(graph: LayerGraph, id: str | None) -> str | None:
    return None if id is None else graph.by_id[id].layer


def _multiplied_by(graph: LayerGraph, node: Node) -> str | None:
    """The parameter that the node multiplies with, perhaps after it was given another shape."""
    if node.op != "mul" or len(node.inputs) != 2:
        return None
    by = [graph.by_id[source] for source in node.inputs if source not in graph.from_input]
    while len(by) == 1 and by[0].op in MOVES:
        by = [graph.by_id[source] for source in by[0].inputs]
    return by[0].layer if len(by) == 1 and by[0].op == "parameter" else None


def _other(graph: LayerGraph, node: Node, one: str) -> str | None:
    """What is added to ``one``, if it is data of the same shape."""
    others = [source for source in node.inputs if source != one]
    if len(node.inputs) != 2 or len(others) != 1 or others[0] not in graph.from_input:
        return None
    return others[0] if graph.by_id[others[0]].shape == graph.by_id[one].shape else None


def _depth(graph: LayerGraph, name: str) -> int:
    """How many kernels lie before a layer, itself included."""
    return sum(node.id in graph.layers and graph.layers[node.id].is_kernel for node in graph.walk([name]))
