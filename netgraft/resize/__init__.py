"""Operators that turn one weight tensor into another of the wanted shape: one operator per file.

An operator is a frozen dataclass whose fields are the options of a ``Step``; called with a tensor it returns one. Every
operator is deterministic, keeps dtype and device, never writes to its argument, and returns the same values where there
is nothing to resize. A tensor that a step does not fit raises PlanError.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.plan import Step


@torch.no_grad()
def apply_steps(tensor: Tensor, steps: Iterable[Step]) -> Tensor:
    """The tensor after all steps in order: contiguous, and sharing no memory with ``tensor``.

    Raises UnknownName, UsageError for a step that does not exist, PlanError for one that does not fit the tensor.
    """
    result = tensor.detach()
    for step in steps:
        result = plugins.create("resize", step.operator, step.options)(result)
    result = result.contiguous()
    shared = result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return result.clone() if shared else result
