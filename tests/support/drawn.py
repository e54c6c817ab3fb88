"""Layer graphs drawn by hand or at random, for tests that need no torch."""

from dataclasses import replace

import networkx as nx
from hypothesis import strategies as st

from netgraft.architecture.graph import Layer, LayerGraph, Node, Slot

STATISTICS = ("running_mean", "running_var")


class Drawing:
    """Nodes in execution order. Every method adds one and returns its id; layers are called L1, L2, ... or by name."""

    def __init__(self):
        self.nodes, self.layers, self.loose = [], {}, {}

    def node(self, op, inputs=(), layer=None, id=None):
        self.nodes.append(Node(id or f"{op}{len(self.nodes)}", op, tuple(inputs), layer))
        return self.nodes[-1].id

    def input(self):
        return self.node("input")

    def output(self, *inputs):
        return self.node("output", inputs)

    def add(self, *inputs):
        return self.node("add", inputs)

    def cat(self, *inputs):
        return self.node("cat", inputs)

    def op(self, name, *inputs):
        return self.node(name, inputs)

    def layer(self, kind, shape, inputs, tensors, name=None, **facts):
        """The first call of a new layer; ``tensors`` are shapes by role."""
        name = name or f"L{len(self.layers) + 1}"
        slots = {}
        for role, size in tensors.items():
            buffer = role in (*STATISTICS, "num_batches_tracked")
            dtype = "int64" if role == "num_batches_tracked" else "float32"
            slots[role] = size if isinstance(size, Slot) else Slot(f"{name}.{role}", tuple(size), dtype, buffer)
        self.layers[name] = Layer(name, kind, tuple(shape), slots, **facts)
        return self.node("layer", inputs, name, name)

    def conv(self, *inputs, shape=(8, 8, 3, 3), bias=True, kind="conv2d", **facts):
        tensors = {"weight": shape} | ({"bias": shape[:1]} if bias else {})
        return self.layer(kind, shape, inputs, tensors, **facts)

    def linear(self, *inputs, shape=(8, 8), bias=True, **facts):
        return self.conv(*inputs, shape=shape, bias=bias, kind="linear", **facts)

    def norm(self, *inputs, channels=8, kind="batch_norm", **facts):
        tensors = {"weight": (channels,), "bias": (channels,)}
        if kind == "batch_norm":
            tensors |= dict.fromkeys(STATISTICS, (channels,)) | {"num_batches_tracked": ()}
        return self.layer(kind, (channels,), inputs, tensors, **facts)

    def parameter(self, shape=(1, 8)):
        name = f"L{len(self.layers) + 1}"
        self.layers[name] = Layer(name, "parameter", tuple(shape), {"value": Slot(name, tuple(shape), "float32")})
        return self.node("parameter", (), name, name)

    def again(self, name, *inputs):
        """One more call of a layer that exists."""
        calls = self.layers[name].calls + 1
        self.layers[name] = replace(self.layers[name], calls=calls)
        return self.node("layer", inputs, name, f"{name}@{calls}")

    def graph(self):
        return LayerGraph(tuple(self.nodes), dict(self.layers), dict(self.loose))


def plain(*shapes, norms=False, relu=True):
    """A straight network; a shape of two lengths is a linear layer, of four a convolution."""
    d = Drawing()
    x = d.input()
    for shape in shapes:
        x = d.linear(x, shape=shape) if len(shape) == 2 else d.conv(x, shape=shape)
        x = d.norm(x, channels=shape[0]) if norms and len(shape) == 4 else x
        x = d.op("relu", x) if relu else x
    d.output(x)
    return d.graph()


def figure4():
    """HMT, Figure 4 (a): L1 -> L2 -> L3 -> L4 and, beside it, L1 -> L5 -> L4."""
    d = Drawing()
    one = d.conv(d.input(), name="L1")
    three = d.conv(d.conv(one, name="L2"), name="L3")
    five = d.conv(one, name="L5")
    d.output(d.conv(d.add(three, five), name="L4"))
    return d.graph()


def residual(blocks=2, width=8, kernel=3, classes=10, pre_norm=False, projections=True):
    """A small residual network with norms and a linear head."""
    d = Drawing()
    x = d.norm(d.conv(d.input(), shape=(width, 3, kernel, kernel)), channels=width)
    for _ in range(blocks):
        out = x
        for _ in range(2):
            out = d.op("relu", d.norm(out, channels=width)) if pre_norm else out
            out = d.conv(out, shape=(width, width, kernel, kernel), bias=False)
            out = out if pre_norm else d.norm(out, channels=width)
        x = d.add(out, d.conv(x, shape=(width, width, 1, 1)) if projections else x)
    d.output(d.linear(d.op("mean", x), shape=(classes, width)))
    return d.graph()


def dense(layers=3, growth=4):
    """Every layer reads all earlier ones, through a norm of its own."""
    d = Drawing()
    maps = [d.conv(d.input(), shape=(growth, 3, 3, 3))]
    for i in range(1, layers + 1):
        out = d.norm(d.cat(*maps), channels=growth * i)
        maps.append(d.conv(out, shape=(growth, growth * i, 3, 3)))
    d.output(d.linear(d.norm(d.cat(*maps), channels=growth * (layers + 1)), shape=(5, growth * (layers + 1))))
    return d.graph()


