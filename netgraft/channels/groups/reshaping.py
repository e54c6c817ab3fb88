"""Rules for operations that put the same numbers elsewhere: reshapes, slices, concatenation, pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from netgraft.architecture.graph import Shape
from netgraft.channels.groups.axes import Concat, Fixed, Product, fix, normal, run, split_concat, split_product, unify
from netgraft.channels.groups.call import Axes, Call, NoRule, Rule


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
            raise NoRule
        taken, sizes = [before.pop(0)], [after.pop(0)]
        while (have := Product(tuple(taken)).size) != (want := prod(sizes)):
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
    return [axis if axis.size == size else run(size) for axis, size in zip(padded, call.shape, strict=True)]


def repeat(call: Call) -> Axes:
    """The axis again and again."""
    axes = call.tensors()[0]
    padded: Axes = [Fixed(1)] * (len(call.shape) - len(axes)) + list(axes)
    return [
        axis if axis.size == size else run(size) if axis.size == 1 else normal(Concat((axis,) * (size // axis.size)))
        for axis, size in zip(padded, call.shape, strict=True)
    ]


def repeat_interleave(call: Call) -> Axes:
    """Every position several times in a row: which copy stands where does not matter."""
    axes, repeats, dim = list(call.tensors()[0]), call.args[1], call.argument(2, "dim")
    if type(repeats) is not int or dim is None:
        raise NoRule
    d = call.dims(dim, len(axes))[0]
    axes[d] = normal(Product((axes[d], run(repeats))))
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


def pieces(call: Call, sizes: Sequence[Shape]) -> list[Axes]:
    """The results of split, chunk or unbind, whose shapes are ``sizes``."""
    axes = call.tensors()[0]
    if call.node.op == "unbind":
        d = call.dims(call.argument(1, "dim", 0), len(axes))[0]
        fix(axes[d])
        return [axes[:d] + axes[d + 1 :] for _ in sizes]
    d = call.dims(call.argument(2, "dim", 0), len(axes))[0]
    parts = split_concat(axes[d], [shape[d] for shape in sizes])
    return [[*axes[:d], part, *axes[d + 1 :]] for part in parts]


def slice_(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    d = call.dims(call.argument(1, "dim", 0), len(axes))[0]
    size, step = axes[d].size, call.argument(4, "step", 1)
    start = call.argument(2, "start") or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    length = call.shape[d]
    if length == size:
        return axes
    if step != 1 or not length:
        if length:
            fix(axes[d])
        axes[d] = Fixed(length)
        return axes
    sizes = [start, length, size - start - length]
    parts = split_concat(axes[d], [n for n in sizes if n])
    axes[d] = parts[1 if start else 0]
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
        raise NoRule
    d = places[0]
    for axis in (axes[d], *(call.tensor(given[d]) or ())):
        fix(axis)
    return [*axes[:d], *map(Fixed, call.shape[d : len(call.shape) - len(axes) + d + 1]), *axes[d + 1 :]]


def index_select(call: Call) -> Axes:
    axes = list(call.tensors()[0])
    d = call.dims(call.args[1], len(axes))[0]
    for axis in (axes[d], *(call.tensor(call.argument(2, "index")) or ())):
        fix(axis)
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
    """Padding with a constant; any other mode gives the positions a meaning."""
    axes, widths = list(call.tensors()[0]), call.args[1]
    constant = call.node.op == "constant_pad_nd" or call.argument(2, "mode", "constant") == "constant"
    for i in range(len(widths) // 2):
        left, right = widths[2 * i], widths[2 * i + 1]
        d = len(axes) - 1 - i
        if left == right == 0:
            continue
        if left < 0 or right < 0 or not constant:
            fix(axes[d])
            axes[d] = Fixed(call.shape[d])
        else:
            axes[d] = normal(Concat((Fixed(left), axes[d], Fixed(right))))
    return axes


def pixel_shuffle(call: Call) -> Axes:
    """[..., C r r, h, w] to [..., C, h r, w r]."""
    axes, r = call.tensors()[0], call.args[1]
    channels = run(axes[-3].size // r**2)
    unify(axes[-3], Product((channels, Fixed(r * r))))
    for axis in axes[-2:]:
        fix(axis)
    return [*axes[:-3], channels, *map(Fixed, call.shape[-2:])]


def pixel_unshuffle(call: Call) -> Axes:
    """[..., C, h r, w r] to [..., C r r, h, w]."""
    axes, r = call.tensors()[0], call.args[1]
    for axis in axes[-2:]:
        fix(axis)
    return [*axes[:-3], normal(Product((axes[-3], Fixed(r * r)))), *map(Fixed, call.shape[-2:])]


def as_strided(call: Call) -> Axes:
    """Other strides for axes of length one, which is how a pooled map is stored; nothing else."""
    axes, shape, strides = call.tensors()[0], call.shape, call.argument(2, "stride")
    long = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    plain = len(long) <= 2 and [stride for _, stride in long] == [long[-1][0], 1][-len(long) :] if long else True
    if not plain or call.argument(3, "storage_offset") or [axis.size for axis in axes] != list(shape):
        raise NoRule
    return list(axes)


def channel_shuffle(call: Call) -> Axes:
    """[n, g c, ...] to [n, c g, ...]."""
    axes, groups = list(call.tensors()[0]), call.args[1]
    outer, inner = split_product(axes[1], [groups, axes[1].size // groups])
    axes[1] = normal(Product((inner, outer)))
    return axes


def unfold(call: Call) -> Axes:
    """Sliding windows along an axis: its positions, and those in the windows, which come last, have a meaning."""
    axes = list(call.tensors()[0])
    d = call.dims(call.args[1], len(axes))[0]
    fix(axes[d])
    axes[d] = Fixed(call.shape[d])
    return [*axes, Fixed(call.args[2])]


def col2im(call: Call) -> Axes:
    """[n, C k, l] to [n, C, h, w]."""
    axes = call.tensors()[0]
    if len(axes) != 3:
        raise NoRule
    channels = run(call.shape[1])
    unify(axes[1], Product((channels, Fixed(axes[1].size // call.shape[1]))))
    fix(axes[2])
    return [axes[0], channels, *map(Fixed, call.shape[2:])]


def im2col(call: Call) -> Axes:
    """[n, C, h, w] to [n, C k, l]."""
    axes = call.tensors()[0]
    if len(axes) != 4:
        raise NoRule
    for axis in axes[2:]:
        fix(axis)
    kernel = call.shape[1] // axes[1].size
    return [axes[0], normal(Product((axes[1], Fixed(kernel)))), Fixed(call.shape[2])]
