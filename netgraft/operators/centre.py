from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.operators._checks import kernel_words, positive, resized_kernel


@dataclass(frozen=True)
class Centre:
    """Pad the kernel axes with zeros, or crop them, around the tap that reads the output's own position.

    Resizes the last ``len(size)`` axes of [..., *kernel] to ``size``. Tap (k_s - 1) // 2 becomes tap (k_t - 1) // 2,
    the tap that PyTorch's ``padding="same"`` lays on the output's position. Growing is exact between sizes of one
    parity, for every dilation, when the padding grows by dilation * (k_t - k_s) / 2; between sizes of different parity
    it is with ``padding="same"`` and dilation 1. There the odd zero goes to the end when an odd kernel grows and to the
    front when an even one does (3 -> 4 at the end, 4 -> 5 at the front), and with symmetric padding the output lies one
    position off or is one longer or shorter. Cropping undoes padding, and drops the outer taps otherwise. Any dtype.
    OPERATORS D4 (i) and (ii): zero padding is exact, the crop is that of Once-for-all (arXiv:1908.09791) with M = I.
    """

    fate: ClassVar[str] = "interpolated"

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})

    def __post_init__(self) -> None:
        positive(self.size)

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return kernel_words("centre", before, self.size)

    def __call__(self, weight: Tensor) -> Tensor:
        start = resized_kernel("centre", weight, self.size)
        if start is None:
            return weight
        result = weight.new_zeros((*weight.shape[:start], *self.size))
        goal, origin = result, weight
        for dim, new in enumerate(self.size, start):
            old = weight.shape[dim]
            shift = (new - 1) // 2 - (old - 1) // 2
            first, last = max(0, shift), min(new, old + shift)
            goal = goal.narrow(dim, first, last - first)
            origin = origin.narrow(dim, first - shift, last - first)
        goal.copy_(origin)
        return result
