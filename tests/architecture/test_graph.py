"""Layer graphs: what they say about an architecture, against the enumeration of paths."""

import json
from dataclasses import asdict, replace

import networkx as nx
import pytest
from hypothesis import given, settings
from support.drawn import ZOO, Drawing, figure4, graphs, is_kernel, plain, renamed, residual, shared, tied

from netgraft.architecture.graph import Layer, LayerGraph, Node, Slot, same_wiring, to_jsonable

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=100)
zoo = pytest.mark.parametrize("graph", ZOO.values(), ids=ZOO)


# ----------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "channels"),
    [
        ("conv2d", (8, 3, 5, 5), 1, 8),
        ("conv2d", (8, 1, 5, 5), 8, 8),
        ("linear", (10, 64), 1, 10),
        ("conv_transpose2d", (16, 8, 2, 2), 1, 8),  # PyTorch's [in, out / groups, *kernel]
        ("conv_transpose2d", (16, 4, 2, 2), 2, 8),
        ("batch_norm", (8,), 1, 8),
        ("norm", (), 1, 0),
    ],
)
def test_out_channels(kind, shape, groups, channels):
    assert Layer("a", kind, shape, groups=groups).out_channels == channels


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "axes", "depthwise"),
    [
        ("conv2d", (8, 3, 5, 5), 1, (1, 1), False),
        ("conv1d", (8, 1, 5), 8, (1, 1), True),
        ("conv2d", (8, 2, 5, 5), 4, (1, 1), False),
        ("conv2d", (16, 1, 5, 5), 8, (1, 1), False),  # two outputs for each input
        ("conv_transpose2d", (8, 1, 2, 2), 8, (1, 0), True),
        ("conv_dynamic", (8, 24), 1, (1, 1), False),
        ("linear", (10, 64), 1, (-1, 1), False),
        ("linear", (1, 64), 1, (-1, 1), False),
    ],
)
def test_where_the_channels_are(kind, shape, groups, axes, depthwise):
    layer = Layer("a", kind, shape, groups=groups)
    assert (layer.out_axis, layer.in_axis) == axes
    assert layer.is_depthwise == depthwise
    assert layer.is_conv == (kind != "linear")


def test_a_transposed_matrix_reads_along_its_first_axis():
    assert Layer("a", "linear", (64, 10), transposed=True).in_axis == 0


# --------------------------------------------------------------------------------------------------------- data flow


@thorough
@given(graphs())
def test_reach_agrees_with_networkx(graph):
    for op, found, reach in (
        ("input", graph.from_input, nx.descendants),
        ("output", graph.to_output, nx.ancestors),
    ):
        starts = {node.id for node in graph.nodes if node.op == op}
        assert found == starts.union(*(reach(graph.dag, start) for start in starts))


@thorough
@given(graphs())
def test_a_walk_goes_on_only_where_it_may(graph):
    """Against reachability in the graph without the edges that leave what stops the walk."""
    for forwards in (True, False):
        cut = nx.DiGraph(graph.dag if forwards else graph.dag.reverse())
        cut.remove_edges_from([edge for edge in cut.edges if graph.by_id[edge[0]].op == "add"])
        for start in graph.by_id:
            found = [n.id for n in graph.walk([start], forwards=forwards, through=lambda n: n.op != "add")]
            assert len(found) == len(set(found))
            assert set(found) == nx.descendants(cut, start) | {start}


@pytest.mark.parametrize(
    ("op", "args", "found"),
    [
        ("add", ["%a", "%b"], True),
        ("add", ["%a", 1], False),
        ("sub", [{"constant": [2]}, "%b"], False),
        ("cat", [["%a", "%b"], 1], True),
        ("cat", [["%a", {"constant": [2]}], 1], False),
    ],
)
def test_an_addition_of_data_alone(op, args, found):
    assert Node("n", op, facts={"args": args}).adds_data is found


def test_a_walk_from_several_nodes_comes_to_each_once():
    graph = figure4()
    everything = [node.id for node in graph.nodes]
    assert sorted(node.id for node in graph.walk([*everything, *everything])) == sorted(everything)


@zoo
def test_position_is_the_order_of_execution(graph):
    assert [node.id for node in graph.nodes] == sorted(graph.by_id, key=graph.position.__getitem__)


def test_the_layer_of_a_node():
    d = Drawing()
    parameter = d.parameter()
    x = d.conv(d.norm(d.input()))
    d.output(d.add(x, parameter))
    graph = d.graph()
    by_op = {node.id: (graph.layer_of(node), graph.kernel_of(node)) for node in graph.nodes}
    layers = graph.layers
    assert by_op[parameter] == (layers["L1"], None)
    assert by_op["L2"] == (layers["L2"], None)  # a norm is no kernel
    assert by_op["L3"] == (layers["L3"], layers["L3"])
    assert [by_op[node.id] for node in graph.nodes if node.layer is None] == [(None, None)] * 3


@thorough
@given(graphs())
def test_layer_edges_are_paths_without_a_layer_between(graph):
    calls = [node for node in graph.nodes if node.layer]
    expected = set()
    for a in calls:
        for b in calls:
            others = {node.id for node in calls} - {a.id, b.id}
            if a.id != b.id and nx.has_path(graph.dag.subgraph(set(graph.dag) - others), a.id, b.id):
                expected.add((a.layer, b.layer))
    edges = graph.layer_edges()
    assert set(edges) == expected
    assert len(edges) == len(expected)


