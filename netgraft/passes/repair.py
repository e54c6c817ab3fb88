"""Scale and bias of the layers of a network without norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import has_norms, takes_image
from netgraft.models.batch_norm import batch_norms
from netgraft.models.running import hearing_outputs
from netgraft.operators.apply import apply_steps
from netgraft.passes.protocol import LiveModel, Stage
from netgraft.passes.recalibrate import show
from netgraft.plan import Pairing, Step

"""Called with a layer's name, the layer and what it puts out; returns what it puts out instead, or None."""
SMALLEST = 1e-12
"""The variance below which a channel is taken as constant."""


@dataclass(frozen=True)
class Repair:
    """In a network without norms, give transferred layers the scale and bias to put out what the source's layers do.

    REPAIR (Jordan et al., arXiv:2211.08403; OPERATORS D8 ii): a kernel that reads fewer channels than it
    did, or those of another layer, puts out another mean and variance, and without a norm nothing sets that right. The
    target's layers are settled in the order they run, each on what the settled ones before it give. For a channel of
    measured mean m and standard deviation s, whose source has m_s and s_s,

        w' = w s_s / s,    b' = (b - m) s_s / s + m_s.

    Where a batch norm follows the source's layer these are its beta and gamma, which hold on any images; else they are
    measured on the same ones. New channels get the mean of the others' moments.
    """

    images: int = field(default=64, metadata={"help": "how many images the moments are measured on"})

    fate: ClassVar[str] = ""  # where the numbers come from does not change

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ValueError("one image has no variance")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:
        slots = [target.layers[name].tensors for name in _pairs(source, target, pairing)]
        roles = [tensors[role] for tensors in slots for role in ("weight", "bias") if role in tensors]
        return tuple(dict.fromkeys(key for slot in roles for key in slot.keys))

    @torch.no_grad()
    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``layers``: how many were settled; ``median``: the factor of their weights, over layers."""
        graph = stage.target.graph
        moves = {move.key: move for move in stage.plan.moves}
        rows = {
            name: (ending, step)
            for name, ending in _pairs(stage.source.graph, graph, stage.plan.pairing).items()
            if (move := moves.get(graph.layers[name].tensors["weight"].key)) and (step := _rows(move.steps))
        }
        factors: list[float] = []
        if rows:
            stage.progress(f"settling the layers of {stage.target.model.name}")
            images = stage.images(self.images, seed=4)
            wanted = _moments_of_source(stage, [ending for ending, _ in rows.values()], images)

            def settle(name: str, layer: Any, out: Tensor) -> Tensor:
                ending, step = rows[name]
                mean, std = _moments(out)
                aim, spread = (_read(each, step, mean) for each in wanted[ending.layer])
                factor = torch.where(std.square() > SMALLEST, spread / std, 1)
                shift = aim - mean * factor if layer.bias is not None else torch.zeros_like(mean)
                places = [1] * (out.dim() - 2)
                layer.weight.mul_(factor.view(-1, 1, *places))
                if layer.bias is not None:
                    layer.bias.mul_(factor).add_(shift)
                factors.append(float(factor.median()))
                return out * factor.view(-1, *places) + shift.view(-1, *places)

            with hearing_outputs(_modules(stage.target, rows), settle):
                show(stage.target, stage.shown(images, stage.target))
        factors.sort()
        return {"layers": len(factors), "median": round(factors[len(factors) // 2], 3) if factors else None}


def _pairs(source: LayerGraph, target: LayerGraph, pairing: Pairing) -> dict[str, Ending]:
    """The target's convolutions that have a source, and how that goes on; none where the target has norms."""
    if has_norms(target) or not (takes_image(source) and takes_image(target)):
        return {}
    source_endings, target_endings = find_endings(source), find_endings(target)
    found = {}
    for pair in pairing.pairs:
        layer = target.layers[pair.target]
        followed = pair.target in target_endings and pair.source in source_endings
        known = followed and pair.target not in target.head_names
        plain = layer.kind == "conv2d" and layer.tensors["weight"].shape == layer.shape
        if known and plain and not target.by_id[layer.name].facts.get("prepared"):
            found[pair.target] = source_endings[pair.source]
    return found


def _rows(steps: Sequence[Step]) -> Step | None:
    """How the source's output channels became the target's; None where they are not those of the source."""
    if not steps or steps[-1].operator != "overlay" or any(step.operator == "rank-one" for step in steps):
        return None
    return Step("overlay", {"rows": steps[-1].options["rows"]})


def _moments_of_source(stage: Stage, endings: Iterable[Ending], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each channel, behind the batch norm that follows, by the layer's name."""
    norms: dict[str, Any] = dict(batch_norms(stage.source.module))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    bare = []
    for ending in endings:
        norm = norms.get(ending.norm or "")
        if norm is None or ending.late:
            bare.append(ending.layer)
        else:
            one = torch.ones_like(norm.running_mean)
            found[ending.layer] = (one * 0, one) if norm.weight is None else (norm.bias, norm.weight.abs())

    def measure(name: str, _: Any, out: Tensor) -> None:
        found[name] = _moments(out)

    if bare:
        with hearing_outputs(_modules(stage.source, bare), measure):
            show(stage.source, stage.shown(images, stage.source))
    return found


def _modules(network: LiveModel, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: network.module.get_submodule(name) for name in names}


def _moments(out: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of ``[N, C, ...]``."""
    dims = [0, *range(2, out.dim())]
    return out.mean(dims), out.std(dims)


def _read(values: Tensor, rows: Step, like: Tensor) -> Tensor:
    """Numbers per channel of the source as the target's channels read them; their mean where there is no source."""
    read = apply_steps(values.float(), (rows,), own=torch.full_like(like, torch.nan))
    known = read.isfinite()
    return torch.where(known, read, read[known].mean())
