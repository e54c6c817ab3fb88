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
    filters: Tensor | None = None  # [channels, taps] of a depthwise layer, in place of ``new``

    @property
    def better(self) -> bool:
        """Whether the layer gets new weights: not if its own are exact, up to their size."""
        return self.before < EXACT and self.after > max(self.before, 0.0)


def usable(wanted: Sequence[Wanted]) -> bool:
    """Whether all numbers are finite and can be squared."""
    return all(bool(each.abs().max() < LARGEST) for part in wanted for each in (part.value, part.values))


def fit_linear(job: Job, wanted: Sequence[Wanted], writer: Writer, ridge: float | None = RIDGE) -> FittedLayer:
    """Ridge regression about the layer's own weights, of a grouped layer group by group.

    Weights that are the target's own initialisation are no centre: there it is about zero.
    """
    intercept = has_constant(job)
    weight, signs, scale = writer.matrix(job.layer), writer.signs(job), writer.scale(job)
    normed = job.ending.norm is not None and not job.ending.late

    def own(inside: Tensor, rows: Rows) -> Tensor:
        """The weights of some channels, each in the proportion to the others that the norm behind will give it."""
        mine = weight[job.channels[inside].to(weight.device)].float()
        mine = mine * (job.signs[inside] > 0).to(mine)[:, None]  # what mirrors another channel has no weights yet
        size = signs[inside].to(mine) if scale is None else scale[inside.to(scale.device)].to(mine)
        if normed:
            given, asked = (each.clamp(min=0).sqrt() for each in (rows.variance_given(mine), rows.variance_y))
            size = size * (asked / given.clamp(min=1e-12)).to(mine)
        return mine * size[:, None]

    groups = [
        (inside, gathered(_pieces(job, wanted, group, inside, aside=False), intercept=intercept), group)
        for group, inside in _groups(job)
    ]
    owns = [own(inside, rows) for inside, rows, _ in groups]
    number = best_number([(rows, mine) for (_, rows, _), mine in zip(groups, owns, strict=True)])
    found: dict[str, list[tuple[Tensor, Fit]]] = {"new": [], "own": []}
    left, whole = {"new": 0.0, "own": 0.0}, 0.0
    centred = job.layer.name in writer.grafted
    spread = job.ending.norm is None and not job.ends_block and not job.answers
    for (inside, rows, group), mine in zip(groups, owns, strict=True):
        as_it_is = with_constant(rows, number * mine)
        new = ridge_regression(rows, centre=as_it_is.weight if centred else None, ridge=ridge)
        others = _pieces(job, wanted, group, inside, aside=True)
        rests, all_of_it = errors_of([new, as_it_is], others, intercept=intercept)
        whole += all_of_it
        for name, each, rest in zip(found, (new, as_it_is), rests, strict=True):
            left[name] += rest
            found[name].append((job.channels[inside], with_spread(each, rows) if spread else each))
    how = "ridge regression" if job.layer.groups == 1 else "ridge regression, group by group"
    return FittedLayer(share(left["new"], whole), share(left["own"], whole), found["new"], found["own"], how)


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
    return FittedLayer(worth[0], worth[1], [], [], how, filters)


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


def _pieces(
    job: Job, wanted: Sequence[Wanted], group: slice, inside: Tensor, *, aside: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a group reads, and what it is to give, batch by batch."""
    for each in wanted:
        if each.aside == aside:
            yield patches(each.value, job.layer, each.rows, group), each.values[:, inside.to(each.values.device)]
