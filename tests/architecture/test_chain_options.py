"""Chains by parameters, and all the longest chains, against the enumeration of all paths."""

from math import prod

import pytest
from hypothesis import given, settings
from support.drawn import Drawing, empty, graphs, is_kernel, paths, plain, shared

from netgraft.architecture.chain import all_longest_chains, longest_chain

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def parameters(graph, nodes):
    layers = [graph.layers[graph.by_id[id].layer] for id in nodes]
    return sum(prod(slot.shape) for layer in layers for slot in layer.tensors.values() if not slot.buffer)


def sequences(graph):
    return {tuple(id for id in path if is_kernel(graph, id)) for path in paths(graph)} - {()}


@thorough
@given(graphs())
def test_the_chain_by_parameters_is_the_heaviest_of_all_paths(graph):
    chain = longest_chain(graph, weight="params")
    weights = {nodes: parameters(graph, nodes) for nodes in sequences(graph)}
    heaviest = [nodes for nodes, weight in weights.items() if weight == max(weights.values())]
    assert chain.ties == len(heaviest)
    assert not heaviest or chain.nodes in heaviest


@pytest.mark.parametrize("weight", ["layers", "params"])
@thorough
@given(graph=graphs())
def test_all_longest_chains_are_all_there_are(weight, graph):
    measure = len if weight == "layers" else lambda nodes: parameters(graph, nodes)
    best = max(map(measure, sequences(graph)), default=0)
    expected = {nodes for nodes in sequences(graph) if measure(nodes) == best}
    chains = list(all_longest_chains(graph, 10**6, weight=weight))
    assert len(chains) == len(expected)
    assert {chain.nodes for chain in chains} == expected
    position = {node.id: i for i, node in enumerate(graph.nodes)}
    order = [[position[id] for id in chain.nodes] for chain in chains[1:]]
    assert order == sorted(order)
    if chains:
        assert chains[0] == longest_chain(graph, weight=weight)
        assert {chain.ties for chain in chains} == {len(chains)}
        assert list(all_longest_chains(graph, 2, weight=weight)) == chains[:2]


def test_a_wide_layer_beats_many_narrow_ones():
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    wide = d.conv(x, shape=(64, 8, 3, 3), name="wide")
    for i in range(3):
        x = d.conv(x, shape=(8, 8, 1, 1), name=f"narrow{i}")
    d.output(d.linear(d.add(wide, x), name="head"))
    assert longest_chain(d.graph()).layers == ("stem", "narrow0", "narrow1", "narrow2", "head")
    assert longest_chain(d.graph(), weight="params").layers == ("stem", "wide", "head")


def test_a_shared_layer_weighs_at_every_call():
    assert longest_chain(shared(), weight="params").layers == ("first", "core", "core", "core", "last")


def test_there_is_one_longest_chain_in_a_straight_network_and_none_in_an_empty_one():
    assert len(list(all_longest_chains(plain((8, 3, 3, 3), (10, 8))))) == 1
    assert list(all_longest_chains(empty())) == []
    assert list(all_longest_chains(plain((8, 3, 3, 3)), 0)) == []


def test_the_first_of_very_many_ties_come_quickly_and_in_order():
    d = Drawing()
    x = d.input()
    for i in range(300):
        x = d.add(d.conv(x, name=f"l{i}"), d.conv(x, name=f"r{i}"))
    d.output(x)
    chains = list(all_longest_chains(d.graph(), 5))
    assert chains[0].ties == 2**300
    assert [[i for i, name in enumerate(chain.layers) if name.startswith("r")] for chain in chains] == [
        [],
        [299],
        [298],
        [298, 299],
        [297],
    ]


def test_followers_of_every_tied_chain_are_its_own():
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    ends = [d.norm(d.conv(x, name=side), name=f"{side}_norm") for side in ("left", "right")]
    d.output(d.linear(ends[0], name="left_head"))
    d.output(d.norm(d.linear(ends[1], name="right_head"), name="last_norm"))
    found = {chain.layers: chain.followers for chain in all_longest_chains(d.graph())}
    assert found == {
        ("stem", "left", "left_head"): ((), ("left_norm",), ()),
        ("stem", "right", "right_head"): ((), ("right_norm",), ("last_norm",)),
    }
