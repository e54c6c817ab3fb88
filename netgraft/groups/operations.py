"""What each operation says about the axes of its operands and of its result.

A rule takes the operands' axes and answers with the result's. Operations that act on every channel alike pass axes on;
those that combine tensors position by position make axes equal; those that give positions a meaning fix them. An
operation without a rule fixes everything it reads, which is safe: what is fixed is never permuted, copied or dropped.

Operations that mix the channels of a run without weights of their own (a mean over channels, q k^T) allow permuting the
run, but copying its channels changes what they compute; they are noted in ``Call.mixed``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netgraft.graph import Node, Shape
from netgraft.groups.axes import Axis, Concat, Fixed, Product, Var, fix, normal, split_concat, split_product, unify

Axes = list[Axis]
Mixed = list[tuple[Axis, str, str]]  # an axis, how its positions are mixed, and by which node
Rule = Callable[["Call"], Axes]


class Call:
    """One operation: its operands' axes, its plain arguments, and the shape of its result."""

    def __init__(self, node: Node, axes: Mapping[str, Axes], mixed: Mixed) -> None:
        self.node = node
        self.shape = node.shape
        self.mixed = mixed
        self._axes = axes
        self.args: list[Any] = list(node.facts.get("args", ()))
        self.keywords: Mapping[str, Any] = {k: v for k, v in node.facts.items() if k != "args"}

    def tensor(self, value: Any) -> Axes | None:
        """The axes of an argument if it is a tensor; a constant's positions all have a meaning of their own."""
        if isinstance(value, str) and value.startswith("%"):
            return self._axes.get(value[1:])
        if isinstance(value, dict) and "constant" in value:
            return [Fixed(size) for size in value["constant"]]
        return None

    def tensors(self) -> list[Axes]:
        """Every tensor among the arguments, in order."""
        found = []
        for value in (*self.args, *self.keywords.values()):
            for item in value if isinstance(value, list) else [value]:
                if (axes := self.tensor(item)) is not None:
                    found.append(axes)
        return found

    def mixes(self, axis: Axis, how: str) -> None:
        """Note that the positions of an axis are mixed: "mean", "sum", "softmax" or "product"."""
        self.mixed.append((axis, how, self.node.id))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        if position < len(self.args):
            return self.args[position]
        return self.keywords.get(name, default)

    def dims(self, value: Any, rank: int) -> list[int]:
        """Axis numbers counted from the front; all axes for None."""
        if value is None:
            return list(range(rank))
        return [d % rank for d in (value if isinstance(value, list) else [value]) if isinstance(d, int)]


def result_of(call: Call) -> Axes:
    """The axes of the operation's result; its operands' axes are made equal or fixed on the way."""
    rule = RULES.get(call.node.op)
    if rule is not None:
        try:
            axes = rule(call)
        except (IndexError, KeyError, TypeError, ValueError, _NoRule):
            axes = None
        if axes is not None and [axis.size for axis in axes] == list(call.shape):
            return axes
    return unknown(call)


class _NoRule(Exception):
    """A rule that does not cover this use of its operation."""


def unknown(call: Call) -> Axes:
    """Fix everything the operation reads."""
    for axes in [*call.tensors(), *(call._axes[i] for i in call.node.inputs if i in call._axes)]:
        for axis in axes:
            fix(axis)
    return [Fixed(size) for size in call.shape]


# --------------------------------------------------------------------------------------------------------- element-wise


def broadcast(call: Call) -> Axes:
    """Position by position, with NumPy's broadcasting: axes of equal length are the same axis."""
    rank = len(call.shape)
    result: Axes = [Fixed(1)] * rank
    for axes in call.tensors():
        for i, axis in enumerate(axes, start=rank - len(axes)):
            if axis.size != 1 or call.shape[i] == 1:
                result[i] = axis if result[i].size == 1 else unify(result[i], axis)
    return [r if r.size == n else Var(n) for r, n in zip(result, call.shape, strict=True)]


def constant(call: Call) -> Axes:
    """The same value everywhere, so no position has a meaning."""
    return [Var(size) if size > 1 else Fixed(1) for size in call.shape]


# -------------------------------------------------------------------------------------------------------------- reshape


