"""What recipes that fit or train would take, as estimated from two graphs, and whom they cannot teach."""

from __future__ import annotations

from collections.abc import Mapping

from netgraft import plugins
from netgraft.architecture.cost import distil_images, multiply_adds, refit_images
from netgraft.architecture.graph import LayerGraph

SPEED = {"cpu": 1.5e10, "cuda": 5e12}
"""Multiply-adds a second that are reckoned with. Not measured on the spot: the same command must give the same file."""
OVERHEAD = {"cpu": 6e-5, "cuda": 4e-5}
"""Seconds that a layer takes in a forward pass, however small it is."""


def estimated_seconds(source: LayerGraph, target: LayerGraph, device: str) -> Mapping[str, float]:
    """What a refit, that before a distillation, asking the source, and one step take, as estimated."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    refit, distil = (plugins.create("recipes", name, {}) for name in ("refit", "distil"))
    source_cost, target_cost = (multiply_adds(graph, 1) for graph in (source, target))
    layers = [len(graph.kernels()) * OVERHEAD[kind] for graph in (source, target)]
    size = max((node.shape for node in source.nodes if node.op == "input"), key=len, default=())
    images, batch = distil_images(size[1:], distil.images), distil.batch
    fitting = [
        4 * refit_images(source, target, each.refit_images) * (source_cost + target_cost) / SPEED[kind]
        + 0.1 * len(target.kernels())
        for each in (refit, distil)
    ]
    return {
        "refit": fitting[0],
        "first": fitting[1],
        "answer": images * source_cost / SPEED[kind] + images / batch * layers[0],
        "step": 3 * batch * target_cost / SPEED[kind] + 5 * layers[1],
    }


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
