"""Which rows of its layers each head of an attention reads, and which columns of the projection read each head.

Nothing here imports torch; ``passes.refitting.heads`` finds rows by running the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netgraft.architecture.attention import Attention, attention_steps
from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import COPIES, DROPS_OUT, RESHAPES
from netgraft.architecture.queries import factor, logit_scale
from netgraft.architecture.rows import onwards, operands, readers

Rows = tuple[int, ...]


@dataclass(frozen=True)
class HeadRows:
    """The heads of one attention over one sequence, in order.

    Head i multiplies rows ``queries[i]`` of one layer's output with rows ``keys[i]`` of another's, times ``scale``,
    and mixes rows ``values[i]`` of a third. Each layer is linear, and may be one and the same.
    """

    queries: tuple[Rows, ...]
    keys: tuple[Rows, ...]
    values: tuple[Rows, ...]
    scale: float
    projection: str  # the linear layer that reads all heads; empty where something lies between
    columns: tuple[Rows, ...]  # of its inputs, those that read head i


def find_head_rows(graph: LayerGraph, attention: Attention) -> HeadRows | str:
    """The rows of an attention of a sequence to itself, or why they cannot be told."""
    layers = {name: graph.layers[name] for name in (attention.query, attention.key, attention.value)}
    if attention.heads is None or not all(layer.is_linear and layer.calls == 1 for layer in layers.values()):
        return "queries, keys and values do not each come from a linear layer that is called once"
    calls = {name: next(n for n in graph.nodes if n.layer == name and n.op == "layer") for name in layers}
    if len({call.inputs[0] for call in calls.values()}) > 1:
        return "queries, keys and values are not made of one sequence"
    steps = attention_steps(graph, graph.by_id[attention.node])
    found = {}
    for role, name, end, place in (
        ("queries", attention.query, attention.product, 0),
        ("keys", attention.key, attention.product, 1),
        ("values", attention.value, attention.node, 2 if attention.product == attention.node else 1),
    ):
        arrived = _arriving(graph, calls[name], end, place)
        if steps is None or arrived is None or len(arrived[0]) % attention.heads:
            return f"something lies between {name} and the heads that read its {role}"
        found[role] = arrived
    (queries, one), (keys, other), (values, third) = found.values()
    between = logit_scale(graph, attention.product)
    if between is None or third != 1 or len(queries) != len(keys):
        return "what lies between queries, keys and values is not plain, or heads share keys"
    projection, columns = _projection(graph, attention, len(values))
    return HeadRows(
        queries=_cut(queries, attention.heads),
        keys=_cut(keys, attention.heads),
        values=_cut(values, attention.heads),
        scale=between * one * other,
        projection=projection,
        columns=_cut(columns, attention.heads),
    )


def _cut(rows: Rows, heads: int) -> tuple[Rows, ...]:
    size = len(rows) // heads
    return tuple(rows[size * head : size * (head + 1)] for head in range(heads)) if size else ()


def _arriving(graph: LayerGraph, call: Node, end: str, place: int) -> tuple[Rows, float] | None:
    """The rows that reach one operand of a node, head by head, and the number that they are multiplied with."""
    found = []
    for reader in readers(graph, call):
        for node, operand, number in _through_numbers(graph, graph.by_id[reader.node], reader.operand):
            if (node.id, operand) == (end, place):
                found.append((reader.rows, number))
    return found[0] if len(found) == 1 and len(set(found[0][0])) == len(found[0][0]) else None


def _through_numbers(graph: LayerGraph, node: Node, operand: int) -> Iterator[tuple[Node, int, float]]:
    """A node, and behind products with numbers those that read it with all in the same order."""
    number = 1.0
    yield node, operand, number
    while (by := factor(node)) is not None or node.op in COPIES | DROPS_OUT | RESHAPES or _keeps(graph, node):
        number *= 1.0 if by is None else by
        if len(graph.readers[node.id]) != 1:
            return
        before, node = node, graph.by_id[graph.readers[node.id][0]]
        places = [place for place, id in enumerate(operands(node)) if id == before.id]
        if len(places) != 1:
            return
        yield node, places[0], number


def _keeps(graph: LayerGraph, node: Node) -> bool:
    return node.op == "expand" and node.shape == graph.by_id[node.inputs[0]].shape


def _projection(graph: LayerGraph, attention: Attention, width: int) -> tuple[str, Rows]:
    """The linear layer that reads the mixed values, and its inputs in the order (head, place)."""
    mixed = graph.by_id[attention.node]
    node, view = onwards(graph, mixed)
    layer = graph.kernel_of(node)
    if layer is None or not layer.is_linear or layer.calls > 1 or len(mixed.shape) < 3:
        return "", ()
    tokens, size = mixed.shape[-2:]
    places = [view.offset]
    for count, stride in view.axes[-1]:
        places = [place + step * stride for place in places for step in range(count)]
    if len(places) != width or any(place % (tokens * size) >= size for place in places):
        return "", ()  # tokens are read together
    order = {(place // (tokens * size), place % size): column for column, place in enumerate(places)}
    heads = attention.heads or 1
    wanted = [(head, entry) for head in range(heads) for entry in range(size)]
    return (layer.name, tuple(order[each] for each in wanted)) if order.keys() == set(wanted) else ("", ())
