"""The walk through the target, layer by layer in execution order (OPERATORS part 3).

Both networks see the same images, batch by batch. What the source computes at the partner of each layer is sampled
first; then the target's forward pass runs once, and stops before each layer: by then everything before it has its new
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from netgraft.architecture.cost import MOST_ROWS
from netgraft.passes.refitting.batches import Batches
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.fitting import FittedLayer, Wanted, fit_filters, fit_linear, usable
from netgraft.passes.refitting.frontier import Frontier
from netgraft.passes.refitting.jobs import Job, Jobs
from netgraft.passes.refitting.layout import rows_of
from netgraft.passes.refitting.trail import needed_for, own_rows
from netgraft.passes.refitting.values import MOST_NUMBERS, AimedAttention, PreparedLayers, best_values, seen_by_heads
from netgraft.passes.refitting.writing import Writer
from netgraft.trace.replay import Replay

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
    ridge: float | None = None  # the penalty of the regression


@dataclass(frozen=True)
class Outcome:
    """What became of all layers."""

    done: list[Refitted]  # they got new weights
    kept: list[Refitted]  # they were fitted, and keep the weights they had, for these are as good
    left: dict[str, str]  # why others were not fitted
    cut: int | None = None  # after so many layers time was up


def refit(
    source: Replay,
    target: Replay,
    batches: Batches,
    pairs: Sequence[tuple[str, str]],  # (source layer, target layer)
    channels: OutputChannels,
    generator: torch.Generator,
    rows: int = MOST_ROWS,
    prepared: PreparedLayers | None = None,
    grafted: frozenset[str] = frozenset(),  # layers of the target that hold weights of the source
    ridge: float | None = None,
    enough: Callable[[int, int], bool] = lambda _done, _all: False,
) -> Outcome:
    """Give every paired layer of ``target.module`` new weights, in place, where they are better than those it has.

    ``source`` and ``target`` are recordings of a batch of that size. A regression is about the weights of a layer that
    is ``grafted``, else about zero. The norm that follows a refitted layer gets the statistics of its new input, and
    the source's mean and standard deviation as its affine part; without a norm the layer's bias is set. Where grafted
    weights explain as much they stay, and only their size and constant, or the norm that follows, are set so; where
    neither explains anything, nothing but statistics is. What was ``prepared`` stays, and the attentions in it get
    values. ``enough`` is asked before every layer, with how many are done of how many, whether to leave it at that.
    """
    with torch.no_grad():
        prepared = prepared or PreparedLayers()
        making = Jobs(source, target, batches, channels, generator, rows, prepared.held)
        walk = _Refitting(target, batches, making.make(pairs), prepared.attentions, Writer(target, grafted), ridge)
        cut = walk.run(enough)
    return Outcome(walk.done, walk.kept, making.left | walk.left, cut)


class _Refitting:
    def __init__(
        self,
        target: Replay,
        batches: Batches,
        jobs: Sequence[Job],
        attentions: Sequence[AimedAttention],
        writer: Writer,
        ridge: float | None,
    ) -> None:
        self.target, self.jobs, self.attentions = target, {job.layer.name: job for job in jobs}, attentions
        self.batches, self.frontier = batches, Frontier(target, batches.target)
        self.writer, self.ridge = writer, ridge
        self.done: list[Refitted] = []
        self.kept: list[Refitted] = []
        self.left: dict[str, str] = {}

    def run(self, enough: Callable[[int, int], bool]) -> int | None:
        """Fit all layers; where there is ``enough`` before, after how many."""
        for job in self.jobs.values():
            for node in self._needed(job):
                self.target.hold(node)
        stops: list[tuple[int, AimedAttention | Job]] = []
        stops += [(self.target.place[self._starts(each)], each) for each in self.attentions]
        stops += [(self.target.place[self._when(job)], job) for job in self.jobs.values()]
        for number, (_, each) in enumerate(sorted(stops, key=lambda stop: stop[0])):
            if enough(number, len(stops)):
                return number
            if isinstance(each, AimedAttention):
                self._fit_values(each)
                continue
            self._fit(each, self.frontier.reach(self._when(each), each.rows))
            each.wanted.clear()
            self.frontier.release(self._needed(each))
        return None

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

    def _fit(self, job: Job, passes: Mapping[int, Replay]) -> None:
        """New weights for the layer, or a reason in ``left``."""
        layer = job.layer
        wanted = self._wanted(job, passes)
        if wanted is None:
            self.left[layer.name] = "what lies between the layer and the addition does more than move numbers"
            return
        if not usable(wanted):
            self.left[layer.name] = "what it reads, or is to give, is no finite number or a huge one"
            return
        alone = layer.is_depthwise and layer.shape[1] == 1  # one filter per channel
        following = None
        if alone and not (job.source.is_depthwise and job.source.shape[1] == 1):
            following = self._following(job, passes)
            found = fit_filters(job, following or wanted, self.writer, following=following is not None)
        else:
            found = fit_linear(job, wanted, self.writer, self.ridge)
        to_fit = torch.cat([each.values for each in following or wanted if not each.aside])
        self._write(job, found, to_fit, self._shown(passes))
        if job.ends_block:
            self.frontier.changed(self.target.starts[layer.name])

    def _shown(self, passes: Mapping[int, Replay]) -> list[Replay]:
        """Those of batches to fit on."""
        return [each for k, each in passes.items() if not self.batches.is_aside(k)]

    def _write(self, job: Job, found: FittedLayer, wanted: Tensor, shown: Sequence[Replay]) -> None:
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
        writer.norm_statistics(job, shown)
        if found.better:
            self.done.append(Refitted(name, partner, found.after, found.how, found.before, found.ridge))
        else:
            self.kept.append(Refitted(name, partner, found.after, NO_BETTER, found.before))

    def _wanted(self, job: Job, passes: Mapping[int, Replay]) -> list[Wanted] | None:
        """What the layer itself is to give: less the shortcut, where it ends a block, and before a gate."""
        gate = self._gate(job, self._shown(passes)) if job.ends_block and job.ending.gated else None
        found = []
        for k, each in passes.items():
            values, value = job.wanted[k], each.values[self._input(job)]
            rows = job.rows[k].to(values.device)
            if job.ends_block:
                values = values - self._skip(job, each, rows)
                behind = own_rows(each, job, self._when(job), rows)
                if behind is None:
                    return None
                rows = behind
            if gate is not None:
                values = values / gate[job.channels.to(values.device)]
            found.append(Wanted(value, rows, values, self.batches.is_aside(k)))
        return found

    def _skip(self, job: Job, each: Replay, rows: Tensor) -> Tensor:
        """[len(rows), m] what the shortcut adds to the layer's branch."""
        skip = each.values[self.target.ends[job.ending.skip or ""]]
        return rows_of(skip, job.layout, rows)[:, job.channels.to(rows.device)]

    def _gate(self, job: Job, passes: Sequence[Replay]) -> Tensor:
        """[channels] how much of a layer's value its gates let through, as they are: the best number per channel."""
        end = self._when(job)
        skip = self.target.ends[job.ending.skip or ""]
        products, squares = [], []
        for each in passes:
            each.again(self.target.starts[job.layer.name], self.target.nodes[self.target.place[end] - 1])
            branch = next(each.values[node] for node in end.all_input_nodes if node is not skip)
            given = each.values[self.target.ends[job.ending.norm or job.layer.name]]
            a, b = (value.movedim(job.layout.axis, -1).flatten(0, -2).float() for value in (given, branch))
            products.append((a * b).sum(0))
            squares.append(a.square().sum(0))
        passed: Tensor = torch.stack(products).sum(0) / torch.stack(squares).sum(0).clamp(min=1e-12)
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
        read: dict[int, Tensor | None] = {}
        if job is not None and job.ends_block:
            passes = self.frontier.reach(self._starts(attention), job.rows)
            read = {k: self._tokens(attention, job, each) for k, each in passes.items()}
        if job is None or not read or any(x is None for x in read.values()):
            self.left[attention.value] = "what its values are to give is not known before they are computed"
            return
        numbers = sum(map(len, job.rows.values())) * len(heads.queries) * len(attention.data)
        step = -(-numbers // MOST_NUMBERS)  # one of so many positions
        query, key, value = (
            self.writer.tensors[layers[name].tensors["weight"].key]
            for name in (attention.query, attention.key, attention.value)
        )
        looks = [(query[list(q)], key[list(k)]) for q, k in zip(heads.queries, heads.keys, strict=True)]
        seen: list[list[Tensor]] = []
        wanted, fitted = [], []
        for k, x in read.items():
            assert x is not None
            rows = job.rows[k][::step].to(x.device)
            seen.append(seen_by_heads(x, looks, heads.scale, rows, attention.data))
            wanted.append(job.wanted[k][::step] - self._skip(job, passes[k], rows))
            fitted.append(torch.full((len(rows),), not self.batches.is_aside(k), device=x.device))
        by_head = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        found, r2 = best_values(by_head, torch.cat(wanted), torch.cat(fitted), len(heads.values[0]))
        if r2 <= 0:
            self.kept.append(Refitted(attention.value, job.source.name, r2, "a refit explains nothing"))
            return
        for channels, best in zip(heads.values, found, strict=True):
            read_by = torch.zeros_like(value[list(channels)])
            read_by[:, list(attention.data)] = best.to(value.dtype)
            value[list(channels)] = read_by
        self.done.append(Refitted(attention.value, job.source.name, r2, "values in the best directions of each head"))

    def _tokens(self, attention: AimedAttention, job: Job, each: Replay) -> Tensor | None:
        """What the attention reads, laid out as the stream that it adds to; None where it is not there, or unclear."""
        start = self.target.starts[attention.value]
        inputs = (each.values.get(n) for n in start.all_input_nodes if not n.meta.get("params"))
        x: Tensor | None = next(inputs, None)
        skip = each.values.get(self.target.ends[job.ending.skip or ""])
        if x is None or skip is None or x.dim() != 3 or tuple(skip.shape) != job.layout.shape:
            return None
        if x.shape == skip.shape and x.shape[0] != x.shape[1]:
            return x
        swapped = x.transpose(0, 1)  # tokens first, as PyTorch's own attention has them
        return swapped if swapped.shape == skip.shape and x.shape[0] != x.shape[1] else None

    def _following(self, job: Job, passes: Mapping[int, Replay]) -> list[Wanted] | None:
        """Positions, and what the pointwise layer that reads a depthwise one is to give there."""
        readers = [b for a, b in self.target.graph.layer_edges() if a == (job.ending.norm or job.layer.name)]
        for name in readers:
            other = self.jobs.get(name)
            if other is None or other.layer.groups > 1 or set(other.layer.shape[2:]) - {1} or not other.wanted:
                continue
            if other.layout.rows != job.layout.rows or other.layout.grid != job.layout.grid:
                continue
            skip = self.target.ends[other.ending.skip or ""] if other.ends_block else None
            found = []
            for k, each in passes.items():
                if k not in other.wanted or (skip is not None and skip not in each.values):
                    continue
                wanted, rows = other.wanted[k], other.rows[k].to(other.wanted[k].device)
                if skip is not None:
                    wanted = wanted - self._skip(other, each, rows)
                found.append(Wanted(each.values[self._input(job)], rows, wanted, self.batches.is_aside(k)))
            if {each.aside for each in found} == {True, False}:
                return found
        return None
