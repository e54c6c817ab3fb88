"""The walk through the target, layer by layer in execution order (OPERATORS part 3).

Both networks see the same images. What the source computes at the partner of each layer is sampled first; then the
target's forward pass runs once, and stops before each layer: by then everything before it has its new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.fitting import FittedLayer, Wanted, fit_filters, fit_linear, usable
from netgraft.passes.refitting.jobs import Job, Jobs
from netgraft.passes.refitting.layout import rows_of
from netgraft.passes.refitting.trail import needed_for, own_rows
from netgraft.passes.refitting.values import MOST_NUMBERS, AimedAttention, PreparedLayers, best_values, seen_by_heads
from netgraft.passes.refitting.writing import Writer
from netgraft.trace.replay import Replay

MOST_ROWS = 40_000
LEAST_GATE = 0.05
"""A gate that lets through less, on average, counts as this much."""
NO_BETTER = "a refit explains no more than its weights do"


@dataclass(frozen=True)
class Refitted:
    """What became of one layer; R^2 is that on the images kept aside."""

    layer: str
    partner: str
    r2: float  # share of the wanted values' variance that the layer explains
    how: str
    before: float | None = None  # the same for the weights that it had


@dataclass(frozen=True)
class Outcome:
    """What became of all layers."""

    done: list[Refitted]  # they got new weights
    kept: list[Refitted]  # they were fitted, and keep the weights they had, for these are as good
    left: dict[str, str]  # why others were not fitted


def refit(
    source: Replay,
    target: Replay,
    pairs: Sequence[tuple[str, str]],  # (source layer, target layer)
    channels: OutputChannels,
    generator: torch.Generator,
    aside: Tensor,  # indices of the images that nothing is fitted on
    rows: int = MOST_ROWS,
    prepared: PreparedLayers | None = None,
    grafted: frozenset[str] = frozenset(),  # layers of the target that hold weights of the source
) -> Outcome:
    """Give every paired layer of ``target.module`` new weights, in place, where they are better than those it has.

    A regression is about the weights of a layer that is ``grafted``, else about zero. The norm that follows a refitted
    layer gets the statistics of its new input, and the source's mean and standard deviation as its affine part; without
    a norm the layer's bias is set. Where grafted weights explain as much they stay, and only their size and constant,
    or the norm that follows, are set so; where neither explains anything, nothing but statistics is. What was
    ``prepared`` stays, and the attentions in it get values.
    """
    with torch.no_grad():
        prepared = prepared or PreparedLayers()
        making = Jobs(source, target, channels, generator, rows, aside, prepared.held)
        walk = _Refitting(target, making.make(pairs), prepared.attentions, Writer(target, grafted, aside))
        walk.run()
    return Outcome(walk.done, walk.kept, making.left | walk.left)


class _Refitting:
    def __init__(
        self, target: Replay, jobs: Sequence[Job], attentions: Sequence[AimedAttention], writer: Writer
    ) -> None:
        self.target, self.jobs, self.attentions = target, {job.layer.name: job for job in jobs}, attentions
        self.writer = writer
        self.done: list[Refitted] = []
        self.kept: list[Refitted] = []
        self.left: dict[str, str] = {}

    def run(self) -> None:
        before: dict[fx.Node, list[Job]] = {}
        for job in self.jobs.values():
            before.setdefault(self._when(job), []).append(job)
            for node in self._needed(job):
                self.target.hold(node)
        attending = {self._starts(each): each for each in self.attentions}
        for node in self.target.run():
            if node in attending:
                self._fit_values(attending[node])
            for job in before.get(node, ()):
                self._fit(job)
                job.wanted = torch.empty(0)
                for needed in self._needed(job):
                    self.target.release(needed, node)

    # -- when a layer is fitted, and what must still be there by then -------------------------------------------------

    def _when(self, job: Job) -> fx.Node:
        """Before the layer runs; for the end of a residual branch before the addition, when the shortcut is known."""
        add = job.ending.add if job.ends_block else None
        return self.target.starts[job.layer.name] if add is None else self.target.ends[add]

    def _input(self, job: Job) -> fx.Node:
        start = self.target.starts[job.layer.name]
        return next(node for node in start.all_input_nodes if not node.meta.get("params"))

    def _needed(self, job: Job) -> list[fx.Node]:
        return needed_for(self.target, job, self._when(job)) if job.ends_block else []

    # -- fitting ---------------------------------------------------------------------------------------------------

    def _fit(self, job: Job) -> None:
        """New weights for the layer, or a reason in ``left``."""
        layer = job.layer
        wanted = self._wanted(job)
        if wanted is None:
            self.left[layer.name] = "what lies between the layer and the addition does more than move numbers"
            return
        value = self.target.values[self._input(job)]
        if not usable(value, wanted):
            self.left[layer.name] = "what it reads, or is to give, is no finite number or a huge one"
            return
        alone = layer.is_depthwise and layer.shape[1] == 1  # one filter per channel
        following = None
        if alone and not (job.source.is_depthwise and job.source.shape[1] == 1):
            following = self._following(job)
            found = fit_filters(job, value, following or wanted, self.writer, following=following is not None)
        else:
            found = fit_linear(job, value, wanted, self.writer)
        self._write(job, found, (following or wanted).to_fit[1])
        if job.ends_block:
            end = self._when(job)
            self.target.again(self.target.starts[layer.name], self.target.nodes[self.target.place[end] - 1])

    def _write(self, job: Job, found: FittedLayer, wanted: Tensor) -> None:
        """What was found, if it is better; else the weights stay."""
        name, partner, writer = job.layer.name, job.source.name, self.writer
        stays = name in writer.grafted and found.before > 0 and bool(found.own)
        if found.better or stays:
            writer.open_scale(job)
            if found.filters is not None:
                writer.filters(job, found.filters)
            elif found.better or job.ending.norm is None:
                for channels, solution in found.new if found.better else found.own:
                    writer.kernel(job, channels, solution)
            writer.norm_affine(job, wanted, linear=found.filters is not None)
        writer.norm_statistics(job)
        if found.better:
            self.done.append(Refitted(name, partner, found.after, found.how, found.before))
        else:
            self.kept.append(Refitted(name, partner, found.after, NO_BETTER, found.before))

    def _wanted(self, job: Job) -> Wanted | None:
        """What the layer itself is to give: less the shortcut, where it ends a block, and before a gate."""
        rows, values = job.rows.to(job.wanted.device), job.wanted
        fitted = job.fitted.to(rows.device)
        if not job.ends_block:
            return Wanted(rows, values, fitted)
        skip = self.target.values[self.target.ends[job.ending.skip or ""]]
        channels = job.channels.to(rows.device)
        values = values - rows_of(skip, job.layout, rows)[:, channels]
        found = own_rows(self.target, job, self._when(job), rows)
        if found is None:
            return None
        if job.ending.gated:
            values = values / self._gate(job)[channels]
        return Wanted(found, values, fitted)

    def _gate(self, job: Job) -> Tensor:
        """[channels] how much of a layer's value its gates let through, as they are: the best number per channel."""
        end = self._when(job)
        self.target.again(self.target.starts[job.layer.name], self.target.nodes[self.target.place[end] - 1])
        skip = self.target.ends[job.ending.skip or ""]
        branch = next(self.target.values[node] for node in end.all_input_nodes if node is not skip)
        given = self.target.values[self.target.ends[job.ending.norm or job.layer.name]]
        a, b = (value.movedim(job.layout.axis, -1).flatten(0, -2).float() for value in (given, branch))
        passed: Tensor = (a * b).sum(0) / a.square().sum(0).clamp(min=1e-12)
        return passed.clamp(min=LEAST_GATE)

    def _starts(self, attention: AimedAttention) -> fx.Node:
        """The first of its layers that runs."""
        starts = (self.target.starts[name] for name in (attention.query, attention.key, attention.value))
        return min(starts, key=self.target.place.__getitem__)

    def _fit_values(self, attention: AimedAttention) -> None:
        """What an attention is to carry, for the sum that its output is added to."""
        layers, heads = self.target.graph.layers, attention.heads
        after = [b for a, b in self.target.graph.layer_edges() if a == attention.value]
        job = next((self.jobs[name] for name in after if name in self.jobs), None)
        x = self._tokens(attention, job) if job is not None and job.ends_block else None
        if job is None or x is None:
            self.left[attention.value] = "what its values are to give is not known before they are computed"
            return
        skip = self.target.values[self.target.ends[job.ending.skip or ""]]
        step = -(-len(job.rows) * len(heads.queries) * len(attention.data) // MOST_NUMBERS)  # one of so many positions
        rows = job.rows[::step].to(x.device)
        wanted = job.wanted[::step] - rows_of(skip, job.layout, rows)[:, job.channels.to(rows.device)]
        query, key, value = (
            self.writer.tensors[layers[name].tensors["weight"].key]
            for name in (attention.query, attention.key, attention.value)
        )
        looks = [(query[list(q)], key[list(k)]) for q, k in zip(heads.queries, heads.keys, strict=True)]
        seen = seen_by_heads(x, looks, heads.scale, rows, attention.data)
        found, r2 = best_values(seen, wanted, job.fitted[::step].to(x.device), len(heads.values[0]))
        if r2 <= 0:
            self.kept.append(Refitted(attention.value, job.source.name, r2, "a refit explains nothing"))
            return
        for channels, best in zip(heads.values, found, strict=True):
            read = torch.zeros_like(value[list(channels)])
            read[:, list(attention.data)] = best.to(value.dtype)
            value[list(channels)] = read
        self.done.append(Refitted(attention.value, job.source.name, r2, "values in the best directions of each head"))

    def _tokens(self, attention: AimedAttention, job: Job) -> Tensor | None:
        """What the attention reads, laid out as the stream that it adds to; None where it is not there, or unclear."""
        start = self.target.starts[attention.value]
        inputs = (self.target.values.get(n) for n in start.all_input_nodes if not n.meta.get("params"))
        x: Tensor | None = next(inputs, None)
        skip = self.target.values.get(self.target.ends[job.ending.skip or ""])
        if x is None or skip is None or x.dim() != 3 or tuple(skip.shape) != job.layout.shape:
            return None
        if x.shape == skip.shape and x.shape[0] != x.shape[1]:
            return x
        swapped = x.transpose(0, 1)  # tokens first, as PyTorch's own attention has them
        return swapped if swapped.shape == skip.shape and x.shape[0] != x.shape[1] else None

    def _following(self, job: Job) -> Wanted | None:
        """Positions, and what the pointwise layer that reads a depthwise one is to give there."""
        readers = [b for a, b in self.target.graph.layer_edges() if a == (job.ending.norm or job.layer.name)]
        for name in readers:
            other = self.jobs.get(name)
            if other is None or other.layer.groups > 1 or set(other.layer.shape[2:]) - {1} or not len(other.wanted):
                continue
            if other.layout.rows != job.layout.rows or other.layout.grid != job.layout.grid:
                continue
            wanted = other.wanted
            rows = other.rows.to(wanted.device)
            if other.ends_block:
                skip = self.target.values.get(self.target.ends[other.ending.skip or ""])
                if skip is None:
                    continue
                wanted = wanted - rows_of(skip, other.layout, rows)[:, other.channels.to(rows.device)]
            return Wanted(rows, wanted, other.fitted.to(rows.device))
        return None
