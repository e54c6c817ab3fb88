"""The run's random numbers, kept apart from those that everything else draws (rule 6 of the protocol).

PyTorch has one stream of random numbers for each device, and whoever runs a network with dropout draws from it. Here
the run's own stream is put aside and brought back for its own passes alone. What a method draws besides comes from a
stream that begins anew at every batch, so there is nothing to save of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RunNumbers:
    """The random numbers of a run's own passes, on the CPU and on its device."""

    def __init__(self, device: torch.device) -> None:
        """Those that PyTorch would give next."""
        self.device = device
        self.state = read_state(device)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Whatever draws inside draws the run's numbers; outside everything goes on as if nothing had been drawn."""
        outside = read_state(self.device)
        write_state(self.device, self.state)
        try:
            yield
        finally:
            self.state = read_state(self.device)
            write_state(self.device, outside)


def read_state(device: torch.device) -> tuple[Tensor, ...]:
    """What the generators of the CPU and of a CUDA device stand at."""
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def write_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    """Bring back what ``read_state`` returned for this device."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
