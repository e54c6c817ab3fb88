from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any, ClassVar

import torch

from netgraft.endings import Ending, find_endings
from netgraft.graph import Layer, LayerGraph
from netgraft.passes import Stage
from netgraft.plan import KEPT, Pairing


@dataclass(frozen=True)
class Rescale:
    """Scale kernels before batch norms up, and the norms' statistics with them: what is computed stays the same.

    A batch norm undoes the scale of the kernel before it, but the scale decides how fast training turns it: a step of
    length s moves a kernel of norm n by the angle s / n (van Laarhoven, arXiv:1706.05350). At the scale of a random
    initialisation the learning rate that suits one washes out what was transferred within a few epochs, before it is
    of use. ``gain`` is the scale as a multiple of He et al.'s initialisation (arXiv:1502.01852, Eq. 10). Kernels that
    hold the target's own random values are left alone: they have nothing to keep.
    """

    gain: float = field(
        default=2.0, metadata={"help": "norm of the kernels as a multiple of He et al.'s initialisation"}
    )

    fate: ClassVar[str] = ""  # where the numbers come from does not change

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError("gain must be positive")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        """Kernels that a batch norm follows, their biases, and the norm's statistics."""
        keys: dict[str, None] = {}
        for layer, norm in _normed(target):
            for each, roles in ((layer, ("weight", "bias")), (norm, ("running_mean", "running_var"))):
                for role in roles:
                    if role in each.tensors:
                        slot = each.tensors[role]
                        keys.update(dict.fromkeys(slot.keys))
        return tuple(keys)

    @torch.no_grad()
    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``layers``: how many were scaled; ``median``: by how much."""
        tensors = stage.target.module.state_dict()
        fates = stage.plan.fates
        factors = []
        for layer, norm in _normed(stage.target.graph):
            weight = tensors[layer.tensors["weight"].key]
            length = float(weight.double().norm())
            if fates[layer.tensors["weight"].key] == KEPT or length == 0:
                continue
            he = sqrt(2 / prod(layer.shape[1:])) * sqrt(weight.numel())  # the norm of a kernel drawn so
            factor = self.gain * he / length
            factors.append(factor)
            weight.mul_(factor)
            if "bias" in layer.tensors:
                tensors[layer.tensors["bias"].key].mul_(factor)
            if "running_mean" in norm.tensors:
                tensors[norm.tensors["running_mean"].key].mul_(factor)
                tensors[norm.tensors["running_var"].key].mul_(factor**2)
        factors.sort()
        return {"layers": len(factors), "median": round(factors[len(factors) // 2], 3) if factors else None}


def _normed(graph: LayerGraph) -> list[tuple[Layer, Layer]]:
    """Kernels of one call, and the batch norm that alone reads them, with nothing but a ReLU between."""
    found = []
    uses = Counter(slot.key for layer in graph.layers.values() for slot in layer.tensors.values())
    shared = {key for key, count in uses.items() if count > 1}
    for name, ending in find_endings(graph).items():
        layer = graph.layers[name]
        norm = graph.layers[ending.norm] if ending.norm is not None else None
        if norm is None or norm.calls != 1 or not layer.kind.startswith("conv"):
            continue
        if _homogeneous(graph, ending) and _own_weight(graph, layer, shared):
            found.append((layer, norm))
    return found


def _own_weight(graph: LayerGraph, layer: Layer, shared: set[str]) -> bool:
    """Whether the weight is used as it is, and nowhere else; the bias too."""
    slots = [layer.tensors[role] for role in ("weight", "bias") if role in layer.tensors]
    plain = "weight" in layer.tensors and layer.tensors["weight"].shape == layer.shape
    return plain and not graph.by_id[layer.name].facts.get("prepared") and not any(s.key in shared for s in slots)


def _homogeneous(graph: LayerGraph, ending: Ending) -> bool:
    if not ending.late:
        return True
    readers = graph.readers[ending.layer]
    return len(readers) == 1 and graph.by_id[readers[0]].op in ("relu", "leaky_relu")
