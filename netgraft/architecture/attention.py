"""Where a network attends, and from which layers queries, keys and values come. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import PRODUCTS, SOFTMAX


@dataclass(frozen=True)
class Attention:
    """One attention: where queries, keys and values come from. One name three times is a fused projection."""

    node: str  # id of the node that mixes the values
    query: str
    key: str
    value: str
    heads: int | None  # None where the shapes do not tell
    product: str = ""  # id of the node that multiplies queries with keys: ``node`` itself where all is one operation
    softmax: str = ""  # id of the node that makes weights of the products

    @property
    def fused(self) -> str:
        """Which of "qkv" one layer computes together, "" if none do."""
        names = {"q": self.query, "k": self.key, "v": self.value}
        together = ["".join(role for role in names if names[role] == layer) for layer in names.values()]
        longest = max(together, key=len)
        return longest if len(longest) > 1 else ""


def attentions(graph: LayerGraph) -> list[Attention]:
    """Every attention whose queries, keys and values each come from one layer, in execution order.

    Attention is known by what is computed: softmax of a product of two activations, times a third.
    """
    found = []
    for node in graph.nodes:
        steps = attention_steps(graph, node)
        if steps is None:
            continue
        operands, softmax, product = steps
        sources = [_source(graph, operand) for operand in operands]
        if None in sources:
            continue
        query, key, value = names = tuple(str(source) for source in sources)
        heads = _heads(graph, operands, query, names)
        found.append(Attention(node.id, query, key, value, heads, product.id, softmax.id))
    return found


def is_transformer(graph: LayerGraph) -> bool:
    """Whether it attends, and has no batch norm: those with some are convolutional nets for the greater part."""
    normed = any(layer.rules.has_statistics for layer in graph.layers.values())
    return not normed and any(attention_steps(graph, node) is not None for node in graph.nodes)


def attention_steps(graph: LayerGraph, node: Node) -> tuple[tuple[Node, Node, Node], Node, Node] | None:
    """If ``node`` is an attention: the nodes of queries, keys and values, the softmax, the product of the first two."""
    by_id = graph.by_id
    if node.op == "scaled_dot_product_attention" and len(node.inputs) >= 3:
        query, key, value = (by_id[id] for id in node.inputs[:3])
        return (query, key, value), node, node
    if node.op not in PRODUCTS or len(node.inputs) != 2:
        return None
    weights, value = (by_id[id] for id in node.inputs)
    for step in _back(graph, weights, 6):
        if step.op in SOFTMAX:
            for scores in _back(graph, by_id[step.inputs[0]], 8):
                if scores.op in PRODUCTS and len(scores.inputs) == 2:
                    query, key = (by_id[id] for id in scores.inputs)
                    return (query, key, value), step, scores
    return None


def _back(graph: LayerGraph, node: Node, steps: int) -> Iterator[Node]:
    """``node`` and what it was computed from, along the first input that depends on the model's input."""
    for _ in range(steps):
        yield node
        before = [id for id in node.inputs if id in graph.from_input]
        if not before or node.op == "layer":
            return
        node = graph.by_id[before[0]]


def _source(graph: LayerGraph, node: Node) -> str | None:
    """The one kernel layer that ``node`` was computed from without another in between."""
    found = set()
    for step in graph.walk([node.id], through=lambda step: graph.kernel_of(step) is None):
        kernel = graph.kernel_of(step)
        if kernel is not None:
            found.add(kernel.name)
        if step.op == "input":
            return None
    return found.pop() if len(found) == 1 else None


def _heads(graph: LayerGraph, operands: tuple[Node, Node, Node], layer: str, names: tuple[str, ...]) -> int | None:
    """Channels that the query layer spends on queries, divided by the length of one query."""
    if not graph.layers[layer].is_linear:
        return None
    width = operands[0].shape[-1] if operands[0].shape else 0
    channels = graph.layers[layer].out_channels / names.count(layer)
    return int(channels / width) if width and channels % width == 0 else None
