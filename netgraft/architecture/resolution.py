"""What follows from a ``LayerGraph`` without being written in it: resolutions, attention, what no data reaches.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph, Node
from netgraft.plan import numel

MOST_EXTRA_TOKENS = 9
"""One more than the class, distillation and register tokens that may stand in front of a grid of positions."""
SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
PRODUCTS = frozenset({"bmm", "matmul", "baddbmm", "mm", "einsum"})


def dead_layers(graph: LayerGraph) -> list[str]:
    """Layers that are computed, and whose result does not reach the output."""
    return _without(graph, graph.to_output)


def off_input_layers(graph: LayerGraph) -> list[str]:
    """Layers that see nothing of the input, such as a network that computes position embeddings from constants."""
    return [name for name in _without(graph, graph.from_input) if graph.layers[name].kind != "parameter"]


def unused_parameters(graph: LayerGraph) -> list[str]:
    """Keys of the parameters (not buffers) that the forward pass never touched."""
    return [key for key, slot in graph.loose.items() if not slot.buffer]


def stride(graph: LayerGraph, layer: Layer) -> float | None:
    """How many times coarser than the input the layer's result is along one axis of space; 4.0 after ResNet's stem.

    None where there is no space: the input is a vector, or the layer works on pooled features. Tokens count as
    positions, extra tokens included, so a vision transformer with patches of 16 has a stride of almost 16.
    """
    inputs = [node for node in graph.nodes if node.op == "input"]
    image = max(inputs, key=lambda node: numel(node.shape), default=None)
    if image is None or len(image.shape) < 3 or not layer.out_shape or layer.kind == "parameter":
        return None
    first = next((g for g in graph.layers.values() if g.is_kernel and g.in_shape == image.shape), None)
    channels_last = first is not None and first.kind == "linear"
    space = image.shape[1:-1] if channels_last else image.shape[2:]
    channels = layer.out_shape[1] if layer.kind.startswith("conv") else layer.out_shape[-1]
    if not (layer.kind.startswith("conv") or layer.kind in ("linear", "layer_norm", "rnn")):
        channels = layer.out_channels
    positions = numel(layer.out_shape) / max(1, channels * image.shape[0])
    if positions <= 1 or numel(space) <= 1:
        return None
    return float((numel(space) / positions) ** (1 / len(space)))


def stages(graph: LayerGraph) -> dict[str, int]:
    """Resolution stage of each layer that has one: 0 at the input's resolution, one more for every halving."""
    found = {}
    for name, layer in graph.layers.items():
        coarser = stride(graph, layer)
        if coarser is not None:
            found[name] = round(math.log2(coarser))
    return found


def has_norms(graph: LayerGraph) -> bool:
    """Whether any layer normalises."""
    return any(layer.is_norm for layer in graph.layers.values())


def takes_image(graph: LayerGraph) -> bool:
    """Whether one batch of images ``[N, C, H, W]`` is all that it takes."""
    inputs = [node for node in graph.nodes if node.op == "input"]
    return len(inputs) == 1 and len(inputs[0].shape) == 4


def grid_of(tokens: int) -> tuple[int, int] | None:
    """(side, extra): a square grid of side x side tokens behind a few extra ones; None where there is no such."""
    for extra in range(min(MOST_EXTRA_TOKENS, tokens)):
        side = math.isqrt(tokens - extra)
        if side * side == tokens - extra:
            return side, extra
    return None


# ------------------------------------------------------------------------------------------------------------ attention


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
        steps = _steps(graph, node)
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
    normed = any(layer.kind == "batch_norm" for layer in graph.layers.values())
    return not normed and any(_steps(graph, node) is not None for node in graph.nodes)


def _steps(graph: LayerGraph, node: Node) -> tuple[tuple[Node, Node, Node], Node, Node] | None:
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
    seen, stack, found = set(), [node], set()
    while stack:
        step = stack.pop()
        if step.op == "layer" and step.layer is not None and graph.layers[step.layer].is_kernel:
            found.add(step.layer)
            continue
        if step.op == "input":
            return None
        for id in step.inputs:
            if id not in seen:
                seen.add(id)
                stack.append(graph.by_id[id])
    return found.pop() if len(found) == 1 else None


def _heads(graph: LayerGraph, operands: tuple[Node, Node, Node], layer: str, names: tuple[str, ...]) -> int | None:
    """Channels that the query layer spends on queries, divided by the length of one query."""
    if graph.layers[layer].kind != "linear":
        return None
    width = operands[0].shape[-1] if operands[0].shape else 0
    channels = graph.layers[layer].out_channels / names.count(layer)
    return int(channels / width) if width and channels % width == 0 else None


def _without(graph: LayerGraph, reached: frozenset[str]) -> list[str]:
    alive = {node.layer for node in graph.nodes if node.id in reached}
    return [name for name in graph.layers if name not in alive]
