"""Operators that turn one weight tensor into another of the wanted shape: one operator per file.

An operator is a frozen dataclass whose fields are the options of a ``Step``; called with a tensor it returns one. Every
operator is deterministic, keeps dtype and device, never writes to its argument, and returns the same values where there
is nothing to resize. A tensor that a step does not fit raises PlanError. An operator with a class variable ``reads``
gets a second argument: for "own" the target's own initial tensor, for "source" all tensors of the source by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.errors import PlanError
from netgraft.plan import Step


@torch.no_grad()
def apply_steps(
    tensor: Tensor, steps: Iterable[Step], *, own: Tensor | None = None, source: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The tensor after all steps in order: contiguous, and sharing no memory with ``tensor``.

    Raises UnknownName, UsageError for a step that does not exist, PlanError for one that does not fit the tensor.
    """
    result = tensor.detach()
    for step in steps:
        operator = plugins.create("operators", step.operator, step.options)
        reads = getattr(operator, "reads", None)
        if reads is None:
            result = operator(result)
            continue
        beside = own if reads == "own" else source
        if beside is None:
            raise PlanError(f"{step.operator}: there is nothing to read beside the tensor itself.")
        result = operator(result, beside)
    result = result.contiguous()
    shared = result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return result.clone() if shared else result
