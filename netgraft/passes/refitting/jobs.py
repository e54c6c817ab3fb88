"""What each layer of the target is to give: what the source computes in the place that it follows.

Both networks see the same images. The source's values are sampled once, at positions that the target's layers share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, fx

from netgraft.architecture.attention import is_transformer
from netgraft.architecture.cost import rows_for
from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.resolution import has_norms
from netgraft.channels.index_map import NEW
from netgraft.passes.refitting.batches import Batches
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.layout import Layout, channel_axis, comparable, layout_of, rows_from, sample
from netgraft.trace.replay import Replay

LEAST_SCALE = 1e-6
LEAST_IMAGES = 128
"""A layer is fitted on so many images, however many positions each has."""
MOST_KEPT = 2**29
"""Numbers of the target's pass, over all batches, that are kept between two layers: 2 GiB."""
HELD = NEW - 1


@dataclass
class Job:
    """One target layer, the source layer it follows, and what it is to give."""

    layer: Layer  # of the target
    source: Layer  # the one it follows
    ending: Ending
    layout: Layout  # of the value that is compared: the layer's own output, or the sum it is added to
    channels: Tensor  # [m] target channels that follow the source
    followed: Tensor  # [m] the source's channels
    signs: Tensor  # [m] 1, or -1 for what is to give the negative
    rows: dict[int, Tensor]  # by batch, the sampled positions of that value
    answers: bool = False  # the head, which is to give the source's answers as they are
    wanted: dict[int, Tensor] = field(default_factory=dict)  # by batch, [len(rows), m]

    @property
    def ends_block(self) -> bool:
        """Whether it is a residual branch, rather than a shortcut's projection: that is fitted by itself, and first."""
        return self.ending.add is not None and self.ending.main

    @property
    def rectified(self) -> bool:
        """Whether the layer's own activation follows before its norm: it is to give what comes before the source's."""
        return self.ending.late and not self.ends_block


