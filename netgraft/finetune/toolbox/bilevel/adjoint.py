r"""The exact gradient of a loss after some steps of SGD with respect to what the steps' losses depend on.

The steps are PyTorch's SGD, for each parameter that the step's loss L_s reaches (others stay as they are):

    g = grad L_s(theta) + omega theta,    v' = mu v + (1 - tau) g,    theta' = theta - eta d,    d = v' or g + mu v'

with weight decay omega, momentum mu, dampening tau, and the second d for Nesterov; v' = g where there is no v yet.
With (lambda, nu) the derivatives of the outer loss by (theta', v'), a step is taken back by

    V = nu - c eta lambda,    u = (1 - tau) V [- eta lambda],    c = 1 [mu]               (in brackets: Nesterov)
    lambda <- lambda + omega u + d<grad L_s, u>/dtheta,    nu <- mu V

and its part of the hypergradient by a coefficient a of its loss is d<grad L_s, u>/da. Both are one backward pass
through the graph of the step's own gradient, 6 forward passes long; a replay by forward over reverse would be 9. At
the first step only the coefficients are asked for: no Hessian, and no graph is kept. L_s runs again in forward mode
with u as the tangent of theta, 3 forward passes long, and d<grad L_s, u>/da is the gradient of its tangent. A network
with an operation without forward mode goes back through a graph there too (4, after 3 for the graph).

Steps are taken on copies: a network, its optimizer and its buffers never see them, so there is nothing to undo. On
several processes ``reduce`` averages every gradient and Hessian-vector product: all hold the same u, and each the
derivatives by the coefficients of its own samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from netgraft.errors import UsageError
from netgraft.finetune.toolbox.random_numbers import read_state, write_state

Loss = Callable[[Sequence[Tensor]], Tensor]
"""A scalar as a function of parameters; of other tensors with ``requires_grad`` too, its coefficients."""
Reduce = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Averages over processes, detached."""


class Rates(NamedTuple):
    """The constants of one parameter's SGD."""

    lr: float  # eta
    momentum: float  # mu
    dampening: float  # tau
    nesterov: bool
    decay: float  # omega


@dataclass(frozen=True)
class Sgd:
    """Where SGD stands: parameters, their velocities (None before the first step) and constants."""

    parameters: Sequence[Tensor]
    velocities: Sequence[Tensor | None]
    rates: Sequence[Rates]

    @classmethod
    def of(cls, *optimizers: torch.optim.Optimizer) -> Sgd:
        """That of all parameters of these optimizers. Raises UsageError for anything but SGD."""
        parameters, velocities, rates = [], [], []
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.SGD):
                what = "The weight networks learn through the target's steps, which must be those of SGD."
                hint = "Add --opt sgd (Nesterov's momentum), or --opt momentum."
                raise UsageError(what, where=type(optimizer).__name__, hint=hint)
            for group in optimizer.param_groups:
                names = ("lr", "momentum", "dampening", "nesterov", "weight_decay")
                constants = Rates(*(group[name] for name in names))
                for parameter in group["params"]:
                    parameters.append(parameter)
                    velocities.append(optimizer.state.get(parameter, {}).get("momentum_buffer"))
                    rates.append(constants)
        return cls(parameters, velocities, rates)


class Found(NamedTuple):
    """What ``hypergradient`` returns."""

    outer: Tensor  # the outer loss after all steps, detached
    coefficients: tuple[Tensor, ...]  # its derivative by each coefficient, on this process
    parameters: tuple[Tensor, ...]  # theta after all steps


@dataclass
class _Step:
    """A step that was taken: its leaves and the gradient, None where nothing was reached."""

    leaves: list[Tensor]
    gradient: tuple[Tensor | None, ...]
    fresh: list[bool]  # no velocity before

    @property
    def reached(self) -> list[int]:
        return [i for i, piece in enumerate(self.gradient) if piece is not None]


