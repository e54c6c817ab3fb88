"""Fits one layer: the map from what it reads to what it is to give, about the weights that it has.

A part of the rows, those of some images, is never fitted on. On it the fit is compared with the weights as they are, up
to what is free anyway: one number for all of them, and the constants that a norm or a bias sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from netgraft.passes.refitting.jobs import Job
from netgraft.passes.refitting.regression import (
    Fit,
    as_fit,
    best_filters,
    best_number,
    fit,
    patches,
    rank_one,
    share,
    with_spread,
)
from netgraft.passes.refitting.writing import Writer

DENSE_FOR_DEPTHWISE = 2304
"""Most inputs times taps for which the filters of a depthwise layer are read off a dense solution."""
EXACT = 0.9999
"""R^2 from which a layer gives what the source gives."""
LARGEST = 1e15
"""What is larger cannot be squared and added up in single precision."""


@dataclass(frozen=True)
class Wanted:
    """What a layer is to give, where."""

    rows: Tensor  # of the layer's own output
    values: Tensor  # [len(rows), m]
    fitted: Tensor  # [len(rows)] bool: the rows to fit on

    @property
    def to_fit(self) -> tuple[Tensor, Tensor]:
        """Rows and values to fit on."""
        return self.rows[self.fitted], self.values[self.fitted]

    @property
    def aside(self) -> tuple[Tensor, Tensor]:
        """Rows and values of the images kept aside."""
        return self.rows[~self.fitted], self.values[~self.fitted]


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


def usable(value: Tensor, wanted: Wanted) -> bool:
    """Whether all numbers are finite and can be squared."""
    return all(bool(each.abs().max() < LARGEST) for each in (value, wanted.values) if each.numel())


def fit_linear(job: Job, value: Tensor, wanted: Wanted, writer: Writer) -> FittedLayer:
    """Ridge regression about the layer's own weights, of a grouped layer group by group.

    Weights that are the target's own initialisation are no centre: there it is about zero.
    """
    intercept = has_constant(job)
    weight, signs, scale = writer.matrix(job.layer), writer.signs(job), writer.scale(job)
    normed = job.ending.norm is not None and not job.ending.late

    def own(inside: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The weights of some channels, each in the proportion to the others that the norm behind will give it."""
        mine = weight[job.channels[inside].to(weight.device)].to(x)
        mine = mine * (job.signs[inside] > 0).to(x)[:, None]  # what mirrors another channel has no weights yet
        size = signs[inside].to(x) if scale is None else scale[inside.to(scale.device)].to(x)
        if normed:
            size = size * y.std(0, correction=0) / (x @ mine.T).std(0, correction=0).clamp(min=1e-12)
        return mine * size[:, None]

    number = best_number(
        ((x, y, own(inside, x, y)) for inside, x, y in _pieces(job, value, *wanted.to_fit)), intercept=intercept
    )
    found: dict[str, list[tuple[Tensor, Fit]]] = {"new": [], "own": []}
    left, whole = {"new": 0.0, "own": 0.0}, 0.0
    centred = job.layer.name in writer.grafted
    aside = _pieces(job, value, *wanted.aside)
    for (inside, x, y), (_, x_aside, y_aside) in zip(_pieces(job, value, *wanted.to_fit), aside, strict=True):
        as_it_is = as_fit(x, y, number * own(inside, x, y), intercept=intercept)
        new = fit(x, y, intercept=intercept, centre=as_it_is.weight if centred else None)
        for name, each in (("new", new), ("own", as_it_is)):
            rest, all_of_it = each.errors(x_aside, y_aside)
            left[name] += rest
            spread = job.ending.norm is None and not job.ends_block
            found[name].append((job.channels[inside], with_spread(each, x, y) if spread else each))
        whole += all_of_it
    how = "ridge regression" if job.layer.groups == 1 else "ridge regression, group by group"
    return FittedLayer(share(left["new"], whole), share(left["own"], whole), found["new"], found["own"], how)


def fit_filters(job: Job, value: Tensor, wanted: Wanted, writer: Writer, *, following: bool) -> FittedLayer:
    """The filters of a depthwise layer that serve what a dense kernel, or the pointwise layer next, is to give."""
    count = job.layer.shape[0]
    rows, y = wanted.to_fit
    x = patches(value, job.layer, rows)
    if x.shape[1] <= DENSE_FOR_DEPTHWISE:
        filters = rank_one(fit(x, y, intercept=True).weight.unflatten(1, (count, -1)))
    else:
        filters = best_filters(x, y, count)
    rows_aside, y_aside = wanted.aside
    x_aside = patches(value, job.layer, rows_aside)
    worth = []
    for each in (filters, writer.matrix(job.layer).to(x)):
        given, given_aside = ((part.unflatten(1, (count, -1)) * each).sum(2) for part in (x, x_aside))
        worth.append(fit(given, y, intercept=True).r2(given_aside, y_aside))
    how = "filters for the next layer" if following else "filters of the dense solution"
    return FittedLayer(worth[0], worth[1], [], [], how, filters)


def has_constant(job: Job) -> bool:
    """Whether a constant is for free: a bias, or a norm that takes the mean away before anything else happens."""
    return "bias" in job.layer.tensors or (job.ending.norm is not None and not job.ending.late)


def _pieces(job: Job, value: Tensor, rows: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(which of the job's channels, what they read, what they are to give) for each group of the layer."""
    layer = job.layer
    if layer.groups == 1:
        yield torch.arange(len(job.channels)), patches(value, layer, rows), y
        return
    outputs, inputs = layer.shape[0] // layer.groups, layer.shape[1]
    for group in range(layer.groups):
        inside = (job.channels // outputs == group).nonzero().flatten()
        if len(inside):
            x = patches(value, layer, rows, slice(group * inputs, (group + 1) * inputs))
            yield inside, x, y[:, inside.to(y.device)]
