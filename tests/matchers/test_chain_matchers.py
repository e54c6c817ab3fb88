"""Longest, shuffled and interval chain: what is paired with what, and why not."""

import pytest
import timm
from support.drawn import ZOO, Drawing, figure4, plain, shared
from support.nets import traced

from netgraft.architecture.chain import longest_chain
from netgraft.errors import UsageError
from netgraft.matchers.interval_chain import IntervalChain
from netgraft.matchers.longest_chain import LongestChain
from netgraft.matchers.shuffled_chain import ShuffledChain
from netgraft.plugins import create

CONV, FC = (8, 8, 3, 3), (8, 8)


def pairs(pairing):
    return [(pair.source, pair.target) for pair in pairing.pairs]


def convolutions(count):
    return plain(*[CONV] * count)


# ---------------------------------------------------------------------------------------------------- longest chain


def test_figure_4_of_the_paper():
    pairing = LongestChain()(convolutions(4), figure4())
    assert pairs(pairing) == [("L1", "L1"), ("L2", "L2"), ("L3", "L3"), ("L4", "L4")]
    assert pairing.unpaired == {"L5": "not on the longest chain"}


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (5, 3), (4, 4), (0, 3), (3, 0)])
def test_the_lth_goes_to_the_lth_up_to_the_shorter_chain(m, n):
    pairing = LongestChain()(convolutions(m), convolutions(n))
    assert pairs(pairing) == [(f"L{i}", f"L{i}") for i in range(1, min(m, n) + 1)]
    assert list(pairing.unpaired) == [f"L{i}" for i in range(m + 1, n + 1)]
    for i in range(m + 1, n + 1):
        assert pairing.unpaired[f"L{i}"] == f"layer {i} of the chain has no partner on the source's chain of {m}"


def test_shapes_do_not_matter():
    source, target = plain((64, 3, 7, 7), (32, 64, 1, 1), (10, 32)), plain((8, 1, 3, 3), (9, 8, 5, 5), (100, 81))
    assert len(LongestChain()(source, target).pairs) == 3


def test_unlike_kinds_are_skipped_and_the_count_goes_on():
    pairing = LongestChain()(plain(CONV, CONV, FC, FC), plain(CONV, FC, CONV, FC))
    assert pairs(pairing) == [("L1", "L1"), ("L4", "L4")]
    assert pairing.unpaired == {
        "L2": "layer 2 of the chain: conv2d L2 does not fit linear",
        "L3": "layer 3 of the chain: linear L3 does not fit conv2d",
    }


@pytest.mark.parametrize("kind", ["conv_dynamic"])
def test_kinds_that_cannot_be_resized_need_equal_shapes(kind):
    def net(*shapes):
        d = Drawing()
        x = d.input()
        for shape in shapes:
            x = d.conv(x, kind=kind, shape=shape)
        d.output(x)
        return d.graph()

    pairing = LongestChain()(net((8, 8), (8, 8)), net((8, 8), (9, 8)))
    assert pairs(pairing) == [("L1", "L1")]
    assert "another shape" in pairing.unpaired["L2"]


def test_a_layer_called_several_times_is_paired_once():
    into = LongestChain()(plain(FC, FC, FC, FC, FC), shared())
    assert pairs(into) == [("L1", "first"), ("L2", "core"), ("L5", "last")]
    out_of = LongestChain()(shared(), plain(FC, FC, FC, FC, FC))
    assert pairs(out_of) == [("first", "L1"), ("core", "L2"), ("core", "L3"), ("core", "L4"), ("last", "L5")]


def test_a_shared_layer_takes_the_first_partner_of_its_kind():
    pairing = LongestChain()(plain(FC, CONV, FC, FC, FC), shared())
    assert pairs(pairing) == [("L1", "first"), ("L3", "core"), ("L5", "last")]
    assert "core" not in pairing.unpaired


# -------------------------------------------------------------------------------------------------------- shuffled


def test_shuffled_is_a_permutation_that_the_seed_decides():
    source = target = convolutions(12)
    orders = [pairs(ShuffledChain(seed)(source, target)) for seed in range(20)]
    for order in orders:
        assert [t for _, t in order] == list(longest_chain(target).layers)
        assert sorted(s for s, _ in order) == sorted(longest_chain(source).layers)
    assert len({tuple(order) for order in orders}) == 20
    assert pairs(ShuffledChain(3)(source, target)) == orders[3]
    assert any(s != t for s, t in orders[0])


@pytest.mark.parametrize(("m", "n"), [(8, 3), (3, 8)])
def test_shuffled_with_chains_of_other_lengths(m, n):
    pairing = ShuffledChain()(convolutions(m), convolutions(n))
    sources = [s for s, _ in pairs(pairing)]
    assert len(sources) == len(set(sources)) == min(m, n)
    assert len(pairing.unpaired) == max(n - m, 0)


def test_shuffled_moves_the_layers_that_the_chain_moves():
    source, target = plain(CONV, CONV, CONV, FC, FC), plain(CONV, CONV, FC, FC)
    for seed in range(10):
        pairing, plain_pairing = ShuffledChain(seed)(source, target), LongestChain()(source, target)
        kinds = [(source.layers[s].kind, target.layers[t].kind) for s, t in pairs(pairing)]
        assert all(a == b for a, b in kinds)
        assert [t for _, t in pairs(pairing)] == [t for _, t in pairs(plain_pairing)]
        assert sorted(s for s, _ in pairs(pairing)) == sorted(s for s, _ in pairs(plain_pairing))
        assert pairing.unpaired == plain_pairing.unpaired


@pytest.mark.parametrize(("one", "other"), [("resnet18", "vgg11_bn"), ("vgg11_bn", "resnet18")])
def test_shuffled_networks_move_as_many_layers(one, other):
    graphs = [traced(lambda name=name: timm.create_model(name), (3, 32, 32)) for name in (one, other)]
    plain_pairing, shuffled = LongestChain()(*graphs), ShuffledChain()(*graphs)
    for side in (0, 1):
        assert sorted(p[side] for p in pairs(plain_pairing)) == sorted(p[side] for p in pairs(shuffled))
    assert pairs(plain_pairing) != pairs(shuffled)


# -------------------------------------------------------------------------------------------------------- interval


def test_interval_takes_every_second_layer_of_the_source():
    pairing = IntervalChain()(convolutions(8), convolutions(4))
    assert pairs(pairing) == [("L1", "L1"), ("L3", "L2"), ("L5", "L3"), ("L7", "L4")]
    assert [pair.why for pair in pairing.pairs][2] == "layers 5 and 3 of the longest chains"


def test_interval_ends_where_the_source_does():
    pairing = IntervalChain()(convolutions(5), convolutions(5))
    assert pairs(pairing) == [("L1", "L1"), ("L3", "L2"), ("L5", "L3")]
    assert list(pairing.unpaired) == ["L4", "L5"]


def test_interval_of_any_width():
    assert pairs(IntervalChain(3)(convolutions(8), convolutions(8))) == [("L1", "L1"), ("L4", "L2"), ("L7", "L3")]
    for graph in ZOO.values():
        assert IntervalChain(1)(graph, graph) == LongestChain()(graph, graph)


def test_options_of_the_ablations():
    assert create("matchers", "interval-chain", {"every": "3"}) == IntervalChain(3)
    assert create("matchers", "shuffled-chain", {"seed": "7"}) == ShuffledChain(7)
    with pytest.raises(UsageError, match="at least 1"):
        create("matchers", "interval-chain", {"every": "0"})
    assert [getattr(m, "ablation", False) for m in (LongestChain, IntervalChain, ShuffledChain)] == [False, True, True]
