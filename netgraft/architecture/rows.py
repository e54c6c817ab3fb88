"""Which rows of a layer's weight reach which operation: where a fused projection is taken apart, and in which order.

A fused q/k/v projection is one layer whose output is cut into three; which rows are the queries depends on how it is
cut: ``[q | k | v]``, or head by head ``[q k v | q k v | ...]``. An output is followed as a strided view of itself, so
reshapes, permutations and cuts cost nothing, whatever the sizes. For example, 12 rows seen as ``[3, heads=2, 2]`` and
cut along the first axis give the queries rows 0 to 3, in the order (head, place in the head). Nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from netgraft.architecture.graph import Layer, LayerGraph, Node, Shape
from netgraft.architecture.operations import COPIES, DROPS_OUT, PERMUTES, RESHAPES, SPLITS

Factor = tuple[int, int]
"""(size, stride): positions 0 to size - 1, each ``stride`` elements behind the one before."""

LONGEST = 64
"""Most steps that a row is followed through views."""


@dataclass(frozen=True)
class View:
    """A strided view of a tensor: each axis is a product of factors, the outermost first."""

    offset: int
    axes: tuple[tuple[Factor, ...], ...]

    @classmethod
    def whole(cls, shape: Shape) -> View:
        """A tensor in row-major order, as it is."""
        strides = [prod(shape[d + 1 :]) for d in range(len(shape))]
        return cls(0, tuple(((n, s),) if n > 1 else () for n, s in zip(shape, strides, strict=True)))

    def size(self, dim: int) -> int:
        return prod(n for n, _ in self.axes[dim])

    def reshaped(self, shape: Shape) -> View | None:
        """The same elements in the same order with another shape; None where that is no product of factors."""
        factors = [factor for axis in self.axes for factor in axis]
        axes: list[tuple[Factor, ...]] = []
        for wanted in shape:
            left, axis = wanted, list[Factor]()
            while left > 1:
                if not factors:
                    return None
                size, stride = factors.pop(0)
                if left % size == 0:
                    axis.append((size, stride))
                    left //= size
                elif size % left == 0:  # the outer part of a factor; the rest stays for the next axis
                    axis.append((left, stride * (size // left)))
                    factors.insert(0, (size // left, stride))
                    left = 1
                else:
                    return None
            axes.append(tuple(axis))
        return None if factors else View(self.offset, tuple(axes))

    def permuted(self, dims: list[int]) -> View:
        return View(self.offset, tuple(self.axes[d] for d in dims))

    def selected(self, dim: int, place: int) -> View:
        """One position of an axis, which goes."""
        cut = self.sliced(dim, place % self.size(dim), 1)
        offset = self.offset if cut is None else cut.offset
        return View(offset, self.axes[:dim] + self.axes[dim + 1 :])

    def sliced(self, dim: int, start: int, length: int) -> View | None:
        """``length`` positions of an axis; None where these are no product of factors."""
        axis, offset, kept = list(self.axes[dim]), self.offset, list[Factor]()
        while axis:
            _, stride = axis.pop(0)
            inner = prod(n for n, _ in axis)
            if length >= inner:  # whole runs of what lies behind this factor
                if start % inner or length % inner:
                    return None
                offset += start // inner * stride
                kept.append((length // inner, stride))
                kept += axis
                break
            if start // inner != (start + length - 1) // inner:
                return None
            offset += start // inner * stride
            start %= inner
        factors = tuple((n, s) for n, s in kept if n > 1)
        return View(offset, (*self.axes[:dim], factors, *self.axes[dim + 1 :]))


@dataclass(frozen=True)
class Reader:
    """An operation that reads some rows of a layer: its node, the place of the operand, and the rows in order."""

    node: str
    operand: int
    rows: tuple[int, ...]


def operands(node: Node) -> list[str]:
    """The ids of the nodes that an operation reads, in the order of its arguments, repeats included."""
    found = list(_ids([node.facts.get("args", ()), [v for k, v in node.facts.items() if k != "args"]]))
    known = [id for id in found if id in node.inputs]
    return known + [id for id in node.inputs if id not in known]


def _ids(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("%"):
        yield value[1:]
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _ids(part)


def readers(graph: LayerGraph, call: Node) -> list[Reader]:
    """What reads the output of a layer's call, with the rows of the weight that reach it.

    A place where the rows can no longer be told reads all of them.
    """
    layer = graph.layer_of(call)
    if layer is None or not call.shape:
        return []
    found: list[Reader] = []
    stack: list[tuple[Node, View, int]] = [(call, View.whole(call.shape), 0)]
    while stack:
        node, view, steps = stack.pop()
        for name in graph.readers[node.id]:
            reader = graph.by_id[name]
            after = _viewed(reader, view) if steps < LONGEST and reader.layer is None else None
            if after is not None:
                stack.append((reader, after, steps + 1))
                continue
            if reader.op in SPLITS and steps < LONGEST:
                stack += [(part, cut, steps + 1) for part, cut in _parts(graph, reader, view)]
                continue
            rows = rows_of(view, call.shape, layer)
            found += [Reader(reader.id, place, rows) for place, id in enumerate(operands(reader)) if id == node.id]
    return found


def onwards(graph: LayerGraph, start: Node) -> tuple[Node, View]:
    """Where the output of a node is first read by anything but a single view of it, and what is read there."""
    node, view = start, View.whole(start.shape)
    while len(graph.readers[node.id]) == 1:
        reader = graph.by_id[graph.readers[node.id][0]]
        after = _viewed(reader, view) if reader.layer is None else None
        if after is None:
            return reader, view
        node, view = reader, after
    return node, view


def rows_of(view: View, shape: Shape, layer: Layer) -> tuple[int, ...]:
    """The rows of the weight that a view of the layer's output has, in the order of the view's axes."""
    axis = layer.out_axis % len(shape)
    channels, inner = shape[axis], prod(shape[axis + 1 :])
    rows = [view.offset // inner % channels]
    for size, stride in (factor for factors in view.axes for factor in factors):
        if inner <= stride < inner * channels:
            rows = [row + step * (stride // inner) for row in rows for step in range(size)]
    return tuple(rows)


def patches(graph: LayerGraph, call: Node) -> tuple[tuple[int, int], ...]:
    """How a linear layer reads patches that were cut out of an image: (axis, length), the outermost first.

    Axis 0 are the channels, 1 the rows of a patch, 2 its columns. With patches of 4 x 4 pixels that are laid out row by
    row, with the channels of each pixel together, that is ((1, 4), (2, 4), (0, 3)). Empty for what reads no patches.
    """
    if len(call.inputs) != 1:
        return ()
    trail: list[Node] = []
    node = graph.by_id[call.inputs[0]]
    while node.op != "input" and len(node.inputs) == 1 and len(trail) < LONGEST:
        trail.append(node)
        node = graph.by_id[node.inputs[0]]
    if node.op != "input" or len(node.shape) != 4 or not trail:
        return ()
    channels, height, width = node.shape[1:]
    if trail[-1].op == "im2col":  # F.unfold: channels, rows, columns, whatever the stride
        kernel = trail[-1].facts["args"][1]
        whole = [each for each in trail[:-1] if each.op not in COPIES | PERMUTES]
        return () if whole else tuple((axis, n) for axis, n in enumerate((channels, *kernel)) if n > 1)
    view = View.whole(node.shape)
    for step in reversed(trail):
        after = _viewed(step, view)
        if after is None:
            return ()
        view = after
    found = []
    for size, stride in view.axes[-1]:
        axis = 0 if stride >= height * width else 1 if stride >= width else 2
        found.append((axis, size))
    return tuple(found) if len({axis for axis, _ in found}) == len(found) else ()


def _viewed(node: Node, view: View) -> View | None:
    """The view after an operation that only moves elements; None for any other."""
    args = node.facts.get("args", ())
    axes = len(view.axes)
    same = node.op == "expand" and node.shape == tuple(map(view.size, range(axes)))
    if node.op in COPIES | DROPS_OUT or same:
        return view
    if node.op in RESHAPES or node.op == "unflatten":
        return view.reshaped(node.shape)
    if node.op == "permute":
        return view.permuted([d % axes for d in args[1]])
    if node.op in PERMUTES:
        first, second = (args[1] % axes, args[2] % axes) if len(args) > 2 else (0, 1)
        dims = list(range(axes))
        dims[first], dims[second] = dims[second], dims[first]
        return view.permuted(dims) if axes > 1 else view
    if node.op == "select":
        return view.selected(args[1] % axes, args[2])
    if node.op == "slice" and (len(args) < 5 or args[4] == 1):
        dim = (args[1] if len(args) > 1 else 0) % axes
        start = (args[2] if len(args) > 2 else 0) or 0
        start = max(start + view.size(dim), 0) if start < 0 else min(start, view.size(dim))
        return view.sliced(dim, start, node.shape[dim]) if node.shape[dim] else None
    if node.op == "narrow":
        return view.sliced(args[1] % axes, args[2] % view.size(args[1] % axes), args[3])
    return None


def _parts(graph: LayerGraph, node: Node, view: View) -> Iterator[tuple[Node, View]]:
    """The results of a split, chunk or unbind that somebody takes, and what each sees."""
    args = node.facts.get("args", ())
    unbinds = node.op == "unbind"
    place = 1 if unbinds else 2
    given = args[place] if len(args) > place else node.facts.get("dim", 0)
    dim = given % len(view.axes)
    for name in graph.readers[node.id]:
        part = graph.by_id[name]
        if part.op != "getitem":
            continue
        index = part.facts["args"][1]
        cut = view.selected(dim, index) if unbinds else view.sliced(dim, *_range(node, view.size(dim), index))
        if cut is not None:
            yield part, cut


def _range(node: Node, size: int, index: int) -> tuple[int, int]:
    """(start, length) of one result of a split or chunk along an axis of ``size``."""
    sizes = node.facts["args"][1]
    if isinstance(sizes, int):
        count = sizes
        width = -(-size // count) if "chunk" in node.op or node.op == "tensor_split" else count
        return index * width, min(width, size - index * width)
    return sum(sizes[:index]), sizes[index]
