"""Which rows of a layer become the queries of an attention, and by what their products with keys are multiplied.

Heads of another width have sums of other lengths as logits. What makes up for it is put into these rows (OPERATORS D5).
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt
from typing import NamedTuple

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import PASSES, PLAIN_SPLITS, PRODUCTS, SOFTMAX

MASKS = frozenset({"add", "masked_fill", "where", "sub"})


class Queries(NamedTuple):
    """Rows ``start`` to ``start + rows`` of a linear layer are queries; logits are ``scale`` times the products."""

    layer: str
    start: int
    rows: int
    scale: float


def queries_of(graph: LayerGraph, product: str) -> Queries | None:
    """What multiplies keys in the node ``product``: ``scaled_dot_product_attention``, or a product before a softmax.

    Followed back through reshapes, numbers, and the choice of one of q, k, v; None where something else lies between.
    """
    scale = logit_scale(graph, product)
    if scale is None:
        return None
    first = graph.by_id[graph.by_id[product].inputs[0]]
    part, parts, current = 0, 1, first
    split: Node | None = None  # the last reshape seen: the one that the layer's output goes through
    while current.op != "layer":
        if parts > 1 and current.op in PASSES:
            split = current
        if current.op in ("getitem", "select"):
            before = graph.by_id[current.inputs[0]]
            if parts > 1 or (current.op == "getitem" and before.op not in PLAIN_SPLITS):
                return None
            if current.op == "select":
                dim, part = current.facts["args"][1:3]
                parts = before.shape[dim]
            else:
                part = current.facts["args"][1]
                before = graph.by_id[before.inputs[0]]
                parts = prod(before.shape) // prod(current.shape)
            current = before
            continue
        if len(current.inputs) != 1:
            return None
        if (number := factor(current)) is not None:
            scale *= number
        elif current.op not in PASSES:
            return None
        current = graph.by_id[current.inputs[0]]
    layer = graph.layer_of(current)
    if layer is None or not layer.is_linear or layer.transposed or layer.shape[0] % parts:
        return None
    if split is not None and split.inputs != (current.id,):
        return None
    if split is not None and split.shape[len(current.shape) - 1 : len(current.shape)] != (parts,):
        return None  # queries, keys and values alternate, head by head
    rows = layer.shape[0] // parts
    return Queries(layer.name, part * rows, rows, scale)


def logit_scale(graph: LayerGraph, product: str) -> float | None:
    """What the products of queries and keys are multiplied by on their way to the softmax.

    None if they do not plainly go there.
    """
    node = graph.by_id[product]
    if node.op == "scaled_dot_product_attention":
        given = node.facts.get("scale")
        given = 1 / sqrt(graph.by_id[node.inputs[0]].shape[-1]) if given is None else given
        return given if isinstance(given, float) else None
    if node.op not in PRODUCTS or len(node.inputs) != 2:
        return None
    scale = 1.0
    masked = False
    for step in _onwards(graph, node):
        if step.op in SOFTMAX:
            return scale
        if (number := factor(step)) is not None:
            if masked:
                return None
            scale *= number
        elif step.op in MASKS:
            masked = True
        elif step.op not in PASSES:
            return None
    return None


def _onwards(graph: LayerGraph, node: Node) -> Iterator[Node]:
    """The nodes after one, as long as there is a single reader."""
    while len(readers := graph.readers[node.id]) == 1:
        node = graph.by_id[readers[0]]
        yield node


def factor(node: Node) -> float | None:
    """The number that a node multiplies its one operand by."""
    args = node.facts.get("args", ())
    if node.op not in ("mul", "div") or len(node.inputs) != 1 or len(args) != 2:
        return None
    numbers = [value for value in args if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) != 1 or not numbers[0] or (node.op == "div" and args[0] is numbers[0]):
        return None
    return 1 / numbers[0] if node.op == "div" else float(numbers[0])
