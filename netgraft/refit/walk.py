"""The walk through the target, layer by layer in execution order (OPERATORS part 3).

Both networks see the same images. What the source computes at the partner of each layer is sampled first; then the
target's forward pass runs once, and stops before each layer: by then everything before it has its new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from netgraft.endings import Ending, find_endings
from netgraft.graph import Layer, LayerGraph
from netgraft.index_map import NEW
from netgraft.refit.channels import OutputChannels
from netgraft.refit.layout import Layout, channel_axis, comparable, layout_of, rows_from, rows_of, sample
from netgraft.refit.regression import Fit, best_filters, fit, patches, rank_one, with_spread
from netgraft.trace.replay import Replay

MOST_ROWS = 40_000
DENSE_FOR_DEPTHWISE = 2304
"""Most inputs times taps for which the filters of a depthwise layer are read off a dense solution."""
LEAST_VARIANCE = 1e-10


@dataclass
class Job:
    """One target layer, the source layer it follows, and what it is to give."""

    here: Layer
    there: Layer
    ending: Ending
    layout: Layout  # of the value that is compared: the layer's own output, or the sum it is added to
    rows: Tensor  # sampled positions of that value
    channels: Tensor  # [m] target channels that follow the source
    theirs: Tensor  # [m] the source's channels
    wanted: Tensor = field(default_factory=lambda: torch.empty(0))  # [len(rows), m]


@dataclass(frozen=True)
class Refitted:
    """What became of one layer."""

    layer: str
    partner: str
    r2: float | None  # share of the wanted values' variance that the layer explains
    how: str


def refit(
    source: Replay,
    target: Replay,
    pairs: Sequence[tuple[str, str]],  # (source layer, target layer)
    channels: OutputChannels,
    generator: torch.Generator,
    rows: int = MOST_ROWS,
) -> tuple[list[Refitted], dict[str, str]]:
    """Give every paired layer of ``target.module`` new weights, in place; what was refitted, and why others were not.

    The norm that follows a refitted layer gets the statistics of its new input, and the source's mean and standard
    deviation as its affine part; without a norm the layer's bias is set.
    """
    walk = _Walk(source, target, channels, generator, rows)
    return walk.run(pairs)


class _Walk:
    def __init__(
        self, source: Replay, target: Replay, channels: OutputChannels, generator: torch.Generator, rows: int
    ) -> None:
        self.source, self.target, self.channels = source, target, channels
        self.generator, self.most_rows = generator, rows
        self.endings = find_endings(source.graph), find_endings(target.graph)
        self.batch = source.inputs[0].shape[0]
        self.tensors: dict[str, Tensor] = dict(target.module.named_parameters(remove_duplicate=False))
        self.tensors |= dict(target.module.named_buffers(remove_duplicate=False))
        self.done: list[Refitted] = []
        self.left: dict[str, str] = {}

    @torch.no_grad()
    def run(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Refitted], dict[str, str]]:
        jobs = [job for pair in pairs if (job := self._job(*pair)) is not None]
        self.jobs = {job.here.name: job for job in jobs}
        self._watch_source(jobs)
        before: dict[fx.Node, list[Job]] = {}
        for job in jobs:
            before.setdefault(self._when(job), []).append(job)
            for node in self._needed(job):
                self.target.hold(node)
        for node in self.target.run():
            for job in before.get(node, ()):
                if (reason := self._fit(job)) is not None:
                    self.left[job.here.name] = reason
                job.wanted = torch.empty(0)
                for needed in self._needed(job):
                    self.target.release(needed, node)
        return self.done, self.left

    # -- what the source says ------------------------------------------------------------------------------------

    def _job(self, source: str, target: str) -> Job | None:
        there, here = self.source.graph.layers[source], self.target.graph.layers[target]
        if not here.is_kernel:
            return None
        theirs, ours = self.endings[0].get(source), self.endings[1].get(target)
        reason = _unfit(self.target.graph, here)
        if theirs is None or ours is None:
            reason = "used more than once, or not on the way to the output"
        if reason or theirs is None or ours is None:
            self.left[target] = reason
            return None
        there_layout = self._layout(self.source, self._value_of(theirs, ours), there)
        here_layout = self._layout(self.target, ours.add or here.name, here)
        if not comparable(there_layout, here_layout):
            self.left[target] = f"its positions have no counterpart in {source}'s"
            return None
        index = torch.tensor(list(self.channels(there, here)))
        mapped = (index != NEW).nonzero().flatten()
        if there_layout.channels != there.out_channels or not len(mapped):
            self.left[target] = f"its channels do not correspond to {source}'s"
            return None
        rows = sample(there_layout, here_layout, self.most_rows, self.generator)
        return Job(here, there, ours, here_layout, rows, mapped, index[mapped])

    def _value_of(self, theirs: Ending, ours: Ending) -> str:
        """The node of the source to compare with: a branch's end is the sum, a shortcut's projection itself.

        Where the source's norm stands behind an activation, a layer with an activation follows what comes before both.
        """
        if theirs.add is not None and theirs.main:
            return theirs.node
        if theirs.late and (ours.late or ours.activated) and ours.add is None:
            return theirs.layer
        return theirs.norm or theirs.layer

    def _layout(self, replay: Replay, id: str, layer: Layer) -> Layout:
        shape = tuple(replay.ends[id].meta["shape"])
        axis = channel_axis(shape, layer.out_channels, layer.kind, permuted=_permuted(replay.graph, layer.name, id))
        return layout_of(shape, axis, self.batch)

    def _watch_source(self, jobs: Sequence[Job]) -> None:
        by_node: dict[fx.Node, list[Job]] = {}
        for job in jobs:
            followed = self._value_of(self.endings[0][job.there.name], job.ending)
            by_node.setdefault(self.source.ends[followed], []).append(job)

        def take(asking: list[Job], value: Tensor) -> None:
            for job in asking:
                followed = self._value_of(self.endings[0][job.there.name], job.ending)
                layout = self._layout(self.source, followed, job.there)
                rows, theirs = job.rows.to(value.device), job.theirs.to(value.device)
                job.wanted = rows_from(value, layout, job.layout, rows, theirs)
                if self.endings[0][job.there.name].activated and not job.ending.activated and not self._rectified(job):
                    job.wanted = job.wanted.relu()  # what the source's next layer reads
                if job.ending.norm is None:  # nothing else gives the activations of a net without norms a unit scale
                    job.wanted = job.wanted / job.wanted.std().clamp(min=1e-6)

        self.source.watch({node: partial(take, asking) for node, asking in by_node.items()})

    def _rectified(self, job: Job) -> bool:
        """Whether the layer's own activation follows before its norm: it is to give what comes before the source's."""
        return job.ending.late and not self._ends_block(job)

    # -- when a layer is fitted, and what must still be there by then -------------------------------------------------

    def _when(self, job: Job) -> fx.Node:
        """Before the layer runs; for the end of a residual branch before the addition, when the shortcut is known."""
        add = job.ending.add if self._ends_block(job) else None
        return self.target.starts[job.here.name] if add is None else self.target.ends[add]

    def _ends_block(self, job: Job) -> bool:
        """The branch, rather than a shortcut's projection: that is fitted by itself, and first."""
        return job.ending.add is not None and job.ending.main

    def _input(self, job: Job) -> fx.Node:
        start = self.target.starts[job.here.name]
        return next(node for node in start.all_input_nodes if not node.meta.get("params"))

    def _needed(self, job: Job) -> list[fx.Node]:
        if not self._ends_block(job):
            return []
        start, end = self.target.starts[job.here.name], self._when(job)
        changed, needed = {start}, {*start.all_input_nodes}
        for node in self.target.nodes[self.target.place[start] + 1 : self.target.place[end]]:
            if changed.intersection(node.all_input_nodes):
                changed.add(node)
                needed.update(node.all_input_nodes)
        return [*(needed - changed), self.target.ends[job.ending.skip or ""]]

    # -- fitting ---------------------------------------------------------------------------------------------------

    def _fit(self, job: Job) -> str | None:
        """New weights for the layer; why not, if there are none."""
        here, ending = job.here, job.ending
        wanted, rows = job.wanted, job.rows.to(job.wanted.device)
        if self._ends_block(job):
            skip = self.target.values[self.target.ends[ending.skip or ""]]
            wanted = wanted - rows_of(skip, job.layout, rows)[:, job.channels.to(rows.device)]
            found = self._own_rows(job, rows)
            if found is None:
                return "what lies between the layer and the addition does more than move numbers"
            rows = found
            if ending.scale is not None:
                for slot in self.target.graph.layers[ending.scale].tensors.values():
                    self.tensors[slot.key].fill_(1.0)
        value = self.target.values[self._input(job)]
        filters = here.groups == here.shape[0] > 1 and here.shape[1] == 1
        method = self._fit_depthwise if filters else self._fit_grouped if here.groups > 1 else self._fit_dense
        r2, how = method(job, value, rows, wanted)
        if ending.norm is not None:
            affine = wanted.relu() if self._rectified(job) else wanted
            self._set_norm(job, self.target.graph.layers[ending.norm], affine, linear=how.startswith("filters"))
        if self._ends_block(job):
            end = self._when(job)
            self.target.again(self.target.starts[here.name], self.target.nodes[self.target.place[end] - 1])
        self.done.append(Refitted(here.name, job.there.name, r2, how))
        return None

    def _fit_dense(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        x = patches(value, job.here, rows)
        solution = fit(x, wanted, intercept=self._intercept(job))
        if job.ending.norm is None and not self._ends_block(job):
            solution = with_spread(solution, x, wanted)
        self._write(job, job.channels, solution)
        return solution.r2, "ridge regression"

    def _fit_grouped(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        here = job.here
        outputs, inputs = here.shape[0] // here.groups, here.shape[1]
        explained = total = 0.0
        for group in range(here.groups):
            inside = (job.channels // outputs == group).nonzero().flatten()
            if not len(inside):
                continue
            x = patches(value, here, rows, slice(group * inputs, (group + 1) * inputs))
            y = wanted[:, inside.to(wanted.device)]
            solution = fit(x, y, intercept=self._intercept(job))
            self._write(job, job.channels[inside], solution)
            spread = float(y.var(0).sum())
            explained, total = explained + solution.r2 * spread, total + spread
        return explained / total if total else 0.0, "ridge regression, group by group"

    def _fit_depthwise(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        """Its own channels where the partner is depthwise too, else the filters that serve the pointwise layer next."""
        here = job.here
        if job.there.groups == job.there.shape[0] > 1 and job.there.shape[1] == 1:
            return self._fit_grouped(job, value, rows, wanted)
        following = self._following(job)
        if following is not None:
            rows, wanted = following
        x = patches(value, here, rows)
        r2 = None
        if x.shape[1] <= DENSE_FOR_DEPTHWISE:
            solution = fit(x, wanted, intercept=True)
            filters, r2 = rank_one(solution.weight.unflatten(1, (here.shape[0], -1))), solution.r2
        else:
            filters = best_filters(x, wanted, here.shape[0])
        weight = self.tensors[here.tensors["weight"].key]
        weight.copy_((filters * (weight.norm() / filters.norm().clamp(min=1e-12))).reshape(weight.shape))
        return r2, "filters for the next layer" if following else "filters of the dense solution"

    def _intercept(self, job: Job) -> bool:
        """Whether a constant is for free: a bias, or a norm that takes the mean away before anything else happens."""
        return "bias" in job.here.tensors or (job.ending.norm is not None and not job.ending.late)

    def _following(self, job: Job) -> tuple[Tensor, Tensor] | None:
        """Positions, and what the pointwise layer that reads a depthwise one is to give there."""
        readers = [b for a, b in self.target.graph.layer_edges() if a == (job.ending.norm or job.here.name)]
        for name in readers:
            other = self.jobs.get(name)
            if other is None or other.here.groups > 1 or set(other.here.shape[2:]) - {1} or not len(other.wanted):
                continue
            if other.layout.rows != job.layout.rows or other.layout.grid != job.layout.grid:
                continue
            wanted = other.wanted
            rows = other.rows.to(wanted.device)
            if self._ends_block(other):
                skip = self.target.values.get(self.target.ends[other.ending.skip or ""])
                if skip is None:
                    continue
                wanted = wanted - rows_of(skip, other.layout, rows)[:, other.channels.to(rows.device)]
            return rows, wanted
        return None

    # -- writing ---------------------------------------------------------------------------------------------------

    def _write(
        self,
        job: Job,
        channels: Tensor,  # [m] of the target
        solution: Fit,
    ) -> None:
        here = job.here
        weight = self.tensors[here.tensors["weight"].key]
        matrix = (weight.T if here.transposed else weight.flatten(1)).clone()
        at, new = channels.to(matrix.device), solution.weight
        bias = solution.bias
        if job.ending.norm is not None:  # the norm undoes any scale: take the one that the initialisation has
            length = matrix[at].norm()
            factor = length / new.norm().clamp(min=1e-12) if length > 0 else length.new_ones(())
            new = new * factor
            bias = bias * factor if job.ending.late else torch.zeros_like(bias)  # before an activation it counts
        matrix[at] = new.to(matrix.dtype)
        weight.copy_(matrix.T if here.transposed else matrix.reshape(weight.shape))
        if "bias" in here.tensors:
            self._set(here, "bias", at, bias)

    def _set_norm(self, job: Job, norm: Layer, wanted: Tensor, *, linear: bool) -> None:
        """The norm's statistics from what it reads now, and the wanted mean and standard deviation as its affine part.

        After the filters of a depthwise layer it is to leave an activation in its linear part: OPERATORS part 3, 4.
        """
        start, entry = self.target.starts[job.here.name], self.target.starts[norm.name].all_input_nodes[0]
        self.target.again(start, entry)
        read = self.target.values[entry].movedim(1, -1)
        read = read.reshape(-1, read.shape[-1]).float()
        self._set(norm, "running_mean", slice(None), read.mean(0))
        self._set(norm, "running_var", slice(None), read.var(0).clamp(min=LEAST_VARIANCE))
        at = slice(None) if linear else job.channels.to(wanted.device)
        self._set(norm, "weight", at, wanted.new_ones(len(read[0])) if linear else wanted.std(0))
        self._set(norm, "bias", at, wanted.new_ones(len(read[0])) if linear else wanted.mean(0))

    def _set(self, layer: Layer, role: str, at: Tensor | slice, values: Tensor) -> None:
        slot = layer.tensors.get(role)
        if slot is not None:
            tensor = self.tensors[slot.key]
            tensor[at] = values.to(tensor)

    def _own_rows(self, job: Job, rows: Tensor) -> Tensor | None:
        """The layer's own rows behind positions of the sum; None if that cannot be said.

        Numbers 0, 1, 2 ... are sent from the layer to the addition in place of what it computes.
        """
        layer, replay = job.here, self.target
        start, end = replay.starts[layer.name], self._when(job)
        own = layout_of(
            tuple(replay.ends[layer.name].meta["shape"]), 1 if layer.kind.startswith("conv") else -1, self.batch
        )
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


def _permuted(graph: LayerGraph, start: str, end: str) -> bool:
    """Whether a feature map changes the order of its axes between two nodes."""
    current = start
    while current != end and len(readers := graph.readers[current]) == 1:
        node = graph.by_id[current := readers[0]]
        if node.op in ("permute", "transpose") and len(node.shape) == 4:
            return True
    return False


def _multiplies(node: fx.Node) -> bool:
    operations = node.meta.get("operations", ())
    return len(operations) == 1 and operations[0].name == "mul"


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _unfit(graph: LayerGraph, layer: Layer) -> str:
    """Why a layer cannot be refitted, whatever it follows."""
    if layer.kind not in ("conv2d", "linear"):
        return f"a {layer.kind} is not refitted"
    slot = layer.tensors.get("weight")
    if slot is None or slot.shape != layer.shape:
        return "its weight has another shape than the layer uses"
    node = graph.by_id[layer.name]
    if node.facts.get("prepared"):
        return "its weight is prepared before it is used"
    return ""
