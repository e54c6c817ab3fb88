"""Rules for operations that compute: position by position, over an axis, or as products of two activations."""

from __future__ import annotations

import re

from netgraft.channels.groups.axes import Axis, Fixed, Product, fix, run, unify
from netgraft.channels.groups.call import Axes, Call, NoRule, Rule


def broadcast(call: Call) -> Axes:
    """Position by position, with NumPy's broadcasting: axes of equal length are the same axis."""
    rank = len(call.shape)
    result: Axes = [Fixed(1)] * rank
    for axes in call.tensors():
        for i, axis in enumerate(axes, start=rank - len(axes)):
            if axis.size != 1 or call.shape[i] == 1:
                result[i] = axis if result[i].size == 1 else unify(result[i], axis)
    return [r if r.size == n else run(n) for r, n in zip(result, call.shape, strict=True)]


def same(call: Call) -> Axes:
    """Every channel alike, in place."""
    return list(call.tensors()[0])


def constant(call: Call) -> Axes:
    """The same value everywhere, so no position has a meaning."""
    return [run(size) for size in call.shape]


# ------------------------------------------------------------------------------------------------- reductions and norms


def reduction(position: int) -> Rule:
    """Sums, means, norms over some axes: the order of what is reduced does not matter."""

    def rule(call: Call) -> Axes:
        given = call.argument(position, "dim")
        if call.node.op in ("max", "min") and call.tensor(given) is not None:
            return broadcast(call)  # of two tensors
        axes = call.tensors()[0]
        dims = call.dims(given, len(axes)) or list(range(len(axes)))
        how = _HOW.get(call.node.op, "sum")
        if call.node.op in ("var", "std", "var_mean") and call.keywords.get("correction", 1) != 0:
            how = "variance"  # divided by one less than the number of channels
        for d in dims:
            call.mixes(axes[d], how)
        if len(call.shape) == len(axes):
            return [Fixed(1) if d in dims else axis for d, axis in enumerate(axes)]
        return [axis for d, axis in enumerate(axes) if d not in dims]

    return rule


_HOW = dict.fromkeys(("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "any", "all"), "mean")
"""Equal copies of every channel change nothing."""


def softmax(call: Call) -> Axes:
    """Softmax over an axis commutes with every permutation of it."""
    axes = list(call.tensors()[0])
    for d in call.dims(call.argument(1, "dim"), len(axes)):
        call.mixes(axes[d], "softmax")
    return axes


def layer_norm(call: Call) -> Axes:
    """A norm without weights of a layer; any scale and shift are along the last axes."""
    axes = list(call.tensors()[0])
    normalized = call.argument(1, "normalized_shape")
    for axis in axes[len(axes) - len(normalized) :]:
        call.mixes(axis, "mean")
    for other in call.tensors()[1:]:
        for one, two in zip(other[::-1], axes[::-1], strict=False):
            unify(one, two)
    return axes


def group_norm(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    number = call.argument(6 if call.node.op == "native_group_norm" else 1, "num_groups")
    axes[1] = grouped(axes[1], number, call)
    for other in call.tensors()[1:]:
        unify(other[0], axes[1])
    return axes


def grouped(channels: Axis, number: int, call: Call) -> Axis:
    """Channels that are normed in ``number`` groups: groups may change places, channels inside them too."""
    inner = run(channels.size // number)
    call.mixes(inner, "mean")
    return unify(channels, Product((run(number), inner)))


def batch_norm(call: Call) -> Axes:
    """Axis 1 channel by channel."""
    axes = list(call.tensors()[0])
    for other in call.tensors()[1:]:
        unify(other[0], axes[1])
    return axes


# ---------------------------------------------------------------------------------------------------------------- space


def convolution(call: Call) -> Axes:
    """A kernel that is no weight, channel by channel: a blur."""
    data, kernel, *bias = call.tensors()
    groups = call.argument(8 if call.node.op == "convolution" else 6, "groups", 1)
    if bias or len(data) < 3 or groups != data[1].size or kernel[0].size != groups or kernel[1].size != 1:
        raise NoRule
    for axis in (*data[2:], *kernel[2:]):
        fix(axis)
    return [data[0], unify(data[1], kernel[0]), *map(Fixed, call.shape[2:])]


def spatial(call: Call) -> Axes:
    """Pooling and resampling: every channel for itself, the positions in space keep their meaning."""
    axes, *others = call.tensors()
    digits = re.search(r"(\d)d", call.node.op)
    number = int(digits[1]) if digits else len(axes) - 2
    for axis in [*axes[len(axes) - number :], *(axis for other in others for axis in other)]:
        fix(axis)
    return [*axes[: len(axes) - number], *map(Fixed, call.shape[len(axes) - number :])]


# ------------------------------------------------------------------------------------------------------------- products


def matmul(call: Call) -> Axes:
    """[..., n, k] @ [..., k, m]: the contracted axes are the same axis."""
    left, right = call.tensors()[-2:]
    if min(len(left), len(right)) < 2:
        raise NoRule
    unify(left[-1], right[-2])
    call.mixes(left[-1], "product")
    batch: Axes = []
    rank = max(len(left), len(right)) - 2
    for i in range(rank):
        pair = [side[i - rank - 2] for side in (left, right) if len(side) >= rank - i + 2]
        wide = [axis for axis in pair if axis.size != 1] or pair
        batch.append(unify(*wide) if len(wide) == 2 else wide[0])
    result = [*batch, left[-2], right[-1]]
    if call.node.op == "baddbmm":
        for axis, other in zip(call.tensors()[0][::-1], result[::-1], strict=False):
            if axis.size != 1:
                unify(axis, other)
    return result


def einsum(call: Call) -> Axes:
    equation = str(call.args[0]).replace(" ", "")
    if "." in equation or "->" not in equation:
        raise NoRule
    inputs, output = equation.split("->")
    known: dict[str, Axis] = {}
    for labels, axes in zip(inputs.split(","), call.tensors(), strict=True):
        for label, axis in zip(labels, axes, strict=True):
            if label in known and known[label].size != axis.size:
                raise NoRule  # an axis of length one, stretched
            known[label] = unify(known[label], axis) if label in known else axis
    for label in known.keys() - set(output):
        call.mixes(known[label], "product")
    return [known[label] for label in output]


def attention(call: Call) -> Axes:
    """softmax(q k^T) v: q and k share the head dim, all share batch and heads; a head of k may serve several of q."""
    q, k, v, *masks = call.tensors()
    if call.argument(5, "is_causal", False):
        for axis in (q[-2], k[-2]):
            fix(axis)
    unify(q[-1], k[-1])
    call.mixes(q[-1], "product")
    call.mixes(unify(k[-2], v[-2]), "softmax")
    batch: Axes = []
    for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True):
        b = unify(b, c)
        if a.size != b.size and b.size > 1 and a.size % b.size == 0:
            b = Product((b, run(a.size // b.size)))
        batch.append(unify(a, b))
    for mask in masks:
        for axis, other in zip(mask[::-1], [*batch, q[-2], k[-2]][::-1], strict=False):
            if axis.size != 1:
                unify(axis, other)
    return [*batch, q[-2], v[-1]]
