"""One form for all implementations of a network: what it learns, and how its parts feed one another.

Two people who write down one network choose other names, other orders, other operations: a 1 x 1 convolution or a
linear layer, one projection for queries, keys and values or three, padding as a module or as an argument, ``x.mean``
or a pooling module. The canonical form leaves all this out. Its parts are the network's learned tensors; an edge says
that what one part puts out reaches another through operations without weights, and what kinds of operations are on the
way. For example, ``conv - bn - relu - conv`` and its shortcut::

    conv.weight --> bn --{act}--> conv2.weight --{add}--> ...

A layer whose output is taken apart, such as a fused projection, is several parts, each with some of the layer's rows.
What an edge carries is coarse on purpose (any activation is "act"): whether two networks of equal form compute the same
is found by running them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from netgraft.architecture.attention import attention_steps
from netgraft.architecture.graph import Layer, LayerGraph, Node, Shape
from netgraft.architecture.operations import ACTIVATES, CONCATENATES, ELEMENTWISE, POOLS, PRODUCTS
from netgraft.architecture.rows import operands, patches, readers
from netgraft.architecture.spine import spine

Label = Hashable
"""What an operation does to what passes through: "add", "mul", "act", ("attn", 0) for queries, and so on."""

ACTS = ACTIVATES | (ELEMENTWISE - {"dropout", "native_dropout"})
COMMUTES = frozenset({"add", "mul", "maximum", "minimum"})
ORDERED = frozenset({"sub", "rsub", "div", "where", "lerp", "addcmul"}) | CONCATENATES
BATCH_NORM = "batch norm"
JOINS = COMMUTES | ORDERED
MAXIMA = frozenset(name for name in POOLS if "max" in name) | {"amax"}


@dataclass(frozen=True)
class Piece:
    """A layer, or those of its rows that go one way."""

    layer: str  # name in the graph; "" for the input and the output
    label: Hashable  # kind and sizes: parts of unequal labels are never the same
    kind: Hashable  # the kind alone
    size: Shape = ()  # the sizes alone
    is_kernel: bool = False
    rows: tuple[int, ...] | None = None  # rows of the weight in canonical order; None: all of them as they are
    norm: str = ""  # a batch norm right behind it that counts as a part of it
    biased: bool = False
    lent: str = ""  # a parameter of the model's own code that serves these rows as their bias
    scale: str = ""  # a layer scale right behind it that counts as a part of it
    cut: tuple[tuple[int, int], ...] = ()  # of a linear layer that reads patches: how they lie (``rows.patches``)
    unit: int = 0  # which step of the spine it belongs to, so that a block can be told from half of two


@dataclass(frozen=True)
class CanonicalGraph:
    """Parts in execution order, and what reaches each: (from, to) -> the labels on the way."""

    parts: tuple[Piece, ...]
    edges: Mapping[tuple[int, int], frozenset[Label]] = field(default_factory=dict)
    scales: Mapping[int, int] = field(default_factory=dict)  # kernel -> the parameter that multiplies its output

    @cached_property
    def before(self) -> dict[int, list[int]]:
        """For every part those that feed it."""
        found: dict[int, list[int]] = {place: [] for place in range(len(self.parts))}
        for source, target in self.edges:
            found[target].append(source)
        return found

    @cached_property
    def after(self) -> dict[int, list[int]]:
        """For every part those that it feeds."""
        found: dict[int, list[int]] = {place: [] for place in range(len(self.parts))}
        for source, target in self.edges:
            found[source].append(target)
        return found

    def without(self, left_out: Collection[int]) -> CanonicalGraph:
        """The same without some parts and the edges to and from them."""
        left = [place for place in range(len(self.parts)) if place not in left_out]
        number = {place: i for i, place in enumerate(left)}
        edges = {(number[a], number[b]): labels for (a, b), labels in self.edges.items() if {a, b} <= number.keys()}
        scales = {number[a]: number[b] for a, b in self.scales.items() if {a, b} <= number.keys()}
        return CanonicalGraph(tuple(self.parts[place] for place in left), edges, scales)

    def loosely(self) -> CanonicalGraph:
        """The same without activations and maxima, which may be hidden inside of modules."""
        return self._keeping(lambda label: label not in ("act", "max"))

    def bare(self) -> CanonicalGraph:
        """The same with nothing on its edges but what tells queries, keys and values apart."""
        return self._keeping(lambda label: isinstance(label, tuple) and label[0] in ("attn", "product"))

    def _keeping(self, wanted: Callable[[Label], bool]) -> CanonicalGraph:
        edges = {edge: frozenset(filter(wanted, labels)) for edge, labels in self.edges.items()}
        return CanonicalGraph(self.parts, edges, self.scales)


def canonical(graph: LayerGraph) -> CanonicalGraph:
    """The canonical form of a graph. Tensors that the output does not depend on are in none."""
    return _Builder(graph).build()


class _Builder:
    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.parts: list[Piece] = []
        self.of_layer: dict[str, range] = {}  # the parts of each layer
        self.reached: dict[tuple[str, int], set[int]] = {}  # (node, operand) -> the parts of a divided layer there
        self.edges: dict[tuple[int, int], set[Label]] = {}
        self.scales: dict[int, int] = {}
        self.lent: set[int] = set()  # parts that are the biases of others
        self.units = {name: place for place, unit in enumerate(spine(graph)) for name in unit.layers}
        self.scores: dict[str, str] = {}  # nodes of an attention that is written out -> what they multiply
        for node in graph.nodes:
            steps = attention_steps(graph, node)
            if steps is not None and steps[2] is not node:
                self.scores |= {steps[2].id: "scores", node.id: "values"}

    def build(self) -> CanonicalGraph:
        arriving: dict[str, dict[int, frozenset[Label]]] = {}
        for node in self.graph.nodes:
            if node.id not in self.graph.to_output:
                continue
            found: dict[int, set[Label]] = {}
            read = operands(node)
            sources = [self._reaching(node, place, id, arriving) for place, id in enumerate(read)]
            self._note_scale(node, sources)
            alone = len(sources) > 1 and all(source.keys() == sources[0].keys() for source in sources)
            for place, source in enumerate(sources):
                # x * sigmoid(x) is an activation; the pixels of one map side by side are a reshape.
                label = None if alone and node.op in JOINS else self._label(node, place, len(read))
                for part, labels in source.items():
                    found.setdefault(part, set()).update(labels, () if label is None else (label,))
            own = self._part(node)
            if own is not None and node.op == "layer":  # its bias is a part of it
                found = {part: labels for part, labels in found.items() if part not in self.lent}
            if own is None:
                arriving[node.id] = {part: frozenset(labels) for part, labels in found.items()}
                continue
            for part, carried in found.items():
                for each in own:
                    self.edges.setdefault((part, each), set()).update(carried)
            arriving[node.id] = dict.fromkeys(own, frozenset())
        edges = {edge: frozenset(labels) for edge, labels in self.edges.items()}
        whole = CanonicalGraph(tuple(self.parts), edges, self.scales)
        return whole.without(self.lent) if self.lent else whole

    def _reaching(
        self, node: Node, place: int, id: str, arriving: Mapping[str, Mapping[int, frozenset[Label]]]
    ) -> Mapping[int, frozenset[Label]]:
        divided = self.reached.get((node.id, place))
        return dict.fromkeys(sorted(divided), frozenset()) if divided is not None else arriving.get(id, {})

    def _note_scale(self, node: Node, sources: Sequence[Mapping[int, frozenset[Label]]]) -> None:
        """Remember a product of what one kernel puts out with one parameter."""
        if node.op != "mul" or [len(source) for source in sources] != [1, 1]:
            return
        one, other = (next(iter(source)) for source in sources)
        for kernel, scale in ((one, other), (other, one)):
            parts = self.parts[kernel], self.parts[scale]
            plain = not any(labels for source in sources for labels in source.values())
            if plain and parts[0].is_kernel and parts[1].kind == "table" and parts[1].size == parts[0].size[:1]:
                self.scales[kernel] = scale

    def _part(self, node: Node) -> range | None:
        """The numbers of the parts that a node is: several where its layer is divided; None for an operation."""
        if node.op in ("input", "output"):
            self.parts.append(Piece("", (node.op, len(node.shape)), node.op))
            return range(len(self.parts) - 1, len(self.parts))
        layer = self.graph.layer_of(node)
        if layer is None:
            return None
        if layer.name not in self.of_layer:
            first = len(self.parts)
            self.parts += list(self._divided(node, layer))
            self.of_layer[layer.name] = range(first, len(self.parts))
        return self.of_layer[layer.name]

    def _divided(self, node: Node, layer: Layer) -> Iterator[Piece]:
        """The layer as one part, or as several where disjoint rows go to different operations."""
        first = len(self.parts)
        unit = self.units.get(layer.name, 0)
        ways = readers(self.graph, node) if node.op == "layer" and layer.is_kernel and layer.calls == 1 else []
        bundles = _bundles([way.rows for way in ways])
        lent = self._lent(node, layer)
        total = sum(map(len, bundles))
        if len(bundles) < 2 or total != layer.out_channels or len(frozenset().union(*bundles)) != total:
            biased = "bias" in layer.tensors
            cut = patches(self.graph, node) if layer.is_linear and layer.calls == 1 else ()
            if cut:
                yield _as_convolution(layer, cut, unit)
                return
            size = canonical_shape(layer)
            own = lent.get(frozenset(range(layer.out_channels)), "")
            biased = biased or bool(own)
            yield Piece(
                layer.name, label_of(layer), kind_of(layer), size, layer.is_kernel, biased=biased, lent=own, unit=unit
            )
            return
        ordered = sorted(bundles.items(), key=lambda each: min(each[0]))
        for place, (bundle, rows) in enumerate(ordered):
            for way in ways:
                if bundle.issuperset(way.rows):
                    self.reached.setdefault((way.node, way.operand), set()).add(first + place)
            size = canonical_shape(layer, len(rows))
            label, own = label_of(layer, len(rows)), lent.get(bundle, "")
            yield Piece(layer.name, label, kind_of(layer), size, True, rows, lent=own, unit=unit)

    def _lent(self, node: Node, layer: Layer) -> dict[frozenset[int], str]:
        """Parameters that the model's own code puts together to the bias of a layer, by the rows that they serve."""
        found: dict[frozenset[int], str] = {}
        for id in node.inputs if layer.is_kernel and "bias" not in layer.tensors else ():
            joined = self.graph.by_id[id]
            if joined.shape != (layer.out_channels,) or joined.id in self.graph.from_input:
                continue
            pieces: Sequence[Any] = joined.facts["args"][0] if joined.op in CONCATENATES else [f"%{joined.id}"]
            start = 0
            for piece in pieces:
                lender = self.graph.by_id.get(piece[1:]) if isinstance(piece, str) else None
                length = lender.shape[0] if lender is not None else int(piece["constant"][0])
                if lender is not None and lender.op == "parameter" and lender.layer in self.of_layer:
                    found[frozenset(range(start, start + length))] = lender.layer
                    self.lent.update(self.of_layer[lender.layer])
                start += length
        return found

    def _label(self, node: Node, place: int, count: int) -> Label:
        if node.op == "scaled_dot_product_attention":
            return ("attn", place) if place < 3 else None
        if node.id in self.scores:
            return ("attn", place) if self.scores[node.id] == "scores" else ("attn", 2) if place else None
        if node.op in PRODUCTS and count > 1:
            return ("product", place)
        if node.op in ACTS:
            return "act"
        if node.op in MAXIMA:
            return "max"
        if count < 2:
            return None
        if node.op in COMMUTES:
            return node.op
        name = "cat" if node.op in CONCATENATES else node.op
        return (name, place) if node.op in ORDERED else None