class Jobs:
    """Makes the jobs of a pair of networks; ``left`` says why layers got none."""

    def __init__(
        self,
        source: Replay,
        target: Replay,
        batches: Batches,
        channels: OutputChannels,
        generator: torch.Generator,
        rows: int,
        held: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        self.source, self.target, self.channels, self.held = source, target, channels, held
        self.batches, self.generator, self.most_rows = batches, generator, rows
        self.source_endings, self.target_endings = find_endings(source.graph), find_endings(target.graph)
        self.ending_at = {each.node: each for each in self.target_endings.values() if each.add is None or each.main}
        self.heads = target.graph.head_names
        self.left: dict[str, str] = {}

    def make(self, pairs: Sequence[tuple[str, str]]) -> list[Job]:
        """A job for every pair (source layer, target layer) that can be compared, with what is wanted of it."""
        jobs = [job for pair in pairs if (job := self._job(*pair)) is not None]
        self._watch_source(jobs)
        self._scale(jobs)
        return jobs

    def _job(self, source_name: str, name: str) -> Job | None:
        source, layer = self.source.graph.layers[source_name], self.target.graph.layers[name]
        if not layer.is_kernel:
            return None
        source_ending, ending = self.source_endings.get(source_name), self.target_endings.get(name)
        reason = _unfit(self.target.graph, layer)
        if source_ending is None or ending is None:
            reason = "used more than once, or not on the way to the output"
        if reason or source_ending is None or ending is None:
            self.left[name] = reason
            return None
        source_layout = self._layout(self.source, _value_of(source_ending, ending), source)
        layout = self._layout(self.target, ending.add or name, layer)
        if not comparable(source_layout, layout):
            self.left[name] = f"its positions have no counterpart in {source_name}'s"
            return None
        index = torch.tensor(list(self.channels(source, layer)))
        held = list(self.held.get(name, ()))
        index[held] = NEW
        mapped = (index != NEW).nonzero().flatten()
        if source_layout.channels != source.out_channels or not len(mapped):
            self.left[name] = f"its channels do not correspond to {source_name}'s"
            return None
        rows = self._sampled(source_layout, layout, layer)
        job = Job(
            layer, source, ending, layout, mapped, index[mapped], torch.ones(len(mapped)), rows, name in self.heads
        )
        if job.rectified and not (source_ending.activated or source_ending.late):
            index[held] = HELD
            _mirror(job, (index == NEW).nonzero().flatten())
        return job

    def _layout(self, replay: Replay, id: str, layer: Layer) -> Layout:
        shape = tuple(replay.ends[id].meta["shape"])
        axis = channel_axis(shape, layer, permuted=_permuted(replay.graph, layer.name, id))
        return layout_of(shape, axis, self.batches.size)

    def _sampled(self, source: Layout, target: Layout, layer: Layer) -> dict[int, Tensor]:
        """Positions of as many batches as there are unknowns to fit: few of an early layer, whose maps are large."""
        tokens = target.rows // self.batches.size
        rows = rows_for(layer, self.most_rows)
        chosen = self.batches.of(max(-(-rows // tokens), LEAST_IMAGES), self._room(layer))
        each = max(-(-rows // len(chosen)), 1)
        return {k: sample(source, target, each, self.generator) for k in chosen}

    def _room(self, layer: Layer) -> int:
        """Of how many batches all can be kept that is needed to go on from this layer."""
        return max(MOST_KEPT // max(self.target.numbers_at(self.target.starts[layer.name]), 1), 2)

    def _watch_source(self, jobs: Sequence[Job]) -> None:
        """What the source gives in each batch, as far as some layer follows it there."""
        for k in sorted({k for job in jobs for k in job.rows}):
            by_node: dict[fx.Node, list[Job]] = {}
            for job in jobs:
                if k in job.rows:
                    node = _value_of(self.source_endings[job.source.name], job.ending)
                    by_node.setdefault(self.source.ends[node], []).append(job)
            seen = self.source.beside(self.batches.source(k))
            seen.watch({node: partial(self._take, k, asking) for node, asking in by_node.items()})

    def _take(self, k: int, asking: Sequence[Job], value: Tensor) -> None:
        for job in asking:
            ending = self.source_endings[job.source.name]
            layout = self._layout(self.source, _value_of(ending, job.ending), job.source)
            rows, channels = job.rows[k].to(value.device), job.followed.to(value.device)
            wanted = rows_from(value, layout, job.layout, rows, channels) * job.signs.to(value.device)
            if ending.activated and not job.ending.activated and not job.rectified:
                wanted = wanted.relu()  # what the source's next layer reads
            job.wanted[k] = wanted

    def _scale(self, jobs: Sequence[Job]) -> None:
        """Brings what is wanted to unit scale where no norm does: one scale for all that is added up in one stream.

        In a target without any norm, of a source with some, its mean is taken away too, beside residual streams: what
        follows is fitted on the centred values, and a constant part in every layer makes such a network hard to train.
        So it is in a transformer that follows convolutions, whose norms take tokens one by one: there in streams too.
        """
        streams: dict[str, list[Job]] = {}
        loses_norms = has_norms(self.source.graph) and not has_norms(self.target.graph)
        attends = is_transformer(self.target.graph) and not is_transformer(self.source.graph)
        for job in jobs:
            if job.answers:
                continue
            if attends or (loses_norms and job.ending.add is None):
                mean = torch.cat(list(job.wanted.values())).mean(0)
                job.wanted = {k: wanted - mean for k, wanted in job.wanted.items()}
            if job.ending.norm is None:
                streams.setdefault(self._stream(job.ending), []).append(job)
        for stream in streams.values():
            spreads = [torch.cat(list(job.wanted.values())).std() for job in stream]
            scale = torch.stack(spreads).mean().clamp(min=LEAST_SCALE)
            for job in stream:
                job.wanted = {k: wanted / scale for k, wanted in job.wanted.items()}

    def _stream(self, ending: Ending) -> str:
        """Where the residual stream begins that a layer adds to; for a layer beside any, the layer itself."""
        while ending.add is not None and ending.skip is not None:
            id = ending.skip
            while id not in self.ending_at and (inputs := self.target.graph.by_id[id].inputs):
                id = inputs[0]
            if id not in self.ending_at:
                return id
            ending = self.ending_at[id]
        return ending.layer


def _mirror(job: Job, free: Tensor) -> None:
    """Free channels give the negatives of the others: a rectifier cuts off half of what the source reads whole.

    As in CReLU (Shang et al., arXiv:1603.05201). Only where the rectifier stands before the norm: behind one it made
    the probe better, and fine-tuning no better.
    """
    free = free[: len(job.channels)]
    job.channels = torch.cat([job.channels, free])
    job.followed = torch.cat([job.followed, job.followed[: len(free)]])
    job.signs = torch.cat([job.signs, -torch.ones(len(free))])


def _value_of(source: Ending, target: Ending) -> str:
    """The node of the source to compare with: a branch's end is the sum, a shortcut's projection itself.

    Where the source's norm stands behind an activation, a layer with an activation follows what comes before both.
    """
    if source.add is not None and source.main:
        return source.node
    if source.late and (target.late or target.activated) and target.add is None:
        return source.layer
    return source.norm or source.layer


def _permuted(graph: LayerGraph, start: str, end: str) -> bool:
    """Whether a feature map changes the order of its axes between two nodes."""
    current = start
    while current != end and len(readers := graph.readers[current]) == 1:
        node = graph.by_id[current := readers[0]]
        if node.op in ("permute", "transpose") and len(node.shape) == 4:
            return True
    return False


def _unfit(graph: LayerGraph, layer: Layer) -> str:
    """Why a layer cannot be refitted, whatever it follows."""
    if not layer.rules.refits:
        return f"a {layer.kind} is not refitted"
    slot = layer.tensors.get("weight")
    if slot is None or slot.shape != layer.shape:
        return "its weight has another shape than the layer uses"
    node = graph.by_id[layer.name]
    if node.facts.get("prepared"):
        return "its weight is prepared before it is used"
    return ""
