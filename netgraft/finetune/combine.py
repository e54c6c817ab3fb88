"""How the gradients of named losses become one direction of descent.

A rule is given the names of an update's losses and ``grads``, and returns the direction and numbers to log.
``grads(("task",), ("fm", "sp"))`` gives one ``Vector`` for each group of names, the gradient of the group's sum,
**already averaged over processes**, all groups in one collective: a rule that is not linear must see the gradient of
the whole batch. Vectors belong to the rule, which may overwrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from netgraft.errors import UnknownName
from netgraft.finetune.protocol import TASK


class Vector:
    """A gradient over the parameters of an update, parameter by parameter, in float32.

    A piece is None where nothing depends on the parameter: 0, and it is not stepped at all if it stays None.
    """

    def __init__(self, pieces: Iterable[Tensor | None]) -> None:
        self.pieces = list(pieces)

    def __matmul__(self, other: Vector) -> Tensor:
        """The inner product, a scalar."""
        pairs = zip(self.pieces, other.pieces, strict=True)
        products = [torch.dot(_flat(a), _flat(b)) for a, b in pairs if a is not None and b is not None]
        if products:
            return torch.stack(products).sum()
        return next((p.new_zeros(()) for p in (*self.pieces, *other.pieces) if p is not None), torch.zeros(()))

    def add_(self, other: Vector, factor: Tensor | float = 1.0) -> Vector:
        """Add ``factor * other`` in place, in one pass; pieces that only ``other`` has are taken from it."""
        for i, (mine, added) in enumerate(zip(self.pieces, other.pieces, strict=True)):
            if mine is None:
                self.pieces[i] = None if added is None else added.mul_(factor)
            elif added is not None:
                mine.addcmul_(added, torch.as_tensor(factor, dtype=mine.dtype, device=mine.device))
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


def dtnh(names: Sequence[str], grads: Grads) -> Combined:
    """The regularisers' gradient without its component against the task's (DTNH, Algorithm 1, Eqs. 6-7).

    With g = grad J and r = lambda grad Omega: d = g + r where <g, r> >= 0, else g + r - <g, r> / |g|^2 g. In conflict
    <d, g> = |g|^2: to first order the task's loss falls as if there were no regulariser. Works with any regulariser.
    Without a task's loss or a regulariser it is ``total``; where g = 0 there is no conflict.

    Departs from the paper: line 11 of Algorithm 1 is taken, not the text's "d = lambda J + lambda Omega^y".
    """
    rest = tuple(name for name in names if name != TASK)
    if TASK not in names or not rest:
        return total(names, grads)
    g, r = grads((TASK,), rest)
    gg, gr, rr = g @ g, g @ r, r @ r
    conflict = (gr < 0) & (gg > 0)
    factor = torch.where(conflict, 1 - gr / gg, 1.0)  # of g: d = factor g + r, with no need to wait for the numbers
    return Combined(r.add_(g, factor), _angles(gg, gr, rr, factor) | {"obtuse": conflict.float()})


def _angles(gg: Tensor, gr: Tensor, rr: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """The cosine of g and r, and in degrees the angles of the paper's Figures 4 and 5.

    1: between the direction d and g. 2: between d and r. 3: between g + r (no DTNH) and g. 4: between g + r and r.
    All from three inner products: no further pass over the parameters.
    """

    def between(alpha: Tensor | float, onto_g: bool) -> Tensor:  # of alpha g + r with g, or with r
        length = (alpha * alpha * gg + 2 * alpha * gr + rr).clamp(min=0).sqrt()
        dot, other = (alpha * gg + gr, gg) if onto_g else (alpha * gr + rr, rr)
        return torch.rad2deg(torch.acos(_cosine(dot, length * other.sqrt())))

    return {
        "cosine": _cosine(gr, (gg * rr).sqrt()),
        "angle1": between(factor, True),
        "angle2": between(factor, False),
        "angle3": between(1.0, True),
        "angle4": between(1.0, False),
    }


def _cosine(dot: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, dot / lengths, 0.0).clamp(-1, 1)


RULES: dict[str, Rule] = {"total": total, "dtnh": dtnh}


def find_rule(name: str) -> Rule:
    """Raises UnknownName."""
    if name not in RULES:
        raise UnknownName("combine rule", name, RULES)
    return RULES[name]
