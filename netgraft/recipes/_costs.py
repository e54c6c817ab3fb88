"""What recipes that fit or train would take, as estimated from two graphs, and whom they cannot teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from netgraft import plugins
from netgraft.architecture.cost import batch_size, distil_images, fitting, multiply_adds
from netgraft.architecture.graph import LayerGraph

SPEED = {"cpu": 1.5e10, "cuda": 5e12}
"""Multiply-adds a second that are reckoned with. Not measured on the spot: the same command must give the same file."""
DRAWING, LAYER = 1e-7, 0.1
"""Seconds that a number of an image takes to be drawn, for both networks; and what a layer takes to be fitted."""
OVERHEAD = {"cpu": 6e-5, "cuda": 4e-5}
"""Seconds that a layer takes in a forward pass, however small it is."""


@dataclass(frozen=True)
class Seconds:
    """What recipes take, as estimated."""

    answer: float  # asking the source about the images of a distillation
    step: float  # one of its steps
    image: float  # both networks' passes on an image of a refit, with what it takes to draw it
    fitting: Callable[[int], float]  # of all layers of a refit, on so many images

    def refit(self, images: int) -> float:
        """A refit on at most so many images, and what is kept aside beside them."""
        return (images + min(images // 4, 64)) * self.image + self.fitting(images)

    def learning(self, steps: int) -> float:
        """A distillation, without what comes before it."""
        return self.answer + steps * self.step


def estimated_seconds(source: LayerGraph, target: LayerGraph, device: str) -> Seconds:
    """By the sizes of all layers, at the speed of the kind of device."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    distil = plugins.create("recipes", "distil", {})
    source_cost, target_cost = (multiply_adds(graph, 1) for graph in (source, target))
    layers = [len(graph.kernels()) * OVERHEAD[kind] for graph in (source, target)]
    size = max((node.shape for node in source.nodes if node.op == "input"), key=len, default=())
    images, batch = distil_images(size[1:], distil.images), distil.batch
    shown = batch_size(source, target, images)
    return Seconds(
        images * source_cost / SPEED[kind] + images / batch * layers[0],
        3 * batch * target_cost / SPEED[kind] + 5 * layers[1],
        (source_cost + 2 * target_cost) / SPEED[kind] + 2 * sum(layers) / shown + prod(size[1:]) * DRAWING,
        lambda images: fitting(target, images) / SPEED[kind] + LAYER * len(target.kernels()),
    )


def unteachable(source: LayerGraph, target: LayerGraph) -> str:
    """Why the target cannot be taught the source's answers; empty if it can."""
    if len(source.heads()) != 1:
        return f"the source has {len(source.heads())} heads"
    for whose, graph in (("source", source), ("target", target)):
        if len(_answer(graph)) != 2:
            return f"the {whose} does not answer with a score per class"
    heads = target.heads()
    if len(heads) != 1 or heads[0].kind not in ("linear", "conv2d") or heads[0].transposed:
        return "the target has no single linear head"
    return ""


def _answer(graph: LayerGraph) -> tuple[int, ...]:
    """The shape of the first tensor that the network puts out."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return graph.by_id[output.inputs[0]].shape if output.inputs else ()


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
