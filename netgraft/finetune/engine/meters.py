"""Running means of what is logged, kept on the device until somebody reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Meters:
    """Means by name, in the order in which the names first came."""

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        self._sums: dict[str, Tensor] = {n: torch.tensor(s, dtype=torch.float64) for n, (s, _) in (state or {}).items()}
        self._counts: dict[str, int] = {n: count for n, (_, count) in (state or {}).items()}

    def add(self, name: str, value: Tensor | float) -> None:
        number = torch.as_tensor(value).detach()
        number = number.to(torch.float32 if number.device.type == "mps" else torch.float64)
        before = self._sums.get(name)
        self._sums[name] = number if before is None else before.to(number.device) + number
        self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, tuple[float, int]]:
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
