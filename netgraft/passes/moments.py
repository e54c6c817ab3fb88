"""Running statistics of BatchNorm layers from weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from netgraft.architecture.graph import LayerGraph
from netgraft.errors import PlanError
from netgraft.models.batch_norm import batch_norms, statistics
from netgraft.operators.apply import apply_steps
from netgraft.passes._propagate import Propagated, propagate
from netgraft.passes.protocol import Stage
from netgraft.passes.recalibrate import change, statistics_keys
from netgraft.plan import RECALIBRATED, Pairing, Step

SMALLEST = 1e-12
"""The variance below which a channel of the source says nothing about the scale of the target's."""


@dataclass(frozen=True)
class MomentPropagation:
    """Sets running statistics without data: both networks' moments are propagated and compared (OPERATORS D8 iii).

    Moments are propagated as in DFQ (arXiv:1906.04721), with covariances between channels: a BatchNorm makes
    N(beta, gamma^2), behind it come activations, convolutions, additions, pooling and gates up to the next. That is
    crude (images are no noise, neighbours are alike), but about equally so in source and target. So only ratios are
    used where the target's norm has a counterpart: with m, v the propagated moments of source s and target t, M, V the
    source's statistics, all read through the plan's index map,

        V' = V v_t / v_s,    M' = m_t + (M - m_s) sqrt(v_t / v_s).

    Norms and channels without a counterpart get m_t and v_t themselves. Departs from OPERATORS D8: there
    M' = M + m_t - m_s, which is no good where kernels have another scale. What hangs on an operation without a rule,
    up to the next BatchNorm, is left alone.
    """

    fate: ClassVar[str] = RECALIBRATED

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        return statistics_keys(target, ("running_mean", "running_var"))

    def __call__(self, stage: Stage) -> dict[str, Any]:
        """``norms`` that got statistics, ``compared``: those with a counterpart; ``left`` alone, and why.

        ``stops``: operations without a rule; ``approximated``: what else was taken to be simpler than it is;
        ``mean_change`` and ``std_change`` as ``recalibrate`` says them.
        """
        stage.progress(f"propagating moments through {stage.target.model.name}")
        wanted = bool(batch_norms(stage.target.module))
        source_seen = propagate(stage.source) if wanted and batch_norms(stage.source.module) else Propagated()
        worker = _Settle(stage, source_seen)
        before = {name: statistics(norm) for name, norm in worker.norms.items()}
        target_seen = propagate(stage.target, worker) if wanted else Propagated()
        changes = [change(before[name], statistics(worker.norms[name])) for name in worker.done] or [(0.0, 0.0)]
        mean, std = (sum(each) / len(changes) for each in zip(*changes, strict=True))
        gates = source_seen.gates + target_seen.gates
        return {
            "norms": len(worker.done),
            "compared": sum(worker.done.values()),
            "left": target_seen.lost | worker.left,
            "stops": [f"source: {stop}" for stop in source_seen.stops]
            + [f"target: {stop}" for stop in target_seen.stops],
            "approximated": [f"{gates} gates, taken as independent of what they scale"] if gates else [],
            "mean_change": mean,
            "std_change": std,
        }


class _Settle:
    """Sets the statistics of one norm of the target after the other, as they are reached."""

    def __init__(self, stage: Stage, source_seen: Propagated) -> None:
        self.norms: dict[str, Any] = dict(batch_norms(stage.target.module))
        self.partners: dict[str, Any] = dict(batch_norms(stage.source.module))
        self.source_seen = source_seen
        self.origins = _origins(stage)
        self.done: dict[str, bool] = {}  # whether there was something to compare with
        self.left: dict[str, str] = {}

    def __call__(self, name: str, mean: Tensor, variance: Tensor) -> None:
        norm = self.norms[name]
        partner, steps = self.origins.get(name, ("", ()))
        if partner in self.source_seen.lost:
            self.left[name] = f"{partner} of the source: {self.source_seen.lost[partner]}"
            return
        self.done[name] = False
        if partner in self.source_seen.moments:
            known = (self.partners[partner].running_mean, self.partners[partner].running_var)
            try:
                read = [_read(each, steps, mean) for each in (*known, *self.source_seen.moments[partner])]
            except PlanError:  # made in a way that no statistic can follow
                read = []
            if read:
                true_mean, true_variance, expected, expected_variance = read
                fit = expected_variance > SMALLEST  # not NaN either: a channel without a source
                ratio = torch.where(fit, variance / expected_variance, 1)
                mean = torch.where(fit, mean + (true_mean - expected) * ratio.sqrt(), mean)
                variance = torch.where(fit, true_variance * ratio, variance)
                self.done[name] = bool(fit.any())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _read(values: Tensor, steps: tuple[Step, ...], like: Tensor) -> Tensor:
    """Numbers per channel of the source as the target's channels read them; NaN for channels without a source."""
    read = apply_steps(values.double(), steps, own=torch.full_like(like, torch.nan))
    if read.shape != like.shape:
        raise PlanError("A statistic has another shape than its norm.")
    return read


def _origins(stage: Stage) -> dict[str, tuple[str, tuple[Step, ...]]]:
    """The source's norm that each norm of the target was made from, and the steps that its channels went through.

    The steps of the running mean, or of another tensor of the norm where that is kept.
    """
    moves = {move.key: move for move in stage.plan.moves if move.source_key}
    owners = {
        key: (layer.name, role)
        for layer in stage.source.graph.layers.values()
        for role, slot in layer.tensors.items()
        for key in slot.keys
    }
    found = {}
    for layer in stage.target.graph.layers.values():
        for role in ("bias", "weight", "running_mean") if layer.rules.has_statistics else ():
            move = moves.get(layer.tensors[role].key) if role in layer.tensors else None
            if move is not None and owners.get(move.source_key, ("", ""))[1] == role:
                found[layer.name] = (owners[move.source_key][0], move.steps)
    return found
