"""What kind of layer a group of recorded operations is, judged by what the operations do with which tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from netgraft.architecture.kinds import making, normalising
from netgraft.architecture.operations import REDUCES
from netgraft.trace.slots import RECURRENT
from netgraft.trace.written_norms import written_norm


@dataclass(frozen=True)
class Operand:
    """A tensor argument of an operation."""

    shape: tuple[int, ...]
    params: frozenset[str]  # parameter keys, if it was computed from nothing but parameters and constants
    inside: bool  # made earlier in the same group
    flipped: bool  # a matrix whose columns, not rows, lie together in memory
    constant: bool = False  # made from neither data nor parameters, or a buffer


@dataclass(frozen=True)
class Operation:
    """One ATen operation."""

    name: str
    operands: tuple[Operand, ...]
    args: tuple[Any, ...]  # tensors replaced by None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """A kind from ``netgraft.architecture.kinds``, and for convolutions how they slide."""

    kind: str
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    matrix: tuple[int, ...] = (0, 0)  # of a linear layer: lengths in and out of the weight as it was multiplied
    in_first: bool = False  # the matrix lies in memory as [in, out]


def classify(operations: Sequence[Operation], own: frozenset[str] | None, module: nn.Module | None) -> Verdict | None:
    """The kind of layer behind ``operations``; None if they are not one layer.

    ``own`` are the keys of the parameters that count as weights (None: any parameter does). The order of the tests is
    from the most to the least specific: a convolution whose weight is mixed from experts also multiplies matrices.
    """

    def is_weight(operand: Operand) -> bool:
        return bool(operand.params) and (own is None or operand.params <= own)

    if isinstance(module, RECURRENT):
        return Verdict("rnn")
    if module is not None and written_norm(module) is not None:
        return Verdict("batch_norm")
    convolutions, products, contractions = making("conv2d"), making("linear"), making("contraction")
    norms = normalising()
    dynamic = None
    for op in operations:
        if op.name in convolutions and not is_weight(op.operands[0]):
            stride, padding, dilation, transposed = (op.args[i] for i in (3, 4, 5, 6))
            kind = f"conv{'_transpose' if transposed else ''}{len(stride)}d"
            verdict = Verdict(kind, op.args[8], tuple(stride), tuple(padding), tuple(dilation))
            if is_weight(op.operands[1]):
                return verdict
            dynamic = verdict
    if dynamic is not None and own:
        return Verdict("conv_dynamic", 1, dynamic.stride, dynamic.padding, dynamic.dilation)
    for op in operations:
        if op.name in products and len(op.operands) >= 2:
            left, right = op.operands[-2:]
            if op.name == "linear":
                left, right = op.operands[:2]
            if is_weight(right) and not is_weight(left) and len(right.shape) >= 2:
                size = right.shape[-1:] + right.shape[-2:-1] if op.name == "linear" else right.shape[-2:]
                return Verdict("linear", matrix=size, in_first=right.flipped == (op.name == "linear"))
            if is_weight(left) and not is_weight(right) and len(left.shape) >= 2:
                return Verdict("linear", matrix=left.shape[:-3:-1], in_first=left.flipped)
        if op.name in contractions and any(map(is_weight, op.operands)) and not all(map(is_weight, op.operands)):
            return Verdict("contraction")
    for op in operations:
        if op.name in making("embedding") and is_weight(op.operands[0]):
            return Verdict("embedding")
    for op in operations:
        if op.name in norms and not is_weight(op.operands[0]):
            # InstanceNorm runs batch_norm on a view with the batch folded into the channels.
            kind = "instance_norm" if isinstance(module, nn.modules.instancenorm._InstanceNorm) else norms[op.name]
            return Verdict(kind)
    if own and any(op.name in REDUCES and not is_weight(op.operands[0]) for op in operations):
        return Verdict("norm")
    if any(op.name in making("activation") and is_weight(op.operands[1]) for op in operations):
        return Verdict("activation")
    return None
