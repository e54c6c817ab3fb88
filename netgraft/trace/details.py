"""What a recorded layer does besides its main operation: what its kind and its tensors do not tell.

A module that owns one weight is one layer, whatever else its forward pass does. Who wants to know what happens to each
channel must know the rest: the axis a norm works on, arithmetic on the weight, operations that mix channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import fx

from netgraft.architecture.kinds import Kind, Role, kind_named, normalising
from netgraft.architecture.operations import (
    BATCH_NORMS,
    COMBINES,
    ELEMENTWISE,
    GROUP_NORMS,
    KEEPS_ORDER,
    KERNEL_CALLS,
    PERMUTES,
    REDUCES,
)
from netgraft.trace.classify import Operand, Operation
from netgraft.trace.functional import operation_name

EPS = 1e-5
"""What PyTorch's norms add to the variance unless told otherwise."""


def details(node: fx.Node, kind: str, own: frozenset[str]) -> dict[str, Any]:
    """Facts about one call of a layer of ``kind`` with the parameters ``own``; only what is out of the ordinary.

    ``eps``: a batch norm's, where it is not 1e-5. ``axis``: the axis of a norm's channels, of those of its input;
    missing if it is not known. ``groups``: a group norm's. ``prepared``: operations on the weights before they are
    used. ``others``: further operations on data that may treat channels unlike one another.
    """
    operations: Sequence[Operation] = node.meta.get("operations", ())
    rules = kind_named(kind)
    if rules.by_class:
        return {}
    if not any(_is_data(o, own) for op in operations for o in op.operands):  # fed by a constant
        operations = [replace(op, operands=tuple(replace(o, constant=False) for o in op.operands)) for op in operations]
    shape = tuple(node.meta.get("in_shape", ()))
    found: dict[str, Any] = {}
    if prepared := [*_prepared(operations, own, rules), *_prepared_outside(node, own)]:
        found["prepared"] = prepared
    if rules.has_statistics and (eps := _eps(operations)) not in (None, EPS):
        found["eps"] = eps
    if rules.role is Role.NORM and not rules.has_statistics:
        groups, axis = _norm(operations, own, shape)
        found |= {"groups": groups} if groups > 1 else {}
        found |= {"axis": axis} if axis is not None else {}
    if others := list(dict.fromkeys(_others(operations, own, rules, shape))):
        found["others"] = others
    return found


def _eps(operations: Sequence[Operation]) -> float | None:
    """What a batch norm adds to the variance: the last number of its arguments that is not whole."""
    for op in operations:
        if op.name in BATCH_NORMS:
            return next((arg for arg in reversed(op.args) if type(arg) is float), None)
    return None


def _is_weight(operand: Operand, own: frozenset[str]) -> bool:
    return bool(operand.params) and operand.params <= own


def _is_data(operand: Operand, own: frozenset[str]) -> bool:
    return not operand.constant and not _is_weight(operand, own)


def _prepared(operations: Sequence[Operation], own: frozenset[str], kind: Kind) -> Iterator[str]:
    """Names of the operations on nothing but weights and constants; "constant" for one that is no single number."""
    if any(op.name in KERNEL_CALLS for op in operations):
        operations = list(takewhile(lambda op: op.name not in KERNEL_CALLS, operations))
    known = {o.shape for op in operations for o in op.operands if _is_weight(o, own) and not o.inside}
    arithmetic = []
    for op in operations:
        if any(_is_data(o, own) for o in op.operands) or not any(_is_weight(o, own) for o in op.operands):
            continue
        if op.name in KEEPS_ORDER:
            whole = max((s for s in known), key=len, default=())
            if op.shape not in known and whole[:1] not in (op.shape[:1], op.shape[1:2]) and len(op.shape) > 1:
                arithmetic.append("reshape")
        elif op.name not in PERMUTES or kind.convolves:
            yield op.name
            arithmetic.append("")
            if any(o.constant and max(o.shape, default=1) > 1 for o in op.operands):
                yield "constant"
    if "" in arithmetic and "reshape" in arithmetic:
        yield "reshape"


