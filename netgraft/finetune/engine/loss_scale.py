"""The factor that keeps gradients within float16's range: PyTorch's GradScaler, for gradients outside ``.grad``.

``GradScaler`` unscales the ``.grad`` of an optimizer's parameters. Here gradients are unscaled before any ``.grad``
exists: a combine rule must see them as they are, group by group, and analytic ones are added without any factor. So
they are handed to it in the shape of an optimizer, and what it decides - to step or to skip - holds for all parts of
the update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

SMALLEST = 2.0**-24
"""With a scale below this the largest gradient of float16 stands for one of 10^12: no overflow, but nonsense."""


class LossScale:
    """One dynamic factor for all losses of a training, with the constants of ``torch.amp.GradScaler``.

    It begins at 2^16; a gradient that is not finite halves it; 2000 steps without one double it.
    """

    def __init__(self, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type)
        self._seen: list[_Gradients] = []

    @property
    def value(self) -> float:
        return float(self._scaler.get_scale())

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the factor."""
        found: Tensor = self._scaler.scale(loss)
        return found

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients of scaled losses by the factor, in place, and remember whether all are finite."""
        if gradients:
            seen = _Gradients(gradients)
            self._scaler.unscale_(cast(torch.optim.Optimizer, seen))
            self._seen.append(seen)

    def accepts(self) -> bool:
        """Whether all gradients since the last call were finite; the factor is changed by what they were."""
        seen, self._seen = self._seen, []
        for gradients in seen:
            self._scaler.step(cast(torch.optim.Optimizer, gradients))
        if seen:
            self._scaler.update()
        return all(gradients.stepped for gradients in seen)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)


class _Gradients:
    """Gradients as GradScaler knows an optimizer's; it steps one whose gradients are finite."""

    def __init__(self, gradients: Sequence[Tensor]) -> None:
        holders = [gradient.detach() for gradient in gradients]
        for holder, gradient in zip(holders, gradients, strict=True):
            holder.grad = gradient
        self.param_groups = [{"params": holders}]
        self.stepped = False

    def step(self) -> None:
        self.stepped = True


def scaled_gradients(
    loss: Tensor, wrt: Sequence[Tensor], reduce: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], scale: float
) -> tuple[Tensor, ...]:
    """Gradients by a loss that is scaled for the pass backwards, averaged by ``reduce``; zeros where there are none.

    Nobody can skip what is done with them, so where one is not finite the pass is done again with half the scale. They
    are what they are if no scale helps. The graph is kept.
    """
    while True:
        found = torch.autograd.grad(loss * scale, list(wrt), retain_graph=True, allow_unused=True)
        averages = reduce([torch.zeros_like(w) if g is None else g / scale for w, g in zip(wrt, found, strict=True)])
        if scale < SMALLEST or all(bool(average.isfinite().all()) for average in averages):
            return averages
        scale /= 2
