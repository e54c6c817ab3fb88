"""The inner structure of a tensor axis: which of its positions are channels that may be exchanged, and with what.

An axis is a tree. A ``Var`` is a run of channels that may be permuted (or copied, dropped) together by one index map;
a ``Fixed`` run may not (pixels, classes, batch). A ``Product`` is an axis made by flattening several, outermost first
(heads x head dim; channels x height x width); a ``Concat`` one made by putting several behind one another.

For example, ``Conv2d(2, 4) -> BatchNorm2d(4) -> ReLU -> Flatten -> Linear(4 * 3 * 3, 5)`` on a map of 3 x 3 pixels::

    conv.weight    [c, Fixed(2), Fixed(3), Fixed(3)]    c = Var(4): the channels between the layers
    bn.weight      [c]                                  the norm works channel by channel
    linear.weight  [Fixed(5), Product(c, Fixed(9))]     4 channels, and behind each its 9 pixels

Permute c, in all three tensors, and the network computes the same. In ``cat([x, y], 1)`` the channels would be
``Concat(c, d)``: each run may be permuted, but not mixed with the other.

A ``Fixed`` run remembers ``why``: what was being looked at when it was made.

Operations of a network make axes equal. ``unify`` records that, splitting runs where the two structures differ, as
unification does in logic programming; where no common structure exists both become ``Fixed``, which is always safe.
Nothing here imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

from netgraft.channels.index_map import NEW

Axis: TypeAlias = "Var | Fixed | Product | Concat"
because: ContextVar[str] = ContextVar("because", default="")
"""What is being looked at: the reason of every run fixed meanwhile. Explains, and decides nothing."""
_numbers = itertools.count()


@dataclass(eq=False)
class Var:
    """A run of exchangeable channels; once bound, a name for another axis of the same size."""

    size: int
    bound: Axis | None = None
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass(frozen=True)
class Fixed:
    """A run of positions with a meaning of their own."""

    size: int
    why: str = field(default_factory=because.get, compare=False)


@dataclass(frozen=True)
class Product:
    """Several axes flattened into one, the outermost first."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return prod(part.size for part in self.parts)


