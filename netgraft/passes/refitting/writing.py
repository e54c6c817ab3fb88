"""Writes what a regression found into a layer and the norm that follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from netgraft.architecture.graph import Layer
from netgraft.passes.refitting.jobs import Job
from netgraft.passes.refitting.regression import Fit
from netgraft.trace.replay import Replay

LEAST_VARIANCE = 1e-10


class Writer:
    """The target's tensors, which are changed in place. Layers named in ``grafted`` hold weights of the source."""

    def __init__(self, target: Replay, grafted: frozenset[str]) -> None:
        self.target, self.grafted = target, grafted
        self.tensors: dict[str, Tensor] = dict(target.module.named_parameters(remove_duplicate=False))
        self.tensors |= dict(target.module.named_buffers(remove_duplicate=False))

    def matrix(self, layer: Layer) -> Tensor:
        """[out, features]: a copy of the layer's weight."""
        weight = self.tensors[layer.tensors["weight"].key]
        return (weight.T if layer.transposed else weight.flatten(1)).clone()

    def signs(self, job: Job) -> Tensor:
        """[m] 1, or -1 where the source's norm turns the sign of what the layer gives."""
        ones = torch.ones(len(job.channels))
        norm = self.target.graph.layers[job.ending.norm] if job.ending.norm is not None else None
        slot = norm.tensors.get("weight") if norm is not None and not job.ending.late else None
        if slot is None or job.layer.name not in self.grafted:
            return ones
        negative = self.tensors[slot.key].detach().cpu()[job.channels] < 0
        return torch.where(negative & (job.signs > 0), -1.0, ones)

    def scale(self, job: Job) -> Tensor | None:
        """[m] the layer scale between a layer and its sum, if it has one number for each channel."""
        if job.ending.scale is None:
            return None
        slots = list(self.target.graph.layers[job.ending.scale].tensors.values())
        scale = self.tensors[slots[0].key].flatten()
        if len(slots) > 1 or len(scale) != job.layer.out_channels:
            return None
        return scale[job.channels.to(scale.device)]

    def open_scale(self, job: Job) -> None:
        """A layer scale of one: what it did is in the weights of the layer before it."""
        if job.ends_block and job.ending.scale is not None:
            for slot in self.target.graph.layers[job.ending.scale].tensors.values():
                self.tensors[slot.key].fill_(1.0)

    def kernel(self, job: Job, channels: Tensor, solution: Fit) -> None:
        """The weights of some output channels ([m] of the target), and their bias.

        A norm undoes any scale. There the kernel keeps the length that it has: channel by channel where it came from
        the source, as a whole where it is the target's own initialisation, or is read through an activation.
        """
        layer, matrix = job.layer, self.matrix(job.layer)
        at, new, bias = channels.to(matrix.device), solution.weight.to(matrix), solution.bias
        if job.ending.norm is not None:
            whole = matrix[at].norm() / new.norm().clamp(min=1e-12)
            factor = whole if whole > 0 else whole.new_ones(())
            bias = bias * factor if job.ending.late else torch.zeros_like(bias)  # before an activation it counts
            if layer.name in self.grafted and not job.ending.late:
                lengths, found = matrix[at].norm(dim=1), new.norm(dim=1)
                each = torch.where((lengths > 0) & (found > 0), lengths / found.clamp(min=1e-12), factor)
                place = {channel: i for i, channel in enumerate(job.channels.tolist())}
                signs = self.signs(job)[[place[channel] for channel in channels.tolist()]]
                factor = (each * signs.to(each))[:, None]
            new = new * factor
        matrix[at] = new
        weight = self.tensors[layer.tensors["weight"].key]
        weight.copy_(matrix.T if layer.transposed else matrix.reshape(weight.shape))
        if "bias" in layer.tensors:
            self._set(layer, "bias", at, bias)

    def filters(self, job: Job, filters: Tensor) -> None:
        """The filters [channels, taps] of a depthwise layer, at the length that its kernel has."""
        weight = self.tensors[job.layer.tensors["weight"].key]
        weight.copy_((filters * (weight.norm() / filters.norm().clamp(min=1e-12))).reshape(weight.shape))

    def norm_affine(self, job: Job, wanted: Tensor, *, linear: bool) -> None:
        """The wanted mean and standard deviation as the affine part of the norm, where one follows.

        After the filters of a depthwise layer it is to leave an activation in its linear part: OPERATORS part 3, 4.
        """
        if job.ending.norm is None:
            return
        norm = self.target.graph.layers[job.ending.norm]
        if linear:
            for role in ("weight", "bias"):
                self._set(norm, role, slice(None), wanted.new_ones(job.layer.out_channels))
            return
        wanted = wanted.relu() if job.rectified else wanted
        at = job.channels.to(wanted.device)
        self._set(norm, "weight", at, wanted.std(0, correction=0) * self.signs(job).to(wanted))
        self._set(norm, "bias", at, wanted.mean(0))

    def norm_statistics(self, job: Job, passes: Sequence[Replay]) -> None:
        """The statistics of the norm, where one follows, of what it reads now in the batches that are fitted on."""
        if job.ending.norm is None:
            return
        norm = self.target.graph.layers[job.ending.norm]
        start, entry = self.target.starts[job.layer.name], self.target.starts[norm.name].all_input_nodes[0]
        seen: list[tuple[int, Tensor, Tensor]] = []  # rows, their mean, and the sum of squares about that
        for each in passes:
            each.again(start, entry)
            read = each.values[entry].movedim(1, -1).flatten(0, -2).double()
            mean = read.mean(0)
            seen.append((len(read), mean, (read - mean).square().sum(0)))
        count = sum(rows for rows, _, _ in seen)
        mean = torch.stack([rows * each for rows, each, _ in seen]).sum(0) / count
        squares = torch.stack([about + rows * (each - mean).square() for rows, each, about in seen]).sum(0)
        self._set(norm, "running_mean", slice(None), mean)
        variance = squares / max(count - 1, 1)
        self._set(norm, "running_var", slice(None), variance.clamp(min=LEAST_VARIANCE))

    def _set(self, layer: Layer, role: str, at: Tensor | slice, values: Tensor) -> None:
        slot = layer.tensors.get(role)
        if slot is not None:
            tensor = self.tensors[slot.key]
            tensor[at] = values.to(tensor)
