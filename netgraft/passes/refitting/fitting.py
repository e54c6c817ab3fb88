"""Fits one layer: the map from what it reads to what it is to give, about the weights that it has.

A part of the rows, those of some images, is never fitted on. On it the fit is compared with the weights as they are, up
to what is free anyway: one number for all of them, and the constants that a norm or a bias sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from netgraft.passes.refitting.jobs import Job
from netgraft.passes.refitting.moments import (
    Rows,
    best_number,
    errors_of,
    gathered,
    ridge_regression,
    with_constant,
    with_spread,
)
from netgraft.passes.refitting.regression import RIDGE, Fit, best_filters, patches, rank_one, share
from netgraft.passes.refitting.writing import Writer

DENSE_FOR_DEPTHWISE = 2304
"""Most inputs times taps for which the filters of a depthwise layer are read off a dense solution."""
RIDGES = (0.3, 0.1, 0.03, 0.01)
"""Penalties that are tried, in units of the normal matrix's mean diagonal element."""
TRIED = 5
"""Of so many batches one is left out to try them on; it is fitted on afterwards."""
EXACT = 0.9999
"""R^2 from which a layer gives what the source gives."""
MOST_NUMBERS = 2**27
"""Positions times inputs times taps that are held for the filters of a depthwise layer."""
LARGEST = 1e15
"""What is larger cannot be squared and added up in single precision."""


@dataclass(frozen=True)
class Wanted:
    """What a layer reads in one batch, and what it is to give there."""

    value: Tensor
    rows: Tensor  # positions of the layer's own output
    values: Tensor  # [len(rows), m]
    aside: bool  # a batch that nothing is fitted on


@dataclass(frozen=True)
class FittedLayer:
    """What a layer could be made to be, and what it is, with the R^2 of either on the images kept aside."""

    after: float
    before: float
    new: list[tuple[Tensor, Fit]]  # (output channels, their map)
    own: list[tuple[Tensor, Fit]]  # the weights as they are, at the size that is wanted
    how: str
    ridge: float | None = None  # the penalty
    filters: Tensor | None = None  # [channels, taps] of a depthwise layer, in place of ``new``

    @property
    def better(self) -> bool:
        """Whether the layer gets new weights: not if its own are exact, up to their size."""
        return self.before < EXACT and self.after > max(self.before, 0.0)


def usable(wanted: Sequence[Wanted]) -> bool:
    """Whether all numbers are finite and can be squared."""
    return all(bool(each.abs().max() < LARGEST) for part in wanted for each in (part.value, part.values))


