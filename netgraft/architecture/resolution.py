"""How far the sides of an input have been halved where a layer works, and which grid tokens stand on.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from netgraft.architecture.graph import LayerGraph, Shape

MOST_EXTRA_TOKENS = 9
"""One more than the class, distillation and register tokens that may stand in front of a grid of positions."""

LEAST_SIDE = 32
"""Pixels; no smaller image is left of a larger one."""


def shrunk(size: Sequence[int], side: int) -> tuple[int, int, int]:
    """``size`` (channels, height, width) with ``side`` pixels along the longer side; images do not grow."""
    longest = max(size[1:])
    height, width = (min(length, max(side * length // longest, LEAST_SIDE)) for length in size[1:])
    return (size[0], height, width)


def levels(graph: LayerGraph) -> dict[str, float]:
    """For every layer how often the side of the input is halved up to its output; 0 where no shapes are recorded."""
    image = input_image(graph)
    found = dict.fromkeys(graph.layers, 0.0)
    for name, layer in graph.layers.items():
        if image and layer.out_shape and layer.out_channels:
            found[name] = halvings(image, math.prod(layer.out_shape) / (layer.out_channels * image[0]))
    return found


def input_image(graph: LayerGraph) -> Shape:
    """The shape of the first input with spatial axes, batch and channels included; empty if there is none."""
    return next((node.shape for node in graph.nodes if node.op == "input" and len(node.shape) > 2), ())


def halvings(image: Shape, positions: float) -> float:
    """How often each spatial axis of ``image`` is halved where so many positions are left."""
    return max(math.log2(math.prod(image[2:]) / max(positions, 1)) / len(image[2:]), 0.0) if image else 0.0


def has_norms(graph: LayerGraph) -> bool:
    """Whether any layer normalises."""
    return any(layer.is_norm for layer in graph.layers.values())


def takes_image(graph: LayerGraph) -> bool:
    """Whether one batch of images ``[N, C, H, W]`` is all that it takes."""
    inputs = [node for node in graph.nodes if node.op == "input"]
    return len(inputs) == 1 and len(inputs[0].shape) == 4


def grid_of(tokens: int) -> tuple[int, int] | None:
    """Returns (side, extra) for a sequence that is a square grid of side x side tokens behind ``extra`` others.

    197 tokens are (14, 1), a grid of 14 x 14 behind a class token. Of several ways the one with the fewest extra tokens
    counts. None for a number of tokens that is no square plus a few.
    """
    for extra in range(min(MOST_EXTRA_TOKENS, tokens)):
        side = math.isqrt(tokens - extra)
        if side * side == tokens - extra:
            return side, extra
    return None
