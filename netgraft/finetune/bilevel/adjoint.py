r"""The exact gradient of a loss after some steps of SGD with respect to what the steps' losses depend on.

The steps are PyTorch's SGD, for each parameter that the step's loss L_s reaches (others stay as they are):

    g = grad L_s(theta) + omega theta,    v' = mu v + (1 - tau) g,    theta' = theta - eta d,    d = v' or g + mu v'

with weight decay omega, momentum mu, dampening tau, and the second d for Nesterov; v' = g where there is no v yet.
With (lambda, nu) the derivatives of the outer loss by (theta', v'), a step is taken back by

    V = nu - c eta lambda,    u = (1 - tau) V [- eta lambda],    c = 1 [mu]               (in brackets: Nesterov)
    lambda <- lambda + omega u + d<grad L_s, u>/dtheta,    nu <- mu V

and its part of the hypergradient by a coefficient a of its loss is d<grad L_s, u>/da. Both are one backward pass
through the graph of the step's own gradient, 6 forward passes long; a replay by forward over reverse would be 9. At
the first step only the coefficients are asked for: no Hessian, a Jacobian-vector product of the terms of L_s (2; 4 as
PyTorch does it, whose double backward pass of a convolution computes all of its parts).

Steps are taken on copies: a network, its optimizer and its buffers never see them, so there is nothing to undo. On
several processes ``reduce`` averages every gradient and Hessian-vector product: all hold the same u, and each the
derivatives by the coefficients of its own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from netgraft.errors import UsageError

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
    """A step that was taken: its leaves and the gradient with its graph, None where nothing was reached."""

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

    Nothing is written to. The memory is that of the graphs of all inner gradients.
    """
    theta = [parameter.detach() for parameter in sgd.parameters]
    velocity = [None if v is None else v.detach() for v in sgd.velocities]
    taken = []
    for loss in inner:
        step = _gradient(loss, theta, velocity)
        theta, velocity = _forward(step, theta, velocity, sgd.rates, reduce)
        taken.append(step)
    leaves = [piece.requires_grad_() for piece in (t.detach() for t in theta)]
    value = outer(leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    lam = list(reduce([torch.zeros_like(t) if g is None else g for t, g in zip(theta, found, strict=True)]))
    nu = [torch.zeros_like(piece) for piece in lam]
    total = [torch.zeros_like(coefficient) for coefficient in coefficients]
    for number in range(len(taken) - 1, -1, -1):
        _backward(taken.pop(), lam, nu, total, coefficients, sgd.rates, reduce, first=number == 0)
    return Found(value.detach(), tuple(total), tuple(theta))


def _gradient(loss: Loss, theta: Sequence[Tensor], velocity: Sequence[Tensor | None]) -> _Step:
    leaves = [piece.detach().requires_grad_() for piece in theta]
    gradient = torch.autograd.grad(loss(leaves), leaves, create_graph=True, allow_unused=True)
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
        g = gradient.add(theta[i], alpha=rate.decay) if rate.decay else gradient
        v = g if old is None else torch.add(rate.momentum * old, g, alpha=1 - rate.dampening)
        d = torch.add(g, v, alpha=rate.momentum) if rate.nesterov else v
        new_theta[i] = torch.add(theta[i], d, alpha=-rate.lr)
        new_velocity[i] = v if rate.momentum else None  # without momentum PyTorch keeps none
    return new_theta, new_velocity


def _backward(
    step: _Step,
    lam: list[Tensor],
    nu: list[Tensor],
    total: list[Tensor],
    coefficients: Sequence[Tensor],
    rates: Sequence[Rates],
    reduce: Reduce,
    *,
    first: bool,
) -> None:
    """One step of the adjoint recursion, in place on lambda, nu and the hypergradient so far."""
    direction: dict[int, Tensor] = {}
    for i in step.reached:
        rate = rates[i]
        both = torch.add(nu[i], lam[i], alpha=-rate.lr * (rate.momentum if rate.nesterov else 1))
        u = both if step.fresh[i] else both * (1 - rate.dampening)
        direction[i] = torch.add(u, lam[i], alpha=-rate.lr) if rate.nesterov else u
        nu[i] = torch.zeros_like(both) if step.fresh[i] else rate.momentum * both
    wrt = [*([] if first else step.leaves), *coefficients]
    curved = {i: piece for i, piece in enumerate(step.gradient) if piece is not None and piece.requires_grad}
    cotangents = [direction[i] for i in curved]
    known = torch.autograd.grad(list(curved.values()), wrt, cotangents, allow_unused=True) if curved and wrt else ()
    mixed = known[-len(coefficients) :] if coefficients else ()
    for mine, piece in zip(total, mixed, strict=bool(known)):
        if piece is not None:
            mine.add_(piece)
    if first:
        return
    bends = [(i, piece) for i, piece in enumerate(known[: len(step.leaves)]) if piece is not None]
    for (i, _), bend in zip(bends, reduce([piece for _, piece in bends]) if bends else (), strict=True):
        lam[i] = lam[i] + bend
    for i, u in direction.items():
        if rates[i].decay:
            lam[i] = torch.add(lam[i], u, alpha=rates[i].decay)
