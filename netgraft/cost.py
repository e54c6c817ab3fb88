"""What running an architecture costs, read off its layer graph. Nothing here imports torch."""

from __future__ import annotations

from math import prod

from netgraft.graph import LayerGraph
from netgraft.plan import numel


def multiply_adds(graph: LayerGraph, batch: int = 2) -> int:
    """Of one forward pass on ``batch`` inputs: numel(weight) x output positions, over the kernel layers.

    Products without a weight, as in attention, are not counted.
    """
    total = 0
    for layer in graph.kernels():
        weights = sum(numel(slot.shape) for slot in layer.tensors.values() if len(slot.shape) > 1)
        shape = layer.in_shape if layer.kind.startswith("conv_transpose") else layer.out_shape
        positions = prod(shape[:1] + shape[2:]) if layer.kind.startswith("conv") else prod(shape[:-1])
        total += weights * positions * layer.calls
    traced = next((node.shape[0] for node in graph.nodes if node.op == "input" and node.shape), batch)
    return total * batch // max(traced, 1)