def test_layer_edges_of_figure_4():
    assert figure4().layer_edges() == [("L1", "L2"), ("L2", "L3"), ("L1", "L5"), ("L3", "L4"), ("L5", "L4")]


@thorough
@given(graphs())
def test_heads_are_the_last_kernels_before_the_output(graph):
    kernels = [node.id for node in graph.nodes if node.id in graph.to_output and is_kernel(graph, node.id)]
    last = [id for id in kernels if not nx.descendants(graph.dag, id) & set(kernels)]
    assert {layer.name for layer in graph.heads()} == {graph.by_id[id].layer for id in last}
    assert len(graph.heads()) == len({layer.name for layer in graph.heads()})


def test_heads():
    assert [layer.name for layer in figure4().heads()] == ["L4"]
    assert [layer.name for layer in shared().heads()] == ["last"]
    d = Drawing()
    x = d.conv(d.input(), name="body")
    heads = [d.linear(x, name="classes"), d.norm(d.linear(x, name="boxes"))]
    d.conv(heads[0], name="dead")  # reads a head, but nothing reads it
    d.output(*heads)
    assert [layer.name for layer in d.graph().heads()] == ["classes", "boxes"]
    assert d.graph().head_names == {"classes", "boxes"}


# ---------------------------------------------------------------------------------------------------------- tensors


def test_slots_hold_every_key_aliases_included():
    graph = tied()
    graph = replace(graph, loose={"extra": Slot("extra", (3,), "float32", aliases=("again",))})
    assert list(graph.slots) == [
        *("first.weight", "last.weight", "first.bias", "middle.weight", "middle.bias", "last.bias", "extra", "again")
    ]
    assert graph.slots["last.weight"] is graph.slots["first.weight"]


@zoo
def test_a_graph_is_plain_data(graph):
    document = to_jsonable({name: asdict(layer) for name, layer in graph.layers.items()})
    assert json.loads(json.dumps(document)) == document


# ------------------------------------------------------------------------------------------------------ fingerprints


def with_layer(graph, name, **changes):
    return replace(graph, layers={**graph.layers, name: replace(graph.layers[name], **changes)})


@zoo
def test_the_fingerprint_does_not_depend_on_node_names(graph):
    ids = {node.id: f"n{i}" for i, node in enumerate(graph.nodes)}
    nodes = tuple(replace(n, id=ids[n.id], inputs=tuple(ids[i] for i in n.inputs)) for n in graph.nodes)
    assert replace(graph, nodes=nodes).fingerprint() == graph.fingerprint()
    assert replace(graph, rung="cpu", warnings=("slow",)).fingerprint() == graph.fingerprint()


def test_the_fingerprint_tells_architectures_apart():
    graph = residual()
    first = next(iter(graph.layers))
    wider = graph.layers[first].tensors | {"weight": Slot("L1.weight", (9, 3, 3, 3), "float32")}
    operands = (*graph.nodes[:-1], replace(graph.nodes[-1], inputs=("L1",)))
    variants = [
        graph,
        *ZOO.values(),
        with_layer(graph, first, stride=(2, 2)),
        with_layer(graph, first, groups=2),
        with_layer(graph, first, tensors=wider),
        replace(graph, nodes=operands),
        replace(graph, loose={"extra": Slot("extra", (3,), "float32")}),
        renamed(graph)[0],  # other keys of the state_dict
    ]
    prints = [variant.fingerprint() for variant in variants]
    assert len(set(prints)) == len(variants) - 1  # residual() is in the zoo, too
    assert all(len(text) == 64 for text in prints)


# -------------------------------------------------------------------------------------------------------- same wiring


@thorough
@given(graphs())
def test_a_renamed_graph_has_the_same_wiring(graph):
    other, old = renamed(graph)
    found = same_wiring(other, graph)
    assert found is not None
    assert found == {name: old[name] for name in found}
    assert set(found) == {node.layer for node in other.nodes if node.layer}


def test_shapes_may_differ_where_the_wiring_is_the_same():
    narrow, wide = residual(width=8), residual(width=12, kernel=5)
    assert same_wiring(narrow, wide) == {name: name for name in narrow.layers}


def test_other_wiring():
    graph = plain((8, 3, 3, 3), (8, 8, 3, 3), (10, 8))
    extra = replace(graph, loose={"extra": Slot("extra", (3,), "float32")})
    kind = with_layer(graph, "L2", kind="conv_transpose2d")
    unbiased = with_layer(graph, "L2", tensors={"weight": graph.layers["L2"].tensors["weight"]})
    for other in (extra, kind, unbiased, *ZOO.values(), LayerGraph((), {})):
        assert same_wiring(graph, other) is None
        assert same_wiring(other, graph) is None


def test_one_layer_called_twice_is_not_two_layers():
    def twice(share):
        d = Drawing()
        x = d.linear(d.input(), name="one")
        d.output(d.again("one", x) if share else d.linear(x, name="two"))
        return d.graph()

    assert same_wiring(twice(True), twice(False)) is None
    assert same_wiring(twice(True), twice(True)) == {"one": "one"}