def fit_linear(job: Job, wanted: Sequence[Wanted], writer: Writer, ridge: float | None = None) -> FittedLayer:
    """Ridge regression about the layer's own weights, of a grouped layer group by group.

    Weights that are the target's own initialisation are no centre: there it is about zero. ``ridge``: the penalty;
    None: of RIDGES the one whose regression on most of the batches leaves least in the others.
    """
    to_fit = [each for each in wanted if not each.aside]
    others = [each for each in wanted if each.aside]
    tried = max(len(to_fit) // TRIED, 1) if ridge is None and len(to_fit) > 1 else 0  # batches left out at first
    regression = _Regression(job, writer, to_fit[tried:])
    if ridge is None:
        ridge = regression.best_ridge(to_fit[:tried]) if tried else RIDGE
        regression.add(to_fit[:tried])
    own = regression.own()
    new = regression.new(ridge, own)
    left, whole = regression.errors([new, own], others)
    if job.ending.norm is None and not job.ends_block and not job.answers:
        new, own = regression.with_spread(new), regression.with_spread(own)
    channels = [job.channels[inside] for _, inside in regression.groups]
    how = "ridge regression" if job.layer.groups == 1 else "ridge regression, group by group"
    return FittedLayer(
        share(left[0], whole),
        share(left[1], whole),
        list(zip(channels, new, strict=True)),
        list(zip(channels, own, strict=True)),
        how,
        ridge=ridge,
    )


class _Regression:
    """That of a layer, group by group."""

    def __init__(self, job: Job, writer: Writer, wanted: Sequence[Wanted]) -> None:
        self.job, self.centred = job, job.layer.name in writer.grafted
        self.intercept = has_constant(job)
        self.weight, self.signs, self.scale = writer.matrix(job.layer), writer.signs(job), writer.scale(job)
        self.groups = list(_groups(job))
        self.rows = [gathered(_pieces(job, wanted, *group), intercept=self.intercept) for group in self.groups]

    def add(self, wanted: Sequence[Wanted]) -> None:
        """More batches to fit on."""
        for group, rows in zip(self.groups, self.rows, strict=True):
            for x, y in _pieces(self.job, wanted, *group):
                rows.add(x, y)

    def own(self) -> list[Fit]:
        """By group the weights as they are, at the size that is wanted."""
        owns = [self._own(inside, rows) for (_, inside), rows in zip(self.groups, self.rows, strict=True)]
        number = best_number(list(zip(self.rows, owns, strict=True)))
        return [with_constant(rows, number * mine) for rows, mine in zip(self.rows, owns, strict=True)]

    def new(self, ridge: float, own: Sequence[Fit]) -> list[Fit]:
        """By group what the rows say, about the weights as they are where those came from the source."""
        centres = [each.weight if self.centred else None for each in own]
        return [ridge_regression(rows, centre=c, ridge=ridge) for rows, c in zip(self.rows, centres, strict=True)]

    def errors(self, several: Sequence[Sequence[Fit]], wanted: Sequence[Wanted]) -> tuple[list[float], float]:
        """What several maps leave of all groups, in squares, and what there is to explain."""
        left, whole = [0.0] * len(several), 0.0
        for number, group in enumerate(self.groups):
            pieces = _pieces(self.job, wanted, *group)
            rests, all_of_it = errors_of([fits[number] for fits in several], pieces, intercept=self.intercept)
            left, whole = [a + b for a, b in zip(left, rests, strict=True)], whole + all_of_it
        return left, whole

    def best_ridge(self, tried: Sequence[Wanted]) -> float:
        """Of RIDGES the one that leaves least of batches that are not fitted on yet; of equals the largest."""
        own = self.own()
        left, _ = self.errors([self.new(ridge, own) for ridge in RIDGES], tried)
        return RIDGES[left.index(min(left))]

    def with_spread(self, fits: Sequence[Fit]) -> list[Fit]:
        return [with_spread(each, rows) for each, rows in zip(fits, self.rows, strict=True)]

    def _own(self, inside: Tensor, rows: Rows) -> Tensor:
        """The weights of some channels, each in the proportion to the others that the norm behind will give it."""
        job, weight = self.job, self.weight
        mine = weight[job.channels[inside].to(weight.device)].float()
        mine = mine * (job.signs[inside] > 0).to(mine)[:, None]  # what mirrors another channel has no weights yet
        scale = self.scale
        size = self.signs[inside].to(mine) if scale is None else scale[inside.to(scale.device)].to(mine)
        if job.ending.norm is not None and not job.ending.late:
            given, asked = (each.clamp(min=0).sqrt() for each in (rows.variance_given(mine), rows.variance_y))
            size = size * (asked / given.clamp(min=1e-12)).to(mine)
        return mine * size[:, None]


def fit_filters(job: Job, wanted: Sequence[Wanted], writer: Writer, *, following: bool) -> FittedLayer:
    """The filters of a depthwise layer that serve what a dense kernel, or the pointwise layer next, is to give."""
    count = job.layer.shape[0]
    x, y = _together(job, wanted, aside=False)
    x_aside, y_aside = _together(job, wanted, aside=True)
    if x.shape[1] <= DENSE_FOR_DEPTHWISE:
        dense = ridge_regression(gathered([(x, y)], intercept=True))
        filters = rank_one(dense.weight.unflatten(1, (count, -1)))
    else:
        filters = best_filters(x, y, count)
    worth = []
    for each in (filters, writer.matrix(job.layer).to(x)):
        given, given_aside = ((part.unflatten(1, (count, -1)) * each).sum(2) for part in (x, x_aside))
        worth.append(ridge_regression(gathered([(given, y)], intercept=True)).r2(given_aside, y_aside))
    how = "filters for the next layer" if following else "filters of the dense solution"
    return FittedLayer(worth[0], worth[1], [], [], how, filters=filters)


def _together(job: Job, wanted: Sequence[Wanted], *, aside: bool) -> tuple[Tensor, Tensor]:
    """What a depthwise layer reads, and what it serves: not more than MOST_NUMBERS of the former."""
    parts = [each for each in wanted if each.aside == aside]
    step = max(-(-sum(len(each.rows) for each in parts) * prod(job.layer.shape) // MOST_NUMBERS), 1)
    x = torch.cat([patches(each.value, job.layer, each.rows[::step]) for each in parts])
    return x, torch.cat([each.values[::step] for each in parts])


def has_constant(job: Job) -> bool:
    """Whether a constant is for free: a bias, or a norm that takes the mean away before anything else happens."""
    return "bias" in job.layer.tensors or (job.ending.norm is not None and not job.ending.late)


def _groups(job: Job) -> Iterator[tuple[slice, Tensor]]:
    """(what the group reads, which of the job's channels are in it) for each group of the layer that has some."""
    layer = job.layer
    if layer.groups == 1:
        yield slice(None), torch.arange(len(job.channels))
        return
    outputs, inputs = layer.shape[0] // layer.groups, layer.shape[1]
    for group in range(layer.groups):
        inside = (job.channels // outputs == group).nonzero().flatten()
        if len(inside):
            yield slice(group * inputs, (group + 1) * inputs), inside


def _pieces(job: Job, wanted: Sequence[Wanted], group: slice, inside: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What a group reads, and what it is to give, batch by batch."""
    for each in wanted:
        yield patches(each.value, job.layer, each.rows, group), each.values[:, inside.to(each.values.device)]