def shared():
    """One layer called three times, between two others."""
    d = Drawing()
    x = d.linear(d.input(), name="first")
    x = d.linear(x, name="core")
    x = d.again("core", d.norm(x, name="norm", kind="layer_norm"))
    x = d.again("core", d.again("norm", x))
    d.output(d.linear(x, name="last", shape=(3, 8)))
    return d.graph()


def flat(channels=4, side=2, classes=5, width=6):
    """A convolution whose flattened map feeds two linear layers."""
    d = Drawing()
    x = d.op("view", d.conv(d.input(), shape=(channels, 3, 3, 3)))
    x = d.linear(x, shape=(width, channels * side * side), flattened=(channels, side, side))
    d.output(d.linear(d.op("relu", x), shape=(classes, width)))
    return d.graph()


def tied():
    """Two linear layers with one weight and two biases, and a weight with a second key."""
    d = Drawing()
    weight = Slot("first.weight", (8, 8), "float32", aliases=("last.weight",))
    x = d.layer("linear", (8, 8), [d.input()], {"weight": weight, "bias": (8,)}, name="first")
    x = d.linear(d.op("relu", x), name="middle")
    d.output(d.layer("linear", (8, 8), [x], {"weight": weight, "bias": (8,)}, name="last"))
    return d.graph()


def empty():
    """No layer at all."""
    d = Drawing()
    d.output(d.op("relu", d.input()))
    return d.graph()


ZOO = {
    "figure4": figure4(),
    "plain": plain((8, 3, 3, 3), (16, 8, 5, 5), (16, 16, 3, 3), (10, 16)),
    "plain with norms": plain((12, 3, 7, 7), (12, 12, 3, 3), (10, 12), norms=True),
    "perceptron": plain((20, 30), (20, 20), (10, 20)),
    "residual": residual(),
    "residual, wide": residual(3, width=12, kernel=5, classes=7),
    "residual, pre-norm": residual(pre_norm=True),
    "residual, no projections": residual(projections=False),
    "dense": dense(),
    "shared": shared(),
    "flat": flat(),
    "flat, large": flat(channels=6, side=3, classes=4),
    "tied": tied(),
    "empty": empty(),
}


def renamed(graph, prefix="other_"):
    """The same graph under other names of nodes, layers and tensors, sorted the other way round; and old by new."""
    count = len(graph.layers)
    names = {name: f"{prefix}{count - i:03}" for i, name in enumerate(graph.layers)}
    ids = {node.id: f"{prefix}node{len(graph.nodes) - i:03}" for i, node in enumerate(graph.nodes)}
    keys = {key: f"{prefix}key{len(graph.slots) - i:03}" for i, key in enumerate(graph.slots)}

    def facts(value):
        """With the ids in recorded arguments, which look like "%id", renamed too."""
        if isinstance(value, dict):
            return {key: facts(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [facts(item) for item in value]
        return f"%{ids[value[1:]]}" if isinstance(value, str) and value[1:] in ids and value[0] == "%" else value

    def slot(old):
        return replace(old, key=keys[old.key], aliases=tuple(keys[alias] for alias in old.aliases))

    layers = {
        names[name]: replace(layer, name=names[name], tensors={role: slot(s) for role, s in layer.tensors.items()})
        for name, layer in graph.layers.items()
    }
    nodes = tuple(
        replace(
            node,
            id=ids[node.id],
            inputs=tuple(ids[i] for i in node.inputs),
            layer=None if node.layer is None else names[node.layer],
            facts=facts(node.facts),
        )
        for node in graph.nodes
    )
    loose = {keys[key]: slot(s) for key, s in graph.loose.items()}
    old = {new: name for name, new in [*names.items(), *ids.items(), *keys.items()]}
    return replace(graph, nodes=nodes, layers=layers, loose=loose), old


SHAPES = [(4, 4, 3, 3), (4, 4, 1, 1), (8, 4, 3, 3), (6, 8, 5, 5)]


@st.composite
def graphs(draw, max_nodes=9):
    """Any small graph: branches, dead ends, parameters, shared layers, one or two inputs and outputs."""
    d = Drawing()
    made = [d.input() for _ in range(draw(st.integers(1, 2)))]
    kinds = ["conv", "conv", "conv", "linear", "norm", "op", "parameter", "again"]
    for _ in range(draw(st.integers(0, max_nodes))):
        kind = draw(st.sampled_from(kinds))
        inputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
        shape = draw(st.sampled_from(SHAPES))
        callable = [name for name, layer in d.layers.items() if layer.kind != "parameter"]
        if kind == "conv":
            made.append(d.conv(*inputs, shape=shape))
        elif kind == "linear":
            made.append(d.linear(*inputs, shape=shape[:2]))
        elif kind == "norm":
            made.append(d.norm(*inputs, channels=shape[0]))
        elif kind == "parameter":
            made.append(d.parameter())
        elif kind == "again" and callable:
            made.append(d.again(draw(st.sampled_from(callable)), *inputs))
        else:
            made.append(d.op("add", *inputs))
    for _ in range(draw(st.integers(1, 2))):
        d.output(*draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True)))
    return d.graph()


def paths(graph):
    """Every path of node ids from an input to an output, by enumeration."""
    ends = {op: [node.id for node in graph.nodes if node.op == op] for op in ("input", "output")}
    return [
        tuple(path)
        for start in ends["input"]
        for end in ends["output"]
        for path in nx.all_simple_paths(graph.dag, start, end)
    ]


def is_kernel(graph, id):
    node = graph.by_id[id]
    return node.op == "layer" and graph.layers[node.layer].is_kernel
