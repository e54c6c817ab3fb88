"""What running an architecture costs, and how many images fit, read off layer graphs. Nothing here imports torch."""

from __future__ import annotations

from math import prod
from typing import assert_never

from netgraft.architecture.graph import Layer, LayerGraph, Shape
from netgraft.architecture.kinds import CostRule

MOST_ACTIVATIONS = 2**23
"""Most numbers that the largest activation of a network may hold over the images that it is shown at a time."""
MOST_FEATURES = 4608
"""Longest side of a normal matrix; more unknowns than that are fitted on as many rows, in the dual form."""
PENALTIES = 5
"""How often the equations of a layer are solved: for each penalty that is tried, and with the best one."""
MOST_AT_A_TIME = 64
"""Most of these images."""
MOST_ROWS, LEAST_ROWS, ROWS_PER_UNKNOWN = 40_000, 10_000, 16
"""Positions that a layer is fitted on: so many for each unknown of an output, within these bounds."""
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


def unknowns(layer: Layer) -> int:
    """Weights of a kernel per output; of one filter per channel those of a pointwise layer behind it."""
    return layer.shape[0] if layer.is_depthwise else prod(layer.shape[1:])


def rows_for(layer: Layer, most: int = MOST_ROWS) -> int:
    """Positions that a kernel is fitted on, if there are so many."""
    return min(most, max(LEAST_ROWS, ROWS_PER_UNKNOWN * unknowns(layer)))


def fitting(target: LayerGraph, images: int) -> int:
    """Multiply-adds of fitting all kernels once: normal matrices, and solving them in double precision.

    A matrix wider than MOST_FEATURES is not made: as many rows take its place.
    """
    batch = next((node.shape[0] for node in target.nodes if node.op == "input" and node.shape), 1)
    total = 0
    for layer in target.kernels():
        if layer.rules.refits and layer.shape:
            wide = unknowns(layer)
            rows = min(rows_for(layer), images * _positions(layer) // max(batch, 1))
            side = min(wide, MOST_FEATURES)
            products = rows * wide if wide <= MOST_FEATURES else side * side
            total += products * side + PENALTIES * (side**3 + 4 * side * side * layer.shape[0])
    return total


def batch_size(source: LayerGraph, target: LayerGraph, wanted: int, shrink: float = 1.0) -> int:
    """How many images both networks are shown at a time, of so many: no more than an eighth, if that is two or more.

    ``shrink``: the number of pixels that an image has, over that of its own size.
    No axis of an activation has this length, so that it is plain which axis counts images.
    """
    largest, lengths = 1, set()
    for graph in (source, target):
        batch = next((node.shape[0] for node in graph.nodes if node.op == "input" and node.shape), 1)
        largest = max(largest, *(prod(node.shape) // max(batch, 1) for node in graph.nodes))
        lengths |= {length for node in graph.nodes for length in node.shape}
    most = max(min(MOST_AT_A_TIME, wanted // 8, int(MOST_ACTIVATIONS / shrink / largest)), 2)
    return next((size for size in range(most, most // 2, -1) if size not in lengths), most)


def distil_images(size: Shape, wanted: int) -> int:
    """How many images of ``size`` a distillation takes: as many as wanted, or as fit into memory."""
    return max(min(wanted, MOST_PIXELS // max(prod(size), 1)), 1)