def hypergradient(
    inner: Sequence[Loss], outer: Loss, sgd: Sgd, coefficients: Sequence[Tensor], reduce: Reduce = tuple
) -> Found:
    """The outer loss after a step of SGD on each inner loss in turn, and its derivative by the coefficients.

    Nothing is written to. The memory is that of the graphs of all inner gradients but the first.
    """
    theta = [parameter.detach() for parameter in sgd.parameters]
    velocity = [None if v is None else v.detach() for v in sgd.velocities]
    taken, again = [], _same_random_numbers(theta[0].device)
    for number, loss in enumerate(inner):
        step = _gradient(loss, theta, velocity, graph=number > 0)
        theta, velocity = _forward(step, theta, velocity, sgd.rates, reduce)
        taken.append(step)
    leaves = [piece.requires_grad_() for piece in (t.detach() for t in theta)]
    value = outer(leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    lam = list(reduce([torch.zeros_like(t) if g is None else g for t, g in zip(theta, found, strict=True)]))
    nu: list[Tensor | None] = [None] * len(lam)
    total = [torch.zeros_like(coefficient) for coefficient in coefficients]
    while taken:
        step = taken.pop()
        if taken:
            mixed = _backward(step, lam, nu, coefficients, sgd.rates, reduce)
        else:
            direction = {i: u for i, (u, _) in _directions(step, lam, nu, sgd.rates).items()}
            with again():
                mixed = _mixed(inner[0], step.leaves, direction, coefficients)
        for mine, piece in zip(total, mixed, strict=bool(mixed)):
            if piece is not None:
                mine.add_(piece)
    return Found(value.detach(), tuple(total), tuple(theta))


def _gradient(loss: Loss, theta: Sequence[Tensor], velocity: Sequence[Tensor | None], *, graph: bool) -> _Step:
    leaves = [piece.detach().requires_grad_() for piece in theta]
    gradient = torch.autograd.grad(loss(leaves), leaves, create_graph=graph, allow_unused=True)
    return _Step(leaves, gradient, [v is None for v in velocity])


@torch.no_grad()
def _forward(
    step: _Step, theta: Sequence[Tensor], velocity: Sequence[Tensor | None], rates: Sequence[Rates], reduce: Reduce
) -> tuple[list[Tensor], list[Tensor | None]]:
    """theta' and v'."""
    new_theta, new_velocity = list(theta), list(velocity)
    pieces = [piece.detach() for piece in step.gradient if piece is not None]
    for i, gradient in zip(step.reached, reduce(pieces), strict=True):
        rate, old = rates[i], velocity[i]
        kept = 1 - rate.dampening
        if old is None:
            v = gradient.add(theta[i], alpha=rate.decay)
        else:
            v = torch.mul(old, rate.momentum).add_(gradient, alpha=kept).add_(theta[i], alpha=kept * rate.decay)
        d = torch.add(gradient, v, alpha=rate.momentum).add_(theta[i], alpha=rate.decay) if rate.nesterov else v
        new_theta[i] = torch.add(theta[i], d, alpha=-rate.lr)
        new_velocity[i] = v if rate.momentum else None  # without momentum PyTorch keeps none
    return new_theta, new_velocity


def _directions(
    step: _Step, lam: Sequence[Tensor], nu: Sequence[Tensor | None], rates: Sequence[Rates]
) -> dict[int, tuple[Tensor, Tensor]]:
    """u and V of each parameter that the step reached; they may be one tensor."""
    found = {}
    for i in step.reached:
        rate, old = rates[i], nu[i]
        scale = -rate.lr * (rate.momentum if rate.nesterov else 1)
        both = lam[i] * scale if old is None else torch.add(old, lam[i], alpha=scale)
        u = both if step.fresh[i] or not rate.dampening else both * (1 - rate.dampening)
        found[i] = torch.add(u, lam[i], alpha=-rate.lr) if rate.nesterov else u, both
    return found


def _backward(
    step: _Step,
    lam: list[Tensor],
    nu: list[Tensor | None],
    coefficients: Sequence[Tensor],
    rates: Sequence[Rates],
    reduce: Reduce,
) -> Sequence[Tensor | None]:
    """One step of the adjoint recursion, in place on lambda and nu; its part of the hypergradient."""
    directions = _directions(step, lam, nu, rates)
    known = _product(step.gradient, {i: u for i, (u, _) in directions.items()}, [*step.leaves, *coefficients])
    count = len(step.leaves)
    bends = [(i, piece) for i, piece in enumerate(known[:count]) if piece is not None]
    for i, (u, _) in directions.items():
        lam[i] = torch.add(lam[i], u, alpha=rates[i].decay)
    for (i, _), bend in zip(bends, reduce([piece for _, piece in bends]) if bends else (), strict=True):
        lam[i].add_(bend)
    for i, (_, both) in directions.items():
        nu[i] = None if step.fresh[i] else both.mul_(rates[i].momentum)  # nobody reads V or u any more
    return known[count:]


def _product(
    gradient: Sequence[Tensor | None], direction: Mapping[int, Tensor], wrt: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """d<gradient, u>/d(wrt), of a gradient with a graph."""
    curved = {i: piece for i, piece in enumerate(gradient) if piece is not None and piece.requires_grad}
    if not curved or not wrt:
        return (None,) * len(wrt)
    cotangents = [direction[i] for i in curved]
    return torch.autograd.grad(list(curved.values()), wrt, cotangents, allow_unused=True)


def _mixed(
    loss: Loss, leaves: Sequence[Tensor], direction: Mapping[int, Tensor], coefficients: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """d<grad loss, u>/da, without the derivatives by the parameters."""
    try:
        with forward_ad.dual_level():
            with warnings.catch_warnings():  # the first dual makes PyTorch warn of its own code
                warnings.simplefilter("ignore", FutureWarning)
                duals = [
                    forward_ad.make_dual(leaf.detach(), direction[i]) if i in direction else leaf.detach()
                    for i, leaf in enumerate(leaves)
                ]
            tangent = forward_ad.unpack_dual(loss(duals)).tangent
            if tangent is None or not tangent.requires_grad or not coefficients:
                return (None,) * len(coefficients)
            return torch.autograd.grad(tangent, list(coefficients), allow_unused=True)
    except NotImplementedError:
        gradient = torch.autograd.grad(loss(leaves), leaves, create_graph=True, allow_unused=True)
        return _product(gradient, direction, coefficients)


def _same_random_numbers(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the random numbers are once more those that come next now."""
    then = read_state(device)

    @contextmanager
    def again() -> Iterator[None]:
        outside = read_state(device)
        write_state(device, then)
        try:
            yield
        finally:
            write_state(device, outside)

    return again
