"""The longest chain, against drawings and against the enumeration of all paths."""

from math import prod

import networkx as nx
import pytest
from hypothesis import given, settings
from support.drawn import (
    ZOO,
    Drawing,
    dense,
    empty,
    figure4,
    graphs,
    is_kernel,
    paths,
    plain,
    renamed,
    residual,
    shared,
)

from netgraft.architecture.chain import Chain, all_longest_chains, longest_chain
from netgraft.architecture.graph import Layer, LayerGraph

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def followers(graph):
    chain = longest_chain(graph)
    return dict(zip(chain.layers, chain.followers, strict=True))


# ---------------------------------------------------------------------------------------------------------- by hand


def test_figure_4_of_the_paper():
    chain = longest_chain(figure4())
    assert chain.layers == ("L1", "L2", "L3", "L4")
    assert chain.ties == 1
    assert len(chain) == 4


def test_a_straight_network_is_its_own_chain():
    chain = longest_chain(plain((8, 3, 3, 3), (8, 8, 3, 3), (10, 8)))
    assert chain == Chain(("L1", "L2", "L3"), ("L1", "L2", "L3"), ((), (), ()), 1)


def test_residual_branches_with_more_layers_win():
    chain = longest_chain(residual(blocks=1))
    assert chain.layers == ("L1", "L3", "L5", "L8")  # stem, two convolutions, head; L7 is the projection


def test_dense_connections_give_the_chain_through_every_layer():
    graph = dense(layers=4)
    assert longest_chain(graph).layers == tuple(layer.name for layer in graph.kernels())


@pytest.mark.parametrize("graph", [empty(), LayerGraph((), {}), LayerGraph(empty().nodes[:2], {})], ids=range(3))
def test_a_graph_without_layers_or_output_has_an_empty_chain(graph):
    chain = longest_chain(graph)
    assert (chain, len(chain)) == (Chain((), (), (), 0), 0)


def test_norms_alone_make_no_chain():
    d = Drawing()
    d.output(d.norm(d.input()))
    assert longest_chain(d.graph()) == Chain((), (), (), 0)


def test_a_longer_branch_off_the_input_is_not_on_the_chain():
    d = Drawing()
    x = d.linear(d.input(), name="encoder")
    prompt = d.parameter()
    for i in range(5):
        prompt = d.linear(prompt, name=f"prompt{i}")
    d.output(d.linear(d.add(prompt, x), name="head"))
    assert longest_chain(d.graph()).layers == ("encoder", "head")


def test_a_longer_dead_branch_is_not_on_the_chain():
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    dead = x
    for i in range(5):
        dead = d.conv(dead, name=f"dead{i}")
    d.output(d.linear(x, name="head"))
    assert longest_chain(d.graph()).layers == ("stem", "head")


def test_a_shared_layer_stands_on_the_chain_once_per_call():
    chain = longest_chain(shared())
    assert chain.layers == ("first", "core", "core", "core", "last")
    assert chain.nodes == ("first", "core", "core@2", "core@3", "last")
    assert chain.followers == ((), ("norm",), ("norm",), (), ())


# ------------------------------------------------------------------------------------------------------------- ties


def diamond(left, right):
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    ends = []
    for side, branch in (("left", left), ("right", right)):
        y = x
        for i, shape in enumerate(branch):
            y = d.norm(y, name=f"{side}{i}") if shape == "norm" else d.conv(y, shape=shape, name=f"{side}{i}")
        ends.append(y)
    d.output(d.linear(d.add(*ends), name="head"))
    return d.graph()


SMALL, LARGE = (8, 8, 1, 1), (8, 8, 3, 3)