@dataclass(frozen=True)
class Concat:
    """Several axes behind one another."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


def run(size: int) -> Axis:
    """A new run of exchangeable channels."""
    return Var(size) if size > 1 else Fixed(size)


def normal(axis: Axis) -> Axis:
    """The axis with bound names replaced, nesting removed, and neighbouring fixed runs merged."""
    if isinstance(axis, Var):
        if axis.bound is None:
            return axis
        axis.bound = normal(axis.bound)
        return axis.bound
    if isinstance(axis, Fixed):
        return axis
    kind = type(axis)
    flat: list[Axis] = []
    for part in map(normal, axis.parts):
        flat.extend(part.parts if isinstance(part, kind) else (part,))
    neutral = 1 if kind is Product else 0
    merged: list[Axis] = []
    for part in flat:
        if isinstance(part, Fixed) and part.size == neutral:
            continue
        if isinstance(part, Fixed) and merged and isinstance(merged[-1], Fixed):
            size = merged[-1].size * part.size if kind is Product else merged[-1].size + part.size
            merged[-1] = Fixed(size, merged[-1].why or part.why)
        else:
            merged.append(part)
    if not merged:
        return Fixed(neutral)
    return merged[0] if len(merged) == 1 else kind(tuple(merged))


def variables(axis: Axis) -> Iterator[Var]:
    """The free runs of channels in an axis, in order, repeats included."""
    axis = normal(axis)
    if isinstance(axis, Var):
        yield axis
    elif not isinstance(axis, Fixed):
        for part in axis.parts:
            yield from variables(part)


def reasons(axis: Axis) -> Iterator[str]:
    """Why the fixed runs in an axis are fixed, in order, repeats included."""
    axis = normal(axis)
    if isinstance(axis, Fixed):
        yield axis.why
    elif not isinstance(axis, Var):
        for part in axis.parts:
            yield from reasons(part)


def fix(axis: Axis) -> Fixed:
    """Give every position of the axis a meaning of its own."""
    for var in list(variables(axis)):
        if var.bound is None:
            var.bound = Fixed(var.size)
    return Fixed(axis.size)


def unify(one: Axis, other: Axis) -> Axis:
    """Make two axes of equal size one and the same, and return it."""
    one, other = normal(one), normal(other)
    if one is other or one == other:
        return one
    if one.size != other.size:
        fix(one)
        return fix(other)
    if isinstance(other, Var) and not isinstance(one, Var):
        one, other = other, one
    if isinstance(one, Var):
        if any(var is one for var in variables(other)):
            return fix(other)
        # The older name stays, so that groups are named after the first layer that made them.
        if isinstance(other, Var) and other.number > one.number:
            one, other = other, one
        one.bound = other
        return other
    if isinstance(one, Fixed) or isinstance(other, Fixed):
        fix(one)
        return fix(other)
    if isinstance(one, Product) and isinstance(other, Product):
        done = _unify_factors(list(one.parts), list(other.parts))
    elif isinstance(one, Concat) and isinstance(other, Concat):
        done = _unify_segments(one, other)
    else:
        concat, product = (one, other) if isinstance(one, Concat) else (other, one)
        segments = split_concat(product, [part.size for part in concat.parts])  # type: ignore[union-attr]
        for segment, part in zip(segments, concat.parts, strict=True):  # type: ignore[union-attr]
            unify(segment, part)
        done = True
    if not done:
        fix(one)
        fix(other)
    return normal(one)


def _unify_factors(ones: list[Axis], others: list[Axis]) -> bool:
    while ones and others:
        one, other = ones.pop(0), others.pop(0)
        if one.size > other.size:
            one, other, ones, others = other, one, others, ones
        if other.size % one.size:
            return False
        if one.size < other.size:
            parts = split_product(other, [one.size, other.size // one.size])
            other = parts[0]
            others.insert(0, parts[1])
        unify(one, other)
    return not ones and not others


def _unify_segments(one: Concat, other: Concat) -> bool:
    ends = sorted({end for axis in (one, other) for end in itertools.accumulate(p.size for p in axis.parts)})
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for a, b in zip(split_concat(one, sizes), split_concat(other, sizes), strict=True):
        unify(a, b)
    return True


def split_product(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The factors of an axis that is viewed as ``sizes``, outermost first; their product is the axis's size."""
    axis = normal(axis)
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, Var):
        parts = [run(size) for size in sizes]
        axis.bound = Product(tuple(parts))
        return parts
    if isinstance(axis, Fixed):
        return [Fixed(size, axis.why) for size in sizes]
    if isinstance(axis, Concat):
        chunks = split_concat(axis, [axis.size // sizes[0]] * sizes[0])
        for chunk in chunks[1:]:
            unify(chunks[0], chunk)
        return [Fixed(sizes[0]), *split_product(chunks[0], sizes[1:])]
    return _split_factors(axis, list(sizes))


def _split_factors(axis: Product, sizes: list[int]) -> list[Axis]:
    factors, result = list(axis.parts), list[Axis]()
    for size in sizes:
        taken: list[Axis] = []
        while size > 1:
            factor = factors.pop(0) if factors else Fixed(1)
            if size % factor.size == 0:
                taken.append(factor)
                size //= factor.size
            elif factor.size % size == 0:
                outer, inner = split_product(factor, [size, factor.size // size])
                taken.append(outer)
                factors.insert(0, inner)
                size = 1
            else:
                fix(axis)
                return [Fixed(s) for s in sizes]
        result.append(normal(Product(tuple(taken))))
    return result


def split_concat(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The consecutive pieces of an axis; ``sizes`` add up to its size."""
    axis = normal(axis)
    if len(sizes) == 1:
        return [axis]
    if isinstance(axis, Var):
        parts = [run(size) for size in sizes]
        axis.bound = Concat(tuple(parts))
        return parts
    if isinstance(axis, Fixed):
        return [Fixed(size, axis.why) for size in sizes]
    if isinstance(axis, Concat):
        return _split_segments(axis, list(sizes))
    first, *rest = axis.parts
    inner = normal(Product(tuple(rest)))
    if all(size % inner.size == 0 for size in sizes):
        pieces = split_concat(first, [size // inner.size for size in sizes])
        return [normal(Product((piece, inner))) for piece in pieces]
    if isinstance(first, Fixed):
        return split_concat(Concat((inner,) * first.size), sizes)
    fix(axis)
    return [Fixed(size) for size in sizes]


def _split_segments(axis: Concat, sizes: list[int]) -> list[Axis]:
    segments, result = list(axis.parts), list[Axis]()
    for size in sizes:
        taken: list[Axis] = []
        while size > 0:
            segment = normal(segments.pop(0))
            if isinstance(segment, Concat):  # an earlier split of the same axis split this segment too
                segments[:0] = segment.parts
                continue
            if segment.size > size:
                segment, rest = split_concat(segment, [size, segment.size - size])
                segments.insert(0, rest)
            taken.append(segment)
            size -= segment.size
        result.append(normal(Concat(tuple(taken))))
    return result


def positions(
    axis: Axis, index: Callable[[Var], Sequence[int]], size: Callable[[Var], int] = lambda var: var.size
) -> list[int]:
    """Source positions of an axis, given for every run of channels a map to source channels.

    ``index(var)[j]`` is the source channel of channel j, -1 for none; ``size(var)`` the number of source channels. With
    the identity as ``index`` the result is the identity.
    """
    axis = normal(axis)
    if isinstance(axis, Fixed):
        return list(range(axis.size))
    if isinstance(axis, Var):
        return list(index(axis))
    if isinstance(axis, Concat):
        result, offset = [], 0
        for part in axis.parts:
            result += [NEW if i == NEW else offset + i for i in positions(part, index, size)]
            offset += source_size(part, size)
        return result
    result = [0]
    for part in axis.parts:
        inner, step = positions(part, index, size), source_size(part, size)
        result = [NEW if NEW in (outer, i) else outer * step + i for outer in result for i in inner]
    return result


def source_size(axis: Axis, size: Callable[[Var], int] | Mapping[Var, int]) -> int:
    """Length of the axis when every run of channels has the size that ``size`` says."""
    axis = normal(axis)
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Var):
        return size(axis) if callable(size) else size[axis]
    lengths = [source_size(part, size) for part in axis.parts]
    return prod(lengths) if isinstance(axis, Product) else sum(lengths)