def _prepared_outside(node: fx.Node, own: frozenset[str]) -> Iterator[str]:
    """The same for a layer whose code computes its weights in operations of their own."""
    if node.op != "call_function":
        return
    stack, seen = list(node.all_input_nodes), set[fx.Node]()
    while stack:
        current = stack.pop()
        params = current.meta.get("params")
        if current in seen or not params or not params <= own:
            continue
        seen.add(current)
        if current.op == "call_function":
            name = operation_name(current)
            if name not in KEEPS_ORDER | PERMUTES | {"getitem"}:
                yield name
            stack += current.all_input_nodes
            if any(n.op == "get_attr" and not n.meta["params"] for n in current.all_input_nodes):
                yield "constant"


def _others(operations: Sequence[Operation], own: frozenset[str], kind: Kind, shape: tuple[int, ...]) -> Iterator[str]:
    norm, kernels, norms = kind.role is Role.NORM, 0, normalising()
    for op in operations:
        data = [o for o in op.operands if _is_data(o, own)]
        if not data:
            continue
        if op.name in KERNEL_CALLS or (op.name in norms and norm):
            kernels += 1
            if kernels > 1 or (op.name in norms and kind.out_axis == 1 and data[0].shape != shape):
                yield op.name
        elif op.name in KEEPS_ORDER:
            same_end = op.shape[-1:] == data[0].shape[-1:]
            if not (same_end or norm or op.shape == data[0].shape):
                yield op.name
        elif op.name in ELEMENTWISE or (op.name in COMBINES and (norm or len(data) == 1)):
            if any(o.constant and max(o.shape, default=1) > 1 for o in op.operands):
                yield op.name
        elif op.name == "constant_pad_nd" and kind.convolves and len(op.args[1]) <= 2 * (len(shape) - 2):
            continue
        elif not (norm and op.name in PERMUTES | REDUCES):
            yield op.name


def _norm(operations: Sequence[Operation], own: frozenset[str], shape: tuple[int, ...]) -> tuple[int, int | None]:
    """Number of groups, and the channel axis of the input if it is clear which one it is."""
    order: list[int] | None = list(range(len(shape)))  # axes of the input as they stand by now
    groups, axis = 1, None
    for op in operations:
        data = [o for o in op.operands if _is_data(o, own)]
        weights = [o for o in op.operands if _is_weight(o, own)]
        if not data:
            continue
        if op.name in ("permute", "transpose") and order and axis is None and len(op.shape) == len(order):
            order = _swapped(order, op)
        elif op.name in GROUP_NORMS:
            return op.args[6 if op.name == "native_group_norm" else 1], 1
        elif op.name in normalising():
            same = order is not None and data[0].shape == tuple(shape[d] for d in order)
            axis = order[-1] if same and order else len(shape) - 1 if shape and data[0].shape[-1] == shape[-1] else None
            return 1, axis
        elif op.name in KEEPS_ORDER and op.shape != data[0].shape and op.name not in ("expand", "unsqueeze", "squeeze"):
            if data[0].shape == shape and len(op.shape) == len(shape) + 1 and op.shape[1] * op.shape[2] == shape[1]:
                groups = op.shape[1]  # [batch, groups, channels of a group, ...]
            elif op.shape != shape:
                order = None
        elif op.name in COMBINES and weights and axis is None:
            for place, size in enumerate(reversed(weights[0].shape), start=1):
                if size > 1 and order is not None and place <= len(order):
                    axis = order[-place]
    return groups, axis


def _swapped(order: list[int], op: Operation) -> list[int]:
    if op.name == "permute":
        return [order[d] for d in op.args[1]]
    result, (a, b) = list(order), op.args[1:3]
    result[a], result[b] = result[b], result[a]
    return result
