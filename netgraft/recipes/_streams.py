"""Residual streams that grow under a norm over all their channels (LEMON, OPERATORS D6)."""

from __future__ import annotations

from collections.abc import Mapping

from netgraft.architecture.graph import Layer, LayerGraph, Slot
from netgraft.channels.correspondence import Correspondence
from netgraft.channels.groups.find import Group
from netgraft.channels.stretch import stretch
from netgraft.plan import Step


def growing_streams(target: LayerGraph, maps: Correspondence) -> dict[int, str]:
    """Runs of the target, by id, that grow under a norm that takes all their channels together, and its kind.

    New channels there would change the moments that every other channel is normalised by. Beside the streams that any
    ratio fits, those that hold whole copies of the source's count, whatever else acts on them channel by channel.
    """
    found: dict[int, str] = {}
    for group in maps.target.groups:
        run = maps.target.variables[group.name]
        before = maps.source_size(run)
        if before is None or run.size <= before:
            continue
        kinds = _mixing(target, group)
        if norm := stretch(target, maps.target, run, scaled=True):
            found[id(run)] = norm
        elif kinds and kinds <= {"layer_norm", "rms_norm"} and run.size % before == 0:
            found[id(run)] = min(kinds)
    return found


def _mixing(graph: LayerGraph, group: Group) -> set[str]:
    """The kinds of what mixes the channels of a group without weights."""
    nodes = [graph.by_id.get(name) for _, name in group.mixed]
    return {layer.rules.stream if (layer := graph.layer_of(node)) else node.op for node in nodes if node is not None}


def stretch_step(
    norm: str, target_layer: Layer, slot: Slot, dim: int, size: int, *, reads: bool, seed: Mapping[str, int]
) -> Step:
    """How axis ``dim`` of a tensor of ``here`` takes part in such a stream: writes it, normalises it or reads it.

    ``norm`` is the kind of norm over the stream; ``seed``, an option of what reads, draws unequal shares
    for copies; empty: equal ones.
    """
    if reads:
        return Step("stretch-columns", {"dim": dim, "size": size, **seed})
    if target_layer.rules.stream == norm:
        role = "bias" if slot is target_layer.tensors.get("bias") else "weight"
        return Step("stretch-norm", {"size": size, "role": role, "dim": dim})
    return Step("stretch-rows", {"dim": dim, "size": size, "rest": "mean" if norm == "layer_norm" else "zero"})