@pytest.mark.parametrize(
    ("left", "right", "winner", "ties"),
    [
        ([SMALL, SMALL], [LARGE], ["left0", "left1"], 1),
        ([SMALL], [SMALL, SMALL], ["right0", "right1"], 1),
        ([SMALL, "norm"], [LARGE], ["left0"], 2),  # more layers, norms included
        ([SMALL], [LARGE], ["right0"], 2),  # more weights
        ([LARGE], [SMALL], ["left0"], 2),
        ([SMALL], [SMALL], ["left0"], 2),  # executed first
        ([SMALL], [], ["left0"], 1),
    ],
)
def test_how_ties_are_broken(left, right, winner, ties):
    chain = longest_chain(diamond(left, right))
    assert chain.layers == ("stem", *winner, "head")
    assert chain.ties == ties


def test_ties_do_not_depend_on_the_order_of_operands():
    for order in (1, -1):
        d = Drawing()
        x = d.input()
        branches = [d.conv(x, name="first"), d.conv(x, name="second")]
        d.output(d.add(*branches[::order]))
        assert longest_chain(d.graph()).layers == ("first",)


def test_ties_multiply_along_the_way_and_count_layers_only():
    d = Drawing()
    x = d.input()
    for _ in range(5):
        one, two = d.conv(x), d.conv(x)
        # Three ways round the second convolution: one and the same chain of layers.
        x = d.add(one, two, d.op("relu", two), d.norm(two))
    d.output(x)
    assert longest_chain(d.graph()).ties == 2**5


def test_a_deep_network_with_many_ties_is_quick():
    d = Drawing()
    x = d.input()
    for _ in range(500):
        x = d.add(d.conv(x), d.conv(x), d.norm(x), x)
    d.output(x)
    chain = longest_chain(d.graph())
    assert (len(chain), chain.ties) == (500, 2**500)


# -------------------------------------------------------------------------------------------------------- followers


def test_post_norms_follow_their_convolution():
    assert followers(plain((8, 3, 3, 3), (8, 8, 3, 3), (10, 8), norms=True)) == {"L1": ("L2",), "L3": ("L4",), "L5": ()}


def test_pre_norms_follow_the_layer_before():
    d = Drawing()
    x = d.conv(d.op("relu", d.norm(d.input(), name="lost")), name="a")
    x = d.conv(d.op("relu", d.norm(x, name="norm_b")), name="b")
    d.output(d.linear(d.norm(x, name="norm_head"), name="head"))
    assert followers(d.graph()) == {"a": ("norm_b",), "b": ("norm_head",), "head": ()}


def test_several_norms_between_two_layers_follow_in_execution_order():
    d = Drawing()
    x = d.conv(d.input(), name="a")
    x = d.norm(d.op("relu", d.norm(x, name="z_first")), name="a_second")
    d.output(d.norm(d.conv(x, name="b"), name="at_the_end"))
    assert followers(d.graph()) == {"a": ("z_first", "a_second"), "b": ("at_the_end",)}


def test_a_norm_beside_the_chain_does_not_follow():
    d = Drawing()
    x = d.conv(d.input(), name="a")
    side = d.norm(d.conv(x, name="shortcut", shape=(8, 8, 1, 1)), name="shortcut_norm")
    d.norm(x, name="dead_norm")
    y = d.norm(d.conv(d.conv(x, name="b"), name="c"), name="c_norm")
    d.output(d.linear(d.add(y, side), name="head"))
    assert followers(d.graph()) == {"a": (), "b": (), "c": ("c_norm",), "head": ()}


def test_followers_of_the_last_layer_lead_to_the_output_where_its_chain_ends():
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    d.output(d.norm(d.linear(x, name="auxiliary"), name="auxiliary_norm"))
    d.output(d.norm(d.linear(d.conv(x, name="body"), name="head"), name="head_norm"))
    assert followers(d.graph()) == {"stem": (), "body": (), "head": ("head_norm",)}


# ------------------------------------------------------------------------------------------- against enumeration


def score(graph, path):
    layers = [graph.layers[graph.by_id[id].layer] for id in path if graph.by_id[id].op == "layer"]
    kernels = [layer for layer in layers if layer.is_kernel]
    return len(kernels), len(layers), sum(prod(layer.shape) for layer in kernels)


