"""The images of a refit, in batches of equal size that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batches:
    """Batches by number: those kept aside first, which nothing is fitted on, then those to fit on."""

    size: int  # images of each
    aside: int
    fitted: int
    source: Callable[[int], Tensor]  # a batch as the source is shown it
    target: Callable[[int], Tensor]  # as the target is shown it

    def is_aside(self, k: int) -> bool:
        return k < self.aside

    def of(self, images: int, room: int) -> Sequence[int]:
        """Batches with so many images to fit on, and for four of them one aside; not more than ``room`` in all."""
        fitted = min(-(-images // self.size), self.fitted, max(room * 4 // 5, 1))
        return [*range(min(-(-fitted // 4), self.aside)), *range(self.aside, self.aside + fitted)]
