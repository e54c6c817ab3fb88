from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import prod, sqrt
from statistics import median
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.graph import Layer, LayerGraph, Slot
from netgraft.architecture.scaling import Region, find_regions, find_trades, usable_layers
from netgraft.passes.protocol import Stage
from netgraft.plan import KEPT, Pairing


@dataclass(frozen=True)
class Rescale:
    """Scale kernels up where a norm takes their scale away again: what is computed stays the same.

    The scale decides how fast training turns a kernel: a step of length s moves one of norm n by the angle s / n (van
    Laarhoven, arXiv:1706.05350). At the scale of a random initialisation the learning rate that suits one washes out
    what was transferred within a few epochs, before it is of use. Three scales are free:

    - of a kernel before a batch norm, with the norm's statistics;
    - of all that is added up in a residual stream read through LayerNorms or RMSNorms only: one number for its kernels,
      biases, position embeddings and tokens;
    - of a LayerNorm's gamma and beta, against that of the linear layers that read it.

    Scales of kernels are multiples of He et al.'s initialisation (arXiv:1502.01852), in a stream their median.
    Kernels that hold the target's own random values are left alone: they have nothing to keep. So is what an earlier
    pass found to be as it should be (``Stage.settled``), and what could only be scaled together with it.
    """

    gain: float | None = field(
        default=2.0,
        metadata={"help": "norm of kernels before a norm, as a multiple of He et al.'s initialisation; none: as is"},
    )
    stream: float | None = field(
        default=4.0,
        metadata={"help": "the same for kernels that add to a residual stream under LayerNorm; none: as is"},
    )
    gamma: float | None = field(
        default=0.5, metadata={"help": "root mean square of gamma in a LayerNorm before linear layers; none: as is"}
    )

    spare: Literal["nothing", "copied"] = field(
        default="nothing", metadata={"help": "copied: layers that were copied as they are keep their scale"}
    )

    fate: ClassVar[str] = ""  # where the numbers come from does not change

    def __post_init__(self) -> None:
        if not all(value is None or value > 0 for value in (self.gain, self.stream, self.gamma)):
            raise ValueError("gain, stream and gamma must be positive")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        """Kernels that a norm follows and their biases, that norm's statistics, what else is added to a stream."""
        slots: list[Slot] = []
        for layer, norm in _normed(target) if self.gain is not None else ():
            slots += [*_weights(layer), *_of(norm, "running_mean", "running_var")]
        for region in self._regions(target):
            slots += [*region.parameters, *(slot for layer in region.writers for slot in _weights(layer))]
        for trade in find_trades(target) if self.gamma is not None else ():
            slots += [*_weights(trade.norm), *(slot for layer in trade.readers for slot in _of(layer, "weight"))]
        return tuple(dict.fromkeys(key for slot in slots for key in slot.keys))

    def spared(self, target: LayerGraph, copied: Collection[str]) -> frozenset[str]:  # noqa: ARG002
        """What was copied, if it is told so."""
        return frozenset(copied) if self.spare == "copied" else frozenset()

    @torch.no_grad()
    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``layers``: how many kernels were scaled; ``median``: by how much."""
        graph, fates, settled = stage.target.graph, stage.plan.fates, stage.settled
        left = self.spared(graph, stage.plan.copied)
        settled = settled | {layer.name for layer in graph.layers.values() if _holds(layer, left)}
        tensors = stage.target.module.state_dict()
        factors: dict[str, float] = {}

        def scale(slots: Iterable[Slot], factor: float) -> None:
            for slot in slots:
                tensors[slot.key].mul_(factor)

        def held(layers: Iterable[Layer]) -> list[Layer]:
            """Those that hold something."""
            keys = {layer.name: layer.tensors["weight"].key for layer in layers}
            return [graph.layers[name] for name, key in keys.items() if fates[key] != KEPT and bool(tensors[key].any())]

        def note(layers: Iterable[Layer], factor: float) -> None:
            for layer in layers:
                factors[layer.name] = factors.get(layer.name, 1.0) * factor

        for layer, norm in _normed(graph) if self.gain is not None else ():
            if settled.isdisjoint((layer.name, norm.name)) and held([layer]):
                factor = (self.gain or 1.0) / _multiple(tensors[layer.tensors["weight"].key])
                scale([*_weights(layer), *_of(norm, "running_mean")], factor)
                scale(_of(norm, "running_var"), factor**2)
                note([layer], factor)
        for trade in find_trades(graph) if self.gamma is not None else ():
            if settled.intersection(layer.name for layer in (trade.norm, *trade.readers)):
                continue
            size = float(tensors[trade.norm.tensors["weight"].key].double().square().mean().sqrt())
            if size > 0 and len(held(trade.readers)) == len(trade.readers):
                factor = size / (self.gamma or 1.0)
                scale(_weights(trade.norm), 1 / factor)
                scale((slot for layer in trade.readers for slot in _of(layer, "weight")), factor)
                note(trade.readers, factor)
        for region in self._regions(graph):
            free = settled.isdisjoint(layer.name for layer in region.writers)
            if free and (known := held(region.writers)):
                lengths = [_multiple(tensors[layer.tensors["weight"].key]) for layer in known]
                factor = ((self.stream if region.stream else self.gain) or 1.0) / median(lengths)
                scale([*region.parameters, *(slot for layer in region.writers for slot in _weights(layer))], factor)
                note(region.writers, factor)
        return {"layers": len(factors), "median": round(median(factors.values()), 3) if factors else None}

    def _regions(self, graph: LayerGraph) -> list[Region]:
        """Those whose scale is to change."""
        return [each for each in find_regions(graph) if (self.stream if each.stream else self.gain) is not None]


def _holds(layer: Layer, keys: Collection[str]) -> bool:
    return any(slot.key in keys for slot in _of(layer, "weight", "value"))


def _of(layer: Layer, *roles: str) -> list[Slot]:
    return [layer.tensors[role] for role in roles if role in layer.tensors]


def _weights(layer: Layer) -> list[Slot]:
    return _of(layer, "weight", "bias")


def _multiple(weight: Tensor) -> float:
    """The norm of a kernel, divided by that of one drawn as He et al. do."""
    return float(weight.double().norm()) / sqrt(2 / prod(weight.shape[1:]) * weight.numel())


def _normed(graph: LayerGraph) -> list[tuple[Layer, Layer]]:
    """Kernels of one call, and the batch norm that alone reads them, with nothing but a ReLU between."""
    found = []
    usable = usable_layers(graph)
    for name, ending in find_endings(graph).items():
        layer = graph.layers[name]
        norm = graph.layers[ending.norm] if ending.norm is not None else None
        if norm is None or norm.calls != 1 or not layer.is_conv:
            continue
        if _homogeneous(graph, ending) and name in usable:
            found.append((layer, norm))
    return found


def _homogeneous(graph: LayerGraph, ending: Ending) -> bool:
    if not ending.late:
        return True
    readers = graph.readers[ending.layer]
    return len(readers) == 1 and graph.by_id[readers[0]].op in ("relu", "leaky_relu")
