from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from netgraft.operators._checks import kernel_start


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

    size: tuple[int, ...] = field(metadata={"help": "kernel size of the result, such as 5,5"})

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ValueError(f"size must be one or more positive lengths: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        start = weight.ndim - len(self.size)
        if start >= 0 and tuple(weight.shape[start:]) == self.size:
            return weight
        start = kernel_start("centre", weight, len(self.size))
        result = weight.new_zeros((*weight.shape[:start], *self.size))
        there, here = result, weight
        for dim, new in enumerate(self.size, start):
            old = weight.shape[dim]
            shift = (new - 1) // 2 - (old - 1) // 2
            first, last = max(0, shift), min(new, old + shift)
            there = there.narrow(dim, first, last - first)
            here = here.narrow(dim, first - shift, last - first)
        there.copy_(here)
        return result