def _bundles(ways: Iterable[tuple[int, ...]]) -> dict[frozenset[int], tuple[int, ...]]:
    """Rows that some operation reads together, and their order: a rotation reads queries whole, and halves of them."""
    found: dict[frozenset[int], tuple[int, ...]] = {}
    for rows in ways:
        met = [bundle for bundle in found if not bundle.isdisjoint(rows)]
        union = frozenset(rows).union(*met)
        whole = [order for order in (*(found[bundle] for bundle in met), rows) if len(order) == len(union)]
        for bundle in met:
            del found[bundle]
        found[union] = whole[0] if whole else tuple(sorted(union))
    return found


def _as_convolution(layer: Layer, cut: tuple[tuple[int, int], ...], unit: int) -> Piece:
    """A linear layer that reads patches: the convolution whose stride is as large as its kernel."""
    sizes = dict(cut)
    kernel = sizes.get(1, 1), sizes.get(2, 1)
    size = layer.out_channels, sizes.get(0, 1), *kernel
    kind = "conv2d", _short(kernel), False, (1,)
    return Piece(layer.name, (kind, size), kind, size, True, biased="bias" in layer.tensors, unit=unit, cut=cut)


def label_of(layer: Layer, rows: int | None = None) -> Hashable:
    """Kind and sizes of a layer, or of ``rows`` of its rows."""
    return kind_of(layer), canonical_shape(layer, rows)


