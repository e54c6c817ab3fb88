"""BatchNorm over the batches of all processes: several processes then compute what one would."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netgraft.finetune.engine.processes import Processes


def synchronise(module: nn.Module, processes: Processes) -> None:
    """Every BatchNorm of the module takes the statistics of all processes in train mode; its keys stay the same.

    Every process must hold as many samples. In plain operations and one differentiable collective a pass: unlike
    PyTorch's SyncBatchNorm it runs on CPUs too, and can be differentiated twice.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = functools.partial(_forward, norm, type(norm).forward, processes)  # type: ignore[method-assign]


def _forward(norm: _BatchNorm, plain: object, processes: Processes, x: Tensor) -> Tensor:  # [B, C, ...]
    if not norm.training:
        out: Tensor = plain(norm, x)  # type: ignore[operator]
        return out
    axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    wide = x if x.dtype == torch.float64 else x.float()
    (shift,) = processes.mean([wide.detach().mean(axes)])  # the same everywhere; without it E[x^2] - E[x]^2 cancels
    centred = wide - shift.view(shape)
    mean, square = processes.average(torch.stack([centred.mean(axes), centred.square().mean(axes)]))
    variance = square - mean.square()
    _track(norm, mean.detach() + shift, variance.detach(), x.numel() // x.shape[1] * processes.world)
    scaled: Tensor = (centred - mean.view(shape)) * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    scaled = scaled.to(x.dtype)
    for name in ("drop", "act"):  # timm's norms with an activation
        if isinstance(after := getattr(norm, name, None), nn.Module):
            scaled = after(scaled)
    return scaled


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), momentum)
