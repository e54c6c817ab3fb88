"""Carries out the steps of a move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.errors import PlanError
from netgraft.operators.protocol import ReadsBeside
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
        if not isinstance(operator, ReadsBeside):
            result = operator(result)
            continue
        beside = own if operator.reads == "own" else source
        if beside is None:
            raise PlanError(f"{step.operator}: there is nothing to read beside the tensor itself.")
        result = operator(result, beside)
    result = result.contiguous()
    shared = result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return result.clone() if shared else result
