"""From the losses of an update to the ``.grad`` of its parameters: gradients, one all-reduce, combine rule.

The order matters: a rule that is not linear, such as DTNH, must see gradients of the whole batch, so all groups of
losses are averaged over processes first, in one fused collective, and combined afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from netgraft.finetune.combine import Rule, Vector
from netgraft.finetune.engine.accumulation import Accumulation
from netgraft.finetune.engine.loss_scale import LossScale
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.protocol import TARGET, TASK, Penalty, Update


class Performed(NamedTuple):
    """What an update amounted to: values and telemetry are averages over processes."""

    values: Mapping[str, Tensor]  # of losses and penalties, without lambda
    telemetry: Mapping[str, Tensor]
    stop: Tensor | None  # above 0 if a process was told to stop; None where there is one process
    stepping: bool = True  # False where a scaled gradient is not finite: no part steps


class Gradients:
    """Writes ``.grad``; optimizers are somebody else's."""

    def __init__(
        self,
        processes: Processes,
        rule: Rule,
        clip: float | None = None,
        accumulation: Accumulation | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        """``clip`` is the largest norm of a direction, applied after the rule."""
        self.processes, self.rule, self.clip = processes, rule, clip
        self.accumulation, self.loss_scale = accumulation or Accumulation(), loss_scale

    def __call__(
        self, update: Update, parameters: Sequence[Tensor], *, weight: float = 1.0, stop: bool = False
    ) -> Performed | None:
        """Set ``.grad`` of the parameters to the combined direction, and to None where no loss reaches.

        ``weight`` is this process's share of the samples times the number of processes: 1 where shares are equal.
        None, with no ``.grad`` set, where further batches of the step are to come. None is set either where a scaled
        gradient is not finite: the step is to be skipped.
        """
        self.accumulation.enter(update)
        call = _Call(update, list(parameters), self.processes, self.accumulation, self.loss_scale, weight, stop)
        direction, telemetry = self.rule((*update.losses, *update.penalties), call.grads)
        if not self.accumulation.last:
            return None
        if self.loss_scale is not None and not self.loss_scale.accepts():
            return Performed(call.values, {}, call.stopped, stepping=False)
        if self.clip is not None:
            reached = [piece for piece in direction.pieces if piece is not None]
            torch._foreach_mul_(reached, (self.clip / ((direction @ direction).sqrt() + 1e-6)).clamp(max=1.0))
        for parameter, piece in zip(parameters, direction.pieces, strict=True):
            parameter.grad = None if piece is None else piece.to(parameter.dtype)
        return Performed(call.values, telemetry, call.stopped)


class _Call:
    """The gradients of one update, taken when the rule asks for them."""

    def __init__(
        self,
        update: Update,
        parameters: list[Tensor],
        processes: Processes,
        accumulation: Accumulation,
        loss_scale: LossScale | None,
        weight: float,
        stop: bool,
    ) -> None:
        self.update, self.parameters, self.processes, self.sums = update, parameters, processes, accumulation
        self.loss_scale = loss_scale
        self.weight = weight / accumulation.size
        self.values = accumulation.values(
            {name: loss.detach().float() * self.weight for name, loss in update.losses.items()}
        )
        self.asked = 0
        self.stopped: Tensor | None = None
        self.stop = stop

    def grads(self, *groups: Sequence[str]) -> tuple[Vector, ...]:
        """One gradient for each group of names, averaged over processes in one collective."""
        losses = [self._loss(group) for group in groups]
        last = max((i for i, loss in enumerate(losses) if loss is not None), default=-1)
        found = [self._gradient(loss, keep=self.update.keep or i < last) for i, loss in enumerate(losses)]
        found = self.sums.gradients(self.asked, groups, found)
        self.asked += 1
        if not self.sums.last:
            return tuple(found)
        if self.processes.world > 1:
            self._average(found)
        if self.loss_scale is not None:
            self.loss_scale.unscale_([piece for vector in found for piece in vector.pieces if piece is not None])
        return tuple(self._add_penalties(vector, group) for vector, group in zip(found, groups, strict=True))

    def _loss(self, group: Sequence[str]) -> Tensor | None:
        """The sum of the group's losses that depend on anything."""
        losses = [self.update.losses[name] for name in group if name in self.update.losses]
        losses = [loss for loss in losses if loss.requires_grad]
        whole = sum(losses[1:], losses[0]) if losses else None
        return whole if whole is None or self.weight == 1 else whole * self.weight

    def _gradient(self, loss: Tensor | None, *, keep: bool) -> Vector:
        if loss is None:
            return Vector([None] * len(self.parameters))
        loss = loss if self.loss_scale is None else self.loss_scale.scaled(loss)
        found = torch.autograd.grad(loss, self.parameters, retain_graph=keep, allow_unused=True)
        pieces = [None if g is None else laid_out(g, p) for g, p in zip(found, self.parameters, strict=True)]
        return Vector(_apart(pieces))

    def _average(self, vectors: Sequence[Vector]) -> None:
        """Gradients, and the losses' values beside them, averaged in one collective. All processes reach the same."""
        reached = [(v, i, piece) for v in vectors for i, piece in enumerate(v.pieces) if piece is not None]
        flats = [piece.reshape(-1) for _, _, piece in reached]
        stop = torch.full((1,), float(self.stop), device=self.parameters[0].device)
        values = [value.reshape(1) for value in self.values.values()]
        fused = self.processes.mean_(torch.cat([*flats, *values, stop]))
        *pieces, rest = fused.split([*map(len, flats), len(values) + 1])
        for (vector, i, old), new in zip(reached, pieces, strict=True):
            vector.pieces[i] = laid_out(new.view(old.shape), self.parameters[i])
        self.values = dict(zip(self.values, rest[:-1].unbind(), strict=True))
        self.stopped = rest[-1]

    def _add_penalties(self, vector: Vector, group: Sequence[str]) -> Vector:
        """Analytic gradients are the same on every process, and are added after the all-reduce, once."""
        for name in group:
            if name not in self.update.penalties:
                continue
            penalty = self.update.penalties[name]
            self.values[name] = penalty.value.detach().float()
            known = {id(p): g for p, g in zip(penalty.parameters, penalty.gradients, strict=True)}
            analytic = (known.get(id(p)) for p in self.parameters)
            laid = (None if g is None else laid_out(g, p) for g, p in zip(analytic, self.parameters, strict=True))
            vector.add_(Vector(laid))
        return vector


def _apart(pieces: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """Pieces that share no memory: autograd gives one tensor for both p and q of p + q."""
    seen = set()
    for piece in pieces:
        shared = piece is not None and piece.data_ptr() in seen
        if piece is not None:
            seen.add(piece.data_ptr())
        yield piece.clone() if shared and piece is not None else piece


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """In float32 and with the parameter's strides, which fused optimizers count on; a copy only where need be."""
    gradient = gradient.float()
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=torch.float32).copy_(gradient)


def scaled(update: Update, factor: float) -> Update | None:
    """The update with lambda on its regularisers, where it steps the target; None if nothing is left of it."""
    if TARGET not in update.parts or factor == 1:
        return update
    losses = {name: loss for name, loss in update.losses.items() if name == TASK or factor != 0}
    losses = {name: loss if name == TASK else loss * factor for name, loss in losses.items()}
    penalties = {name: _scaled(p, factor) for name, p in update.penalties.items() if factor != 0}
    return replace(update, losses=losses, penalties=penalties) if losses or penalties else None


def _scaled(penalty: Penalty, factor: float) -> Penalty:
    gradients = list(penalty.gradients)
    if gradients:
        torch._foreach_mul_(gradients, factor)
    return Penalty(penalty.value * factor, penalty.parameters, gradients)
