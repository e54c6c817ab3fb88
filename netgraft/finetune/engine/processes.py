"""The processes that train together, by Hugging Face Accelerate: device, launch, and the few collectives there are.

Models are never wrapped: parameters and buffers are broadcast once, and every gradient is averaged where the engine
asks for it. What DistributedDataParallel would do behind the back is wrong for a second gradient of one forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.models.running import find_device

SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


class Processes:
    """This process among its peers; alone where nothing was launched."""

    def __init__(self, device: str = "auto") -> None:
        """Joins the others if ``accelerate launch`` or ``torchrun`` started this process. Raises UsageError."""
        for variable, name in SHARDED.items():
            if os.environ.get(variable, "").lower() in ("true", "1"):
                hint = "Run `accelerate launch --multi_gpu`, or torchrun: every process holds the whole model."
                raise UsageError(f"Models cannot be sharded by {name} here.", where=f"{variable} is set", hint=hint)
        state = _partial_state()(cpu=device == "cpu")
        self.rank: int = state.process_index
        self.world: int = state.num_processes
        chosen = device in ("auto", "cpu") or self.world > 1
        self.device: torch.device = state.device if chosen else find_device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def mean_(self, flat: Tensor) -> Tensor:
        """Average in place, in one collective."""
        if self.world > 1:
            dist.all_reduce(flat)
            flat /= self.world
        return flat

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The averages of several tensors, in one collective, detached."""
        if self.world == 1:
            return tuple(tensor.detach() for tensor in tensors)
        flat = self.mean_(torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors]))
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return tuple(p.view(t.shape).to(t.dtype) for p, t in zip(pieces, tensors, strict=True))

    def average(self, tensor: Tensor) -> Tensor:
        """The average of one tensor of each process, with gradients."""
        return tensor if self.world == 1 else summed(tensor) / self.world

    def gather(self, tensor: Tensor) -> Tensor:
        """Those of all processes below each other, with gradients; sizes must be the same."""
        if self.world == 1:
            return tensor
        places = [tensor if rank == self.rank else torch.zeros_like(tensor) for rank in range(self.world)]
        return summed(torch.cat(places))

    def all_objects(self, value: Any) -> list[Any]:
        """One object of each process, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, modules: Iterable[nn.Module]) -> None:
        """Parameters and buffers of the first process to all; they differ where the hardware does."""
        if self.world > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    dist.broadcast(tensor.data, src=0)

    def average_statistics(self, module: nn.Module) -> None:
        """Running statistics of norms become their averages over processes (timm's ``--dist-bn reduce``)."""
        if self.world > 1:
            floats = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            with torch.no_grad():
                for buffer, mean in zip(floats, self.mean(floats) if floats else (), strict=True):
                    buffer.copy_(mean)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient of a process's tensor is the sum of all processes' gradients."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


def summed(tensor: Tensor) -> Tensor:
    """The sum over processes; it can be differentiated, several times. Every process must call it."""
    total: Tensor = _Sum.apply(tensor)
    return total


def _partial_state() -> Any:
    try:
        from accelerate import PartialState
    except ImportError as error:
        hint = "Type pip install 'netgraft[train]'"
        raise UsageError(
            "Fine-tuning needs accelerate, which is not installed.", where=str(error), hint=hint
        ) from error
    return PartialState