def kind_of(layer: Layer) -> Hashable:
    """The kind of a layer: the same for those that can be written as one another."""
    if _is_map(layer):
        return "map"
    if layer.is_conv:
        return layer.kind, _short(layer.stride), layer.groups > 1, _short(layer.dilation)
    if layer.is_norm:
        return BATCH_NORM if layer.rules.has_statistics else "norm"
    return "table" if layer.kind in ("parameter", "embedding") else layer.kind


def canonical_shape(layer: Layer, rows: int | None = None) -> Shape:
    """[out, in, *kernel] of a kernel, without the axes of length 1 of a parameter."""
    out = layer.out_channels if rows is None else rows
    if _is_map(layer):
        return out, prod(layer.shape) // layer.out_channels
    if layer.is_conv and len(layer.shape) > 2:
        across = layer.shape[1] if layer.in_axis == 1 else layer.shape[0] // layer.groups
        return (out, across, *layer.shape[2:]) if set(layer.shape[2:]) - {1} else (out, across)
    return tuple(n for n in layer.shape if n != 1)


def _is_map(layer: Layer) -> bool:
    """Whether it is a product with a matrix: linear, a convolution of one pixel without stride, or of the whole map."""
    if layer.is_linear:
        return len(layer.shape) == 2 or set(layer.shape[2:]) <= {1}
    if not (layer.is_conv and layer.in_axis == 1 and layer.groups == 1 and not any(layer.padding)):
        return False
    kernel = layer.shape[2:]
    whole = len(layer.in_shape) == len(layer.shape) and kernel == layer.in_shape[2:] and set(layer.dilation) <= {1}
    return whole or (set(kernel) <= {1} and set(layer.stride) <= {1})


def _short(values: Shape) -> Shape:
    return values[:1] if len(set(values)) == 1 else values
