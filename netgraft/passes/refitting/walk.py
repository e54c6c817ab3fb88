"""The walk through the target, layer by layer in execution order (OPERATORS part 3).

Both networks see the same images. What the source computes at the partner of each layer is sampled first; then the
target's forward pass runs once, and stops before each layer: by then everything before it has its new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from netgraft.architecture.graph import Layer
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.jobs import Job, Jobs
from netgraft.passes.refitting.layout import rows_of
from netgraft.passes.refitting.regression import Fit, best_filters, fit, patches, rank_one, with_spread
from netgraft.passes.refitting.trail import needed_for, own_rows
from netgraft.passes.refitting.values import MOST_NUMBERS, AimedAttention, PreparedLayers, best_values, seen_by_heads
from netgraft.trace.replay import Replay

MOST_ROWS = 40_000
DENSE_FOR_DEPTHWISE = 2304
"""Most inputs times taps for which the filters of a depthwise layer are read off a dense solution."""
LEAST_VARIANCE = 1e-10


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
    prepared: PreparedLayers | None = None,
) -> tuple[list[Refitted], dict[str, str]]:
    """Give every paired layer of ``target.module`` new weights, in place; what was refitted, and why others were not.

    The norm that follows a refitted layer gets the statistics of its new input, and the source's mean and standard
    deviation as its affine part; without a norm the layer's bias is set. What was
    ``prepared`` stays, and the attentions in it get values.
    """
    with torch.no_grad():
        prepared = prepared or PreparedLayers()
        making = Jobs(source, target, channels, generator, rows, prepared.held)
        walk = _Refitting(target, making.make(pairs), prepared.attentions)
        walk.run()
    return walk.done, making.left | walk.left


class _Refitting:
    def __init__(self, target: Replay, jobs: Sequence[Job], attentions: Sequence[AimedAttention]) -> None:
        self.target, self.jobs, self.attentions = target, {job.layer.name: job for job in jobs}, attentions
        self.tensors: dict[str, Tensor] = dict(target.module.named_parameters(remove_duplicate=False))
        self.tensors |= dict(target.module.named_buffers(remove_duplicate=False))
        self.done: list[Refitted] = []
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
                if (reason := self._fit(job)) is not None:
                    self.left[job.layer.name] = reason
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

    def _fit(self, job: Job) -> str | None:
        """New weights for the layer; why not, if there are none."""
        layer, ending = job.layer, job.ending
        wanted, rows = job.wanted, job.rows.to(job.wanted.device)
        if job.ends_block:
            skip = self.target.values[self.target.ends[ending.skip or ""]]
            wanted = wanted - rows_of(skip, job.layout, rows)[:, job.channels.to(rows.device)]
            found = own_rows(self.target, job, self._when(job), rows)
            if found is None:
                return "what lies between the layer and the addition does more than move numbers"
            rows = found
            if ending.scale is not None:
                for slot in self.target.graph.layers[ending.scale].tensors.values():
                    self.tensors[slot.key].fill_(1.0)
        value = self.target.values[self._input(job)]
        filters = layer.is_depthwise and layer.shape[1] == 1
        method = self._fit_depthwise if filters else self._fit_grouped if layer.groups > 1 else self._fit_dense
        r2, how = method(job, value, rows, wanted)
        if ending.norm is not None:
            affine = wanted.relu() if job.rectified else wanted
            self._set_norm(job, self.target.graph.layers[ending.norm], affine, linear=how.startswith("filters"))
        if job.ends_block:
            end = self._when(job)
            self.target.again(self.target.starts[layer.name], self.target.nodes[self.target.place[end] - 1])
        self.done.append(Refitted(layer.name, job.source.name, r2, how))
        return None

    def _fit_dense(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        x = patches(value, job.layer, rows)
        solution = fit(x, wanted, intercept=self._intercept(job))
        if job.ending.norm is None and not job.ends_block:
            solution = with_spread(solution, x, wanted)
        self._write(job, job.channels, solution)
        return solution.r2, "ridge regression"

    def _fit_grouped(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        layer = job.layer
        outputs, inputs = layer.shape[0] // layer.groups, layer.shape[1]
        explained = total = 0.0
        for group in range(layer.groups):
            inside = (job.channels // outputs == group).nonzero().flatten()
            if not len(inside):
                continue
            x = patches(value, layer, rows, slice(group * inputs, (group + 1) * inputs))
            y = wanted[:, inside.to(wanted.device)]
            solution = fit(x, y, intercept=self._intercept(job))
            self._write(job, job.channels[inside], solution)
            spread = float(y.var(0).sum())
            explained, total = explained + solution.r2 * spread, total + spread
        return explained / total if total else 0.0, "ridge regression, group by group"

    def _fit_depthwise(self, job: Job, value: Tensor, rows: Tensor, wanted: Tensor) -> tuple[float | None, str]:
        """Its own channels where the partner is depthwise too, else the filters that serve the pointwise layer next."""
        layer = job.layer
        if job.source.is_depthwise and job.source.shape[1] == 1:
            return self._fit_grouped(job, value, rows, wanted)
        following = self._following(job)
        if following is not None:
            rows, wanted = following
        x = patches(value, layer, rows)
        r2 = None
        if x.shape[1] <= DENSE_FOR_DEPTHWISE:
            solution = fit(x, wanted, intercept=True)
            filters, r2 = rank_one(solution.weight.unflatten(1, (layer.shape[0], -1))), solution.r2
        else:
            filters = best_filters(x, wanted, layer.shape[0])
        weight = self.tensors[layer.tensors["weight"].key]
        weight.copy_((filters * (weight.norm() / filters.norm().clamp(min=1e-12))).reshape(weight.shape))
        return r2, "filters for the next layer" if following else "filters of the dense solution"

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
            self.tensors[layers[name].tensors["weight"].key]
            for name in (attention.query, attention.key, attention.value)
        )
        looks = [(query[list(q)], key[list(k)]) for q, k in zip(heads.queries, heads.keys, strict=True)]
        seen = seen_by_heads(x, looks, heads.scale, rows, attention.data)
        found, r2 = best_values(seen, wanted, len(heads.values[0]))
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

    def _intercept(self, job: Job) -> bool:
        """Whether a constant is for free: a bias, or a norm that takes the mean away before anything else happens."""
        return "bias" in job.layer.tensors or (job.ending.norm is not None and not job.ending.late)

    def _following(self, job: Job) -> tuple[Tensor, Tensor] | None:
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
            return rows, wanted
        return None

    # -- writing ---------------------------------------------------------------------------------------------------

    def _write(
        self,
        job: Job,
        channels: Tensor,  # [m] of the target
        solution: Fit,
    ) -> None:
        layer = job.layer
        weight = self.tensors[layer.tensors["weight"].key]
        matrix = (weight.T if layer.transposed else weight.flatten(1)).clone()
        at, new = channels.to(matrix.device), solution.weight
        bias = solution.bias
        if job.ending.norm is not None:  # the norm undoes any scale: take the one that the initialisation has
            length = matrix[at].norm()
            factor = length / new.norm().clamp(min=1e-12) if length > 0 else length.new_ones(())
            new = new * factor
            bias = bias * factor if job.ending.late else torch.zeros_like(bias)  # before an activation it counts
        matrix[at] = new.to(matrix.dtype)
        weight.copy_(matrix.T if layer.transposed else matrix.reshape(weight.shape))
        if "bias" in layer.tensors:
            self._set(layer, "bias", at, bias)

    def _set_norm(self, job: Job, norm: Layer, wanted: Tensor, *, linear: bool) -> None:
        """The norm's statistics from what it reads now, and the wanted mean and standard deviation as its affine part.

        After the filters of a depthwise layer it is to leave an activation in its linear part: OPERATORS part 3, 4.
        """
        start, entry = self.target.starts[job.layer.name], self.target.starts[norm.name].all_input_nodes[0]
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