def reshape(call: Call) -> Axes:
    """Row-major reshape: runs of axes with equal products correspond."""
    return reshaped(call.tensors()[0], call.shape)


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes:
    """``axes`` seen with another shape."""
    before = [axis for axis in axes if axis.size != 1]
    after = [size for size in shape if size != 1]
    result: Axes = []
    while before or after:
        if not before or not after:
            raise _NoRule
        taken, sizes = [before.pop(0)], [after.pop(0)]
        while (have := Product(tuple(taken)).size) != (want := _product(sizes)):
            if have < want:
                taken.append(before.pop(0))
            else:
                sizes.append(after.pop(0))
        result += split_product(normal(Product(tuple(taken))), sizes)
    items = iter(result)
    return [Fixed(1) if size == 1 else next(items) for size in shape]


def permute(call: Call) -> Axes:
    axes = call.tensors()[0]
    return [axes[d] for d in call.dims(call.argument(1, "dims"), len(axes))]


def transpose(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    if call.node.op == "t":
        return axes[::-1]
    a, b = call.dims([call.args[1], call.args[2]], len(axes))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def expand(call: Call) -> Axes:
    """Along a broadcast axis all positions are equal, so none has a meaning of its own."""
    axes = call.tensors()[0]
    padded: Axes = [Fixed(1)] * (len(call.shape) - len(axes)) + list(axes)
    return [axis if axis.size == size else Var(size) for axis, size in zip(padded, call.shape, strict=True)]


def repeat(call: Call) -> Axes:
    axes = call.tensors()[0]
    padded: Axes = [Fixed(1)] * (len(call.shape) - len(axes)) + list(axes)
    return [
        axis if axis.size == size else Var(size) if axis.size == 1 else normal(Concat((axis,) * (size // axis.size)))
        for axis, size in zip(padded, call.shape, strict=True)
    ]


def repeat_interleave(call: Call) -> Axes:
    axes, repeats, dim = list(call.tensors()[0]), call.args[1], call.argument(2, "dim")
    d = call.dims(dim, len(axes))[0]
    axes[d] = normal(Product((axes[d], Fixed(repeats))))
    return axes


def concatenate(call: Call) -> Axes:
    parts = [axes for axes in call.tensors() if [a.size for a in axes] != [0]]
    d = call.dims(call.argument(1, "dim", 0), len(call.shape))[0]
    result = list(parts[0])
    for other in parts[1:]:
        for i, axis in enumerate(other):
            if i != d:
                result[i] = unify(result[i], axis)
    result[d] = normal(Concat(tuple(part[d] for part in parts)))
    return result


def stack(call: Call) -> Axes:
    parts = call.tensors()
    d = call.dims(call.argument(1, "dim", 0), len(call.shape))[0]
    result = list(parts[0])
    for other in parts[1:]:
        result = [unify(a, b) for a, b in zip(result, other, strict=True)]
    return [*result[:d], Fixed(len(parts)), *result[d:]]


def item(call: Call, sizes: Sequence[Shape]) -> list[Axes]:
    """The results of split, chunk or unbind, whose shapes are ``sizes``."""
    axes = call.tensors()[0]
    d = call.dims(call.argument(1 if call.node.op == "unbind" else 2, "dim", 0), len(axes))[0]
    if call.node.op == "unbind":
        fix(axes[d])
        return [axes[:d] + axes[d + 1 :] for _ in sizes]
    pieces = split_concat(axes[d], [shape[d] for shape in sizes])
    return [[*axes[:d], piece, *axes[d + 1 :]] for piece in pieces]


def slice_(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    d = call.dims(call.argument(1, "dim", 0), len(axes))[0]
    size, step = axes[d].size, call.argument(4, "step", 1)
    start = min(max((call.argument(2, "start") or 0) + (size if (call.argument(2, "start") or 0) < 0 else 0), 0), size)
    length = call.shape[d]
    if length == size:
        return axes
    if step != 1:
        fix(axes[d])
        axes[d] = Fixed(length)
        return axes
    sizes = [start, length, size - start - length]
    pieces = split_concat(axes[d], [n for n in sizes if n])
    axes[d] = pieces[1 if start else 0]
    return axes


def select(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    fix(axes.pop(call.dims(call.args[1], len(axes))[0]))
    return axes


def index(call: Call) -> Axes:
    """Indexing with one tensor; the other axes stay."""
    axes = list(call.tensors()[0])
    given = call.args[1] if isinstance(call.args[1], list) else [call.args[1]]
    places = [d for d, value in enumerate(given) if value is not None]
    if len(places) != 1:
        raise _NoRule
    d = places[0]
    fix(axes[d])
    return [*axes[:d], *map(Fixed, call.shape[d : len(call.shape) - len(axes) + d + 1]), *axes[d + 1 :]]


def index_select(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    d = call.dims(call.args[1], len(axes))[0]
    fix(axes[d])
    axes[d] = Fixed(call.shape[d])
    return axes


def along(position: int) -> Rule:
    """Operations along some axes that give these positions a meaning (roll, flip, cumsum)."""

    def rule(call: Call) -> Axes:
        axes = list(call.tensors()[0])
        for d in call.dims(call.argument(position, "dim", call.keywords.get("dims")), len(axes)):
            axes[d] = fix(axes[d])
        return axes

    return rule


def pad(call: Call) -> Axes:
    axes, widths = list(call.tensors()[0]), call.args[1]
    for i in range(len(widths) // 2):
        left, right = widths[2 * i], widths[2 * i + 1]
        d = len(axes) - 1 - i
        if left == right == 0:
            continue
        if left < 0 or right < 0:
            fix(axes[d])
            axes[d] = Fixed(call.shape[d])
        else:
            axes[d] = normal(Concat((Fixed(left), axes[d], Fixed(right))))
    return axes


def pixel_shuffle(call: Call) -> Axes:
    """[n, C r r, h, w] to [n, C, h r, w r]."""
    axes, r = call.tensors()[0], call.args[1]
    channels = Var(axes[1].size // r**2)
    unify(axes[1], Product((channels, Fixed(r * r))))
    return [axes[0], channels, *map(Fixed, call.shape[2:])]


def pixel_unshuffle(call: Call) -> Axes:
    axes, r = call.tensors()[0], call.args[1]
    return [axes[0], normal(Product((axes[1], Fixed(r * r)))), *map(Fixed, call.shape[2:])]


# ----------------------------------------------------------------------------------------------- reductions and spaces


def reduction(position: int) -> Rule:
    """Sums, means, norms over some axes: the order of what is reduced does not matter."""

    def rule(call: Call) -> Axes:
        axes = call.tensors()[0]
        dims = call.dims(call.argument(position, "dim"), len(axes))
        for d in dims:
            call.mixes(axes[d], "mean" if call.node.op in _MEANS else "sum")
        if len(call.shape) == len(axes):
            return [Fixed(1) if d in dims else axis for d, axis in enumerate(axes)]
        return [axis for d, axis in enumerate(axes) if d not in dims]

    return rule


def spatial(call: Call) -> Axes:
    """Pooling and resampling: every channel for itself, the positions in space keep their meaning."""
    axes = call.tensors()[0]
    for axis in axes[2:]:
        fix(axis)
    return [*axes[:2], *map(Fixed, call.shape[2:])]


def same(call: Call) -> Axes:
    """Every channel alike, in place."""
    return list(call.tensors()[0])


def softmax(call: Call) -> Axes:
    """Softmax over an axis commutes with every permutation of it."""
    axes = list(call.tensors()[0])
    for d in call.dims(call.argument(1, "dim"), len(axes)):
        call.mixes(axes[d], "softmax")
    return axes


def layer_norm(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    normalized = call.argument(1, "normalized_shape")
    for axis in axes[len(axes) - len(normalized) :]:
        call.mixes(axis, "mean")
    return axes


def group_norm(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    groups = call.argument(6 if call.node.op == "native_group_norm" else 1, "num_groups")
    inner = Var(axes[1].size // groups)
    unify(axes[1], Product((Var(groups), inner)))
    call.mixes(inner, "mean")
    return axes


def unfold(call: Call) -> Axes:
    """Sliding windows along an axis: its positions, and those in the windows, which come last, have a meaning."""
    axes = list(call.tensors()[0])
    d = call.dims(call.args[1], len(axes))[0]
    fix(axes[d])
    axes[d] = Fixed(call.shape[d])
    return [*axes, Fixed(call.args[2])]


def col2im(call: Call) -> Axes:
    axes = call.tensors()[0]
    channels = Var(call.shape[1])
    unify(axes[1], Product((channels, Fixed(axes[1].size // call.shape[1]))))
    fix(axes[2])
    return [axes[0], channels, *map(Fixed, call.shape[2:])]


def im2col(call: Call) -> Axes:
    axes = call.tensors()[0]
    kernel = call.shape[1] // axes[1].size
    return [axes[0], normal(Product((axes[1], Fixed(kernel)))), Fixed(call.shape[2])]


# ------------------------------------------------------------------------------------------------------------- products


def matmul(call: Call) -> Axes:
    """[..., n, k] @ [..., k, m]: the contracted axes are the same axis."""
    left, right = call.tensors()[-2:]
    if min(len(left), len(right)) < 2:
        raise _NoRule
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
        raise _NoRule
    inputs, output = equation.split("->")
    known: dict[str, Axis] = {}
    for labels, axes in zip(inputs.split(","), call.tensors(), strict=True):
        for label, axis in zip(labels, axes, strict=True):
            known[label] = unify(known[label], axis) if label in known else axis
    for label in known.keys() - set(output):
        call.mixes(known[label], "product")
    return [known[label] for label in output]


def attention(call: Call) -> Axes:
    """softmax(q k^T) v: q and k share the head dim, all share batch and heads."""
    q, k, v, *masks = call.tensors()
    for axis in (q[-2], k[-2]):
        fix(axis)
    unify(q[-1], k[-1])
    call.mixes(q[-1], "product")
    unify(k[-2], v[-2])
    batch = [unify(unify(a, b), c) for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True)]
    for mask in masks:
        for axis, other in zip(mask[::-1], [*batch, q[-2], k[-2]][::-1], strict=False):
            if axis.size != 1:
                unify(axis, other)
    return [*batch, q[-2], v[-1]]


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


_BROADCAST = """add sub mul div rsub maximum minimum where addcmul addcdiv lerp pow remainder fmod atan2 eq ne lt gt le ge
    logical_and logical_or logical_not masked_fill copy bitwise_and bitwise_or xlogy floor_divide true_divide"""
_SAME = """relu relu6 gelu silu sigmoid hardswish hardsigmoid tanh exp sqrt rsqrt neg abs clamp clamp_min clamp_max clone
    contiguous _to_copy detach alias dropout native_dropout hardtanh leaky_relu elu celu selu softplus mish erf log log1p
    reciprocal round floor ceil bernoulli lift_fresh to square sin cos softsign threshold
    nan_to_num sign isnan expm1 feature_dropout alpha_dropout fill
    zero logit conj _conj angle hardshrink softshrink view_as"""
_SPATIAL = """max_pool2d_with_indices max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
    interpolate grid_sampler_2d avg_pool1d avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    reflection_pad2d replication_pad2d reflection_pad1d upsample_nearest1d upsample_linear1d max_pool1d"""
_MEANS = frozenset({"mean", "amax", "amin", "max", "min", "var", "std", "any", "all"})  # equal copies change nothing
_CONSTANT = "zeros_like ones_like full_like empty_like new_zeros new_ones new_full"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_BROADCAST.split(), broadcast),
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_SPATIAL.split(), spatial),
    **dict.fromkeys(_CONSTANT.split(), constant),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "_reshape_alias"), reshape),
    **dict.fromkeys(("transpose", "t"), transpose),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "any", "all"), reduction(1)),
    **dict.fromkeys(("linalg_vector_norm", "norm"), reduction(2)),
    **dict.fromkeys(("mm", "bmm", "matmul", "baddbmm"), matmul),
    **dict.fromkeys(("softmax", "_softmax", "_log_softmax", "log_softmax"), softmax),
    **dict.fromkeys(("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"), layer_norm),
    **dict.fromkeys(("constant_pad_nd", "pad"), pad),
    **dict.fromkeys(("cumsum", "flip", "sort", "argsort", "logcumsumexp"), along(1)),
    "roll": along(2),
    "permute": permute,
    "expand": expand,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "cat": concatenate,
    "stack": stack,
    "slice": slice_,
    "select": select,
    "index": index,
    "index_select": index_select,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "native_group_norm": group_norm,
    "group_norm": group_norm,
    "im2col": im2col,
    "col2im": col2im,
    "unfold": unfold,
    "max": reduction(1),
    "min": reduction(1),
    "as_strided": same,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
SPLITS = frozenset({"split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "unbind"})