def best_path(graph):
    """The documented choice: kernels, then layers, then weights, then (from the output backwards) execution order."""
    position = {node.id: i for i, node in enumerate(graph.nodes)}
    found = paths(graph)
    best = max(score(graph, path) for path in found)
    return min((p for p in found if score(graph, p) == best), key=lambda p: [position[id] for id in reversed(p)])


@thorough
@given(graphs())
def test_the_chain_is_the_best_of_all_paths(graph):
    chain = longest_chain(graph)
    sequences = {tuple(id for id in path if is_kernel(graph, id)) for path in paths(graph)}
    longest = max(map(len, sequences), default=0)
    assert len(chain) == len(chain.nodes) == len(chain.followers) == longest
    assert chain.ties == (sum(len(sequence) == longest for sequence in sequences) if longest else 0)
    assert chain.layers == tuple(graph.by_id[id].layer for id in chain.nodes)
    if longest:
        assert chain.nodes in sequences
        assert chain.nodes == tuple(id for id in best_path(graph) if is_kernel(graph, id))


@thorough
@given(graphs())
def test_all_longest_chains_are_all_of_them(graph):
    kernels = [tuple(id for id in path if is_kernel(graph, id)) for path in paths(graph)]
    longest = max(map(len, kernels), default=0)
    expected = {sequence for sequence in kernels if len(sequence) == longest > 0}
    chains = list(all_longest_chains(graph, limit=1000))
    assert {chain.nodes for chain in chains} == expected
    assert len(chains) == len(expected)
    assert all(chain.ties == len(chains) for chain in chains)
    assert chains[:1] == ([longest_chain(graph)] if expected else [])
    assert list(all_longest_chains(graph, limit=2)) == chains[:2]


@thorough
@given(graphs())
def test_the_heaviest_chain_holds_the_most_parameters(graph):
    def parameters(path):
        layers = [graph.layers[graph.by_id[id].layer] for id in path if is_kernel(graph, id)]
        return sum(prod(slot.shape) for layer in layers for slot in layer.tensors.values())

    heaviest = max(map(parameters, paths(graph)), default=0)
    assert parameters(longest_chain(graph, weight="params").nodes) == heaviest


@thorough
@given(graphs())
def test_followers_are_the_norms_on_the_way_to_the_next_layer(graph):
    chain = longest_chain(graph)
    if not chain.nodes:
        return
    ends = [*chain.nodes[1:], best_path(graph)[-1]]
    for start, end, found in zip(chain.nodes, ends, chain.followers, strict=True):
        ways = [way[1:-1] for way in nx.all_simple_paths(graph.dag, start, end)]
        between = {id for way in ways if not any(is_kernel(graph, id) for id in way) for id in way}
        layers = [node.layer for node in graph.nodes if node.id in between and node.layer]
        assert found == tuple(dict.fromkeys(name for name in layers if graph.layers[name].is_norm))


@thorough
@given(graphs())
def test_the_chain_does_not_depend_on_names_or_chance(graph):
    chain = longest_chain(graph)
    assert longest_chain(graph) == chain
    other, old = renamed(graph)
    there = longest_chain(other)
    assert tuple(old[id] for id in there.nodes) == chain.nodes
    assert tuple(old[name] for name in there.layers) == chain.layers
    assert tuple(tuple(old[name] for name in names) for names in there.followers) == chain.followers
    assert there.ties == chain.ties


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_agrees_with_enumeration(name):
    graph = ZOO[name]
    assert len(longest_chain(graph)) == max(score(graph, path)[0] for path in paths(graph))


def test_every_kind_of_kernel_counts():
    d = Drawing()
    x = d.input()
    for kind in ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "conv_dynamic", "rnn", "contraction"):
        x = d.conv(x, kind=kind, shape=(8, 8))
    d.layers["table"] = Layer("table", "embedding", (9, 8))
    d.output(d.node("layer", [x], "table", "table"))
    assert len(longest_chain(d.graph())) == 8
