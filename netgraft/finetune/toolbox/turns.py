"""Stages of a training that take turns, and when their losses have stopped falling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Run

StageUnit = Literal["step", "epoch"]


def stage_length(run: Run, unit: StageUnit, count: int, stages: int) -> int:
    """The batches of one stage: so many steps or epochs, but never so many that a stage has no turn."""
    batches = count * (run.steps // run.epochs if unit == "epoch" else 1)
    return max(1, min(batches, run.steps // stages))


class Stages(nn.Module):
    """Mean losses of the stages, turn by turn. A stage has settled when its mean changed little since its last turn."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.total: Tensor
        self.count: Tensor
        self.last: Tensor
        self.settled: Tensor
        self.register_buffer("total", torch.zeros(stages))
        self.register_buffer("count", torch.zeros(stages))
        self.register_buffer("last", torch.full((stages,), torch.inf))
        self.register_buffer("settled", torch.zeros(stages))

    @torch.no_grad()
    def add(self, stage: int, loss: Tensor) -> None:
        """Take the loss of one batch, averaged over processes."""
        self.total[stage] += loss.detach()
        self.count[stage] += 1

    @torch.no_grad()
    def end_turn(self, stage: int, tolerance: float) -> None:
        """Compare the mean of this turn with that of the one before: |change| <= tolerance * |before|."""
        mean = self.total[stage] / self.count[stage]
        change = (self.last[stage] - mean).abs()  # of the first turn inf
        self.settled[stage] = (change <= tolerance * self.last[stage].abs()) & change.isfinite()
        self.last[stage] = mean
        self.total[stage] = self.count[stage] = 0

    def done(self, *stages: int) -> bool:
        """Whether these stages, or all, have settled."""
        return bool(self.settled[list(stages)].all() if stages else self.settled.all())
