"""What running an architecture costs, and how many images fit, read off layer graphs. Nothing here imports torch."""

from __future__ import annotations

from math import prod
from typing import assert_never

from netgraft.architecture.graph import Layer, LayerGraph, Shape
from netgraft.architecture.kinds import CostRule

MOST_ACTIVATIONS = 2**25
"""Most numbers that the largest activation of a network may hold over all images that are refitted on."""
MOST_PIXELS = 2**27
"""Most numbers that all images of a distillation together may hold."""


def multiply_adds(graph: LayerGraph, batch: int = 2) -> int:
    """Of one forward pass on ``batch`` inputs: numel(weight) x output positions, over the kernel layers.

    Products without a weight, as in attention, are not counted.
    """
    total = 0
    for layer in graph.layers.values():
        weights = sum(prod(slot.shape) for slot in layer.tensors.values() if len(slot.shape) > 1)
        total += weights * _positions(layer) * layer.calls
    traced = next((node.shape[0] for node in graph.nodes if node.op == "input" and node.shape), batch)
    return total * batch // max(traced, 1)


def _positions(layer: Layer) -> int:
    """At how many positions of one call, over the whole batch, every number of the weight is multiplied."""
    match layer.rules.cost:
        case CostRule.OUTPUT_MAP:
            return prod(layer.out_shape[:1] + layer.out_shape[2:])
        case CostRule.INPUT_MAP:
            return prod(layer.in_shape[:1] + layer.in_shape[2:])
        case CostRule.ROWS:
            return prod(layer.out_shape[:-1])
        case CostRule.NONE:
            return 0
        case never:
            assert_never(never)


def refit_images(source: LayerGraph, target: LayerGraph, wanted: int) -> int:
    """How many images a refit takes: as many as wanted, or as fit into memory."""
    largest = 1
    for graph in (source, target):
        batch = next((node.shape[0] for node in graph.nodes if node.op == "input" and node.shape), 1)
        largest = max(largest, *(prod(node.shape) // max(batch, 1) for node in graph.nodes))
    return max(min(wanted, MOST_ACTIVATIONS // largest), 8)


def distil_images(size: Shape, wanted: int) -> int:
    """How many images of ``size`` a distillation takes: as many as wanted, or as fit into memory."""
    return max(min(wanted, MOST_PIXELS // max(prod(size), 1)), 1)
