"""Optimizers whose parameters do not all move in the same steps."""

from __future__ import annotations

import torch


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum 0 for parameters without any: fused SGD does not take some that have moved and some that have not."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
