"""Which of a layer's own rows stand behind the positions of the sum that its branch is added to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from netgraft.passes.refitting.jobs import Job
from netgraft.passes.refitting.layout import layout_of
from netgraft.trace.replay import Replay


def needed_for(replay: Replay, job: Job, end: fx.Node) -> list[fx.Node]:
    """What the branch from the job's layer to the addition ``end`` reads beside itself, and the shortcut."""
    start = replay.starts[job.layer.name]
    changed, needed = {start}, {*start.all_input_nodes}
    for node in replay.nodes[replay.place[start] + 1 : replay.place[end]]:
        if changed.intersection(node.all_input_nodes):
            changed.add(node)
            needed.update(node.all_input_nodes)
    return [*(needed - changed), replay.ends[job.ending.skip or ""]]


def own_rows(replay: Replay, job: Job, end: fx.Node, rows: Tensor) -> Tensor | None:
    """The layer's own rows behind ``rows`` of the sum ``end``; None if that cannot be said.

    Numbers 0, 1, 2 ... are sent from the layer to the addition in place of what it computes.
    """
    layer = job.layer
    start = replay.starts[layer.name]
    own = layout_of(
        tuple(replay.ends[layer.name].meta["shape"]),
        layer.out_axis,
        replay.inputs[0].shape[0],
    )
    if job.ending.gated:  # numbers cannot be sent through a gate: it computes with them
        return rows if own.shape == job.layout.shape and own.axis == job.layout.axis else None
    ids = {replay.ends[name] for name in (job.ending.norm, job.ending.scale) if name in replay.ends}
    path: dict[fx.Node, Tensor | None] = {replay.ends[layer.name]: None}
    moved = False
    for node in replay.nodes[replay.place[start] + 1 : replay.place[end]]:
        read = [other for other in node.all_input_nodes if other in path]
        if not read:
            continue
        if node in ids or node.op == "call_module" or _multiplies(node) or node is replay.ends[layer.name]:
            path[node] = path[read[0]]
            continue
        if path[read[0]] is None:
            numbers = torch.arange(own.rows, device=rows.device).unflatten(0, _without(own.shape, own.axis))
            path[read[0]] = numbers.unsqueeze(own.axis).expand(own.shape)
        given = {other: path[other] for other in read}

        def argument(other: fx.Node, given: dict[fx.Node, Tensor | None] = given) -> Any:
            return given[other] if other in given else replay.values.get(other)

        with torch.device(rows.device):
            value = node.target(  # type: ignore[operator]
                *fx.node.map_arg(node.args, argument), **fx.node.map_arg(node.kwargs, argument)
            )
        path[node], moved = value, True
    branch = next(other for other in end.all_input_nodes if other in path)
    sent = path[branch]
    if not moved or sent is None:
        return rows
    if tuple(sent.shape) != job.layout.shape:
        return None
    return sent.movedim(job.layout.axis, -1)[..., 0].reshape(-1)[rows]


def _multiplies(node: fx.Node) -> bool:
    operations = node.meta.get("operations", ())
    return len(operations) == 1 and operations[0].name == "mul"


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]
