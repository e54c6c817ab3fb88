"""One step from the gradients of several batches: as if they were one, for losses that are means over samples.

A rule that is not linear must see the gradient of the whole batch. So there is a sum for each group of losses that it
asks for, and it decides when the last batch is in; only then are gradients averaged over processes, and analytic ones
added, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.combine import Vector
from netgraft.finetune.protocol import Update


class Accumulation:
    """Sums of gradients and of losses' values over the ``size`` batches of a step."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.begin(0)

    def begin(self, number: int) -> None:
        """The batch of this number in the epoch comes."""
        self.place, self.updates = number % self.size, 0
        if self.place == 0:
            self._sums: dict[tuple[int, tuple[str, ...]], Vector] = {}
            self._values: dict[str, Tensor] = {}
            self._parts: tuple[str, ...] = ()
            self.entered = 0

    @property
    def last(self) -> bool:
        """Whether this batch is the last one of the step."""
        return self.place == self.size - 1

    def enter(self, update: Update) -> None:
        """An update comes. Raises UsageError unless it is the only one of its batch, and like that of the last one."""
        if self.size == 1:
            return
        self._check(not self.updates, "several updates of one batch, and the later ones need the step of the earlier")
        self._check(self.entered == self.place, "no update of a batch")
        self._check(self._parts in ((), update.parts), "updates of different parts")
        self._parts = update.parts
        self.updates += 1
        self.entered += 1

    def end(self) -> None:
        """All of the batch has been done. Raises UsageError where a step is left in the middle."""
        self._check(not self.last or self.entered in (0, self.size) or self.size == 1, "no update of a batch")

    def gradients(self, asked: int, groups: Sequence[Sequence[str]], found: Sequence[Vector]) -> list[Vector]:
        """The sums so far, for the rule to have; ``asked`` counts the times that it has asked in this batch."""
        if self.size == 1:
            return list(found)
        sums = []
        for group, vector in zip(groups, found, strict=True):
            key = asked, tuple(group)
            self._check(key in self._sums or self.place == 0, "other losses in one batch than in another")
            mine = self._sums.setdefault(key, vector)
            if mine is not vector:
                mine.add_(vector)
            sums.append(mine if self.last else Vector([p if p is None else p.clone() for p in mine.pieces]))
        return sums

    def values(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums so far of the losses' values."""
        if self.size == 1:
            return found
        self._values = {name: value + self._values.get(name, torch.zeros_like(value)) for name, value in found.items()}
        return dict(self._values)

    def _check(self, right: bool, what: str) -> None:
        if not right:
            hint = "Leave out --accumulate; a smaller --batch-size needs as little memory."
            raise UsageError("The method's gradients cannot be accumulated.", where=f"it yields {what}", hint=hint)
