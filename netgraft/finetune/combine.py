"""How the gradients of named losses become one direction of descent.

A rule is given the names of an update's losses and ``grads``, and returns the direction and numbers to log.
``grads(("task",), ("fm", "sp"))`` gives one ``Vector`` for each group of names, the gradient of the group's sum,
**already averaged over processes**, all groups in one collective: a rule that is not linear must see the gradient of
the whole batch. Vectors belong to the rule, which may overwrite them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.protocol import TASK
from netgraft.finetune.settings import DtnhScope


class Vector:
    """A gradient over the parameters of an update, parameter by parameter, in float32.

    A piece is None where nothing depends on the parameter: 0, and it is not stepped at all if it stays None.
    """

    def __init__(self, pieces: Iterable[Tensor | None]) -> None:
        self.pieces = list(pieces)

    def __matmul__(self, other: Vector) -> Tensor:
        """The inner product, a scalar."""
        if products := self.products(other):
            return torch.stack(products).sum()
        return next((p.new_zeros(()) for p in (*self.pieces, *other.pieces) if p is not None), torch.zeros(()))

    def products(self, other: Vector) -> list[Tensor]:
        """The inner product of each piece that both have, scalars."""
        pairs = zip(self.pieces, other.pieces, strict=True)
        return [torch.dot(_flat(a), _flat(b)) for a, b in pairs if a is not None and b is not None]

    def shared(self, other: Vector) -> list[int]:
        """The numbers of the pieces that both have."""
        pairs = zip(self.pieces, other.pieces, strict=True)
        return [i for i, (mine, theirs) in enumerate(pairs) if mine is not None and theirs is not None]

    def add_(self, other: Vector, factor: Tensor | float | Sequence[Tensor | float] = 1.0) -> Vector:
        """Add ``factor * other`` in place, in one pass; pieces that only ``other`` has are taken from it.

        A sequence has a factor for each piece.
        """
        factors = factor if isinstance(factor, Sequence) else [factor] * len(self.pieces)
        for i, (mine, added, by) in enumerate(zip(self.pieces, other.pieces, factors, strict=True)):
            if mine is None:
                self.pieces[i] = None if added is None else added.mul_(by)
            elif added is not None:
                mine.addcmul_(added, torch.as_tensor(by, dtype=mine.dtype, device=mine.device))
        return self


def _flat(piece: Tensor) -> Tensor:
    """All elements in the order of memory, without a copy; pieces of one parameter have its strides."""
    if piece.is_contiguous():
        return piece.reshape(-1)
    strides = piece.stride()
    return piece.permute(sorted(range(piece.dim()), key=lambda axis: -strides[axis])).reshape(-1)


Grads = Callable[..., tuple[Vector, ...]]


class Combined(NamedTuple):
    """A direction of descent, and what there is to log about it."""

    direction: Vector
    telemetry: Mapping[str, Tensor]  # scalars


Rule = Callable[[Sequence[str], Grads], Combined]


def total(names: Sequence[str], grads: Grads) -> Combined:
    """The gradient of the sum of all losses."""
    (direction,) = grads(tuple(names))
    return Combined(direction, {})


def dtnh(names: Sequence[str], grads: Grads, scope: DtnhScope = "all") -> Combined:
    """The regularisers' gradient without its component against the task's (DTNH, Algorithm 1, Eqs. 6-7).

    With g = grad J and r = lambda grad Omega: d = g + r where <g, r> >= 0, else g + r - <g, r> / |g|^2 g. In conflict
    <d, g> = |g|^2: to first order the task's loss falls as if there were no regulariser. Works with any regulariser.
    Without a task's loss or a regulariser it is ``total``; where g = 0 there is no conflict.

    ``scope`` says what g and r are vectors of. ``all``: of all parameters, so that those which no regulariser reaches,
    such as a new classifier, are stepped by (1 - <g, r> / |g|^2) g in conflict. ``shared``: of the parameters that both
    reach; all others are stepped by g + r. ``per-tensor``: each of those tensors by itself, in conflict or not; then
    <d, g> >= |g|^2.

    Departs from the paper: line 11 of Algorithm 1 is taken, not the text's "d = lambda J + lambda Omega^y". Its vectors
    are of all parameters; the other scopes are netgraft's own.
    """
    rest = tuple(name for name in names if name != TASK)
    if TASK not in names or not rest:
        return total(names, grads)
    g, r = grads((TASK,), rest)
    gg, gr, rr = g @ g, g @ r, r @ r
    both = g.shared(r)
    if scope == "all" or not both:
        factor, conflict = _without_conflict(gg, gr)
        told = _angles(gg, gr, rr, factor * gg + gr, factor * gr + rr, factor * factor * gg + 2 * factor * gr + rr)
        return Combined(r.add_(g, factor), told | {"obtuse": conflict.float()})
    reached = Vector(g.pieces[i] for i in both)
    own, cross = torch.stack(reached.products(reached)), torch.stack(g.products(r))  # of each tensor
    if scope == "shared":
        factor, conflict = _without_conflict(own.sum(), cross.sum())
        factor = factor.expand(len(both))
    else:
        factor, conflict = _without_conflict(own, cross)
    alone = gg - own.sum()
    dg, dr = (factor * own).sum() + alone + gr, (factor * cross).sum() + rr
    told = _angles(gg, gr, rr, dg, dr, (factor * (factor * own + 2 * cross)).sum() + alone + rr)
    factors: list[Tensor | float] = [1.0] * len(g.pieces)
    for i, by in zip(both, factor.unbind(), strict=True):
        factors[i] = by
    return Combined(r.add_(g, factors), told | {"obtuse": conflict.float().mean()})


def _without_conflict(gg: Tensor, gr: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of g in d = factor g + r, with no need to wait for the numbers; and whether there is a conflict."""
    conflict = (gr < 0) & (gg > 0)
    return torch.where(conflict, 1 - gr / gg, 1.0), conflict


def _angles(gg: Tensor, gr: Tensor, rr: Tensor, dg: Tensor, dr: Tensor, dd: Tensor) -> dict[str, Tensor]:
    """The cosine of g and r, and in degrees the angles of the paper's Figures 4 and 5.

    1: between the direction d and g. 2: between d and r. 3: between g + r (no DTNH) and g. 4: between g + r and r.
    All from inner products: no further pass over the parameters.
    """

    def between(dot: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return torch.rad2deg(torch.acos(_cosine(dot, one.clamp(min=0).sqrt() * other.sqrt())))

    whole = gg + 2 * gr + rr
    return {
        "cosine": _cosine(gr, (gg * rr).sqrt()),
        "angle1": between(dg, dd, gg),
        "angle2": between(dr, dd, rr),
        "angle3": between(gg + gr, whole, gg),
        "angle4": between(gr + rr, whole, rr),
    }


def _cosine(dot: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, dot / lengths, 0.0).clamp(-1, 1)


RULES: dict[str, Rule] = {"total": total, "dtnh": dtnh}


def find_rule(name: str, scope: DtnhScope = "all") -> Rule:
    """The rule, DTNH's with this scope. Raises UnknownName, and UsageError for a scope with another rule."""
    if name not in RULES:
        raise UnknownName("combine rule", name, RULES)
    if scope == "all":
        return RULES[name]
    if name != "dtnh":
        hint = "Add --combine dtnh, or leave out --dtnh-scope."
        raise UsageError("Only the rule dtnh has a scope.", where=f"--combine {name} --dtnh-scope {scope}", hint=hint)
    return functools.partial(dtnh, scope=scope)
