"""The matcher wired on networks drawn by hand, where the answer is known."""

from dataclasses import replace
from itertools import pairwise

import pytest
from support.drawn import Drawing, plain

from netgraft import plugins
from netgraft.architecture.wiring import Wiring
from netgraft.errors import UsageError
from netgraft.matchers.wired import Wired


def resnet(blocks, width=8, convs=2, side=32, classes=10):
    """A residual network with shapes: per stage so many blocks, the first of each but the first stage projected."""
    d = Drawing()

    def conv(x, out, into, kernel, size, name):
        x = d.conv(x, shape=(out, into, kernel, kernel), bias=False, name=name, out_shape=(1, out, size, size))
        return d.norm(x, channels=out, name=f"{name}.bn", out_shape=(1, out, size, size))

    x = d.input()
    d.nodes[-1] = replace(d.nodes[-1], shape=(1, 3, side, side))
    x, into = conv(x, width, 3, 3, side, "stem"), width
    for stage, count in enumerate(blocks):
        out, size = width * 2**stage, side // 2**stage
        for b in range(count):
            name, branch, entry = f"{stage}.{b}", x, into
            for c in range(convs):
                branch = conv(branch, out, entry, 1 if convs == 3 and c != 1 else 3, size, f"{name}.conv{c}")
                entry = out
            shortcut = conv(x, out, into, 1, size, f"{name}.short") if stage and not b else x
            x, into = d.op("relu", d.add(branch, shortcut)), out
    d.output(d.linear(d.op("mean", x), shape=(classes, into), name="head", out_shape=(1, classes)))
    return d.graph()


def vgg(counts, width=8, side=32):
    d = Drawing()
    x, into = d.input(), 3
    d.nodes[-1] = replace(d.nodes[-1], shape=(1, 3, side, side))
    for stage, count in enumerate(counts):
        out, size = width * 2**stage, side // 2**stage
        for c in range(count):
            x = d.conv(x, shape=(out, into, 3, 3), name=f"{stage}.{c}", out_shape=(1, out, size, size))
            x, into = d.op("relu", x), out
    d.output(d.linear(d.op("mean", x), shape=(10, into), name="head", out_shape=(1, 10)))
    return d.graph()


def pairs(pairing):
    return {pair.target: pair.source for pair in pairing.pairs}


def block(name):
    return name.rpartition(".")[0]


def reading(graph, names):
    """How many of the layers read channels that the one before in the list writes."""
    spaces = Wiring(graph).spaces
    return sum(bool({*spaces.of(b)[0]} & {*spaces.of(a)[1]}) for a, b in pairwise(names))


# -------------------------------------------------------------------------------------------------------- known answers


def test_two_blocks_to_one_keeps_blocks_whole():
    source, target = resnet([2, 2, 2]), resnet([1, 1, 1])
    found = pairs(Wired()(source, target))
    assert found.keys() == target.layers.keys()
    assert found["stem"] == "stem"
    assert found["head"] == "head"
    for stage in "012":
        assert block(found[f"{stage}.0.conv0"]) == block(found[f"{stage}.0.conv1"])
        assert found[f"{stage}.0.conv0"].startswith(stage)
        assert found[f"{stage}.0.conv1.bn"] == found[f"{stage}.0.conv1"] + ".bn"
    for stage in "12":  # where the stage begins, the block that projects
        assert found[f"{stage}.0.conv0"] == f"{stage}.0.conv0"
        assert found[f"{stage}.0.short"] == f"{stage}.0.short"
        assert found[f"{stage}.0.short.bn"] == f"{stage}.0.short.bn"


def test_one_block_to_two_leaves_whole_blocks():
    source, target = resnet([1, 1, 1]), resnet([2, 2, 2])
    pairing = Wired()(source, target)
    found = pairs(pairing)
    assert sorted(found.values()) == sorted(source.layers)
    left = {block(name) for name in pairing.unpaired}
    assert len(left) == 3
    assert not left & {block(name) for name in found}
    assert all("residual block has no counterpart" in why for why in pairing.unpaired.values())
    assert {"1.0.short", "2.0.short"} <= found.keys()


@pytest.mark.parametrize(("there", "here"), [(8, 20), (20, 8), (8, 8)])
@pytest.mark.parametrize("convs", [2, 3])
def test_other_widths_of_the_same_depth_pair_one_to_one(there, here, convs):
    source, target = resnet([2, 3, 2], there, convs), resnet([2, 3, 2], here, convs, classes=7)
    assert pairs(Wired()(source, target)) == {name: name for name in target.layers}


def test_bottlenecks_give_their_first_and_last_layer_to_shorter_blocks():
    source, target = resnet([2, 2], convs=3), resnet([2, 2])
    found = pairs(Wired()(source, target))
    for name in ("0.0", "0.1", "1.0", "1.1"):
        assert found[f"{name}.conv1"] == f"{name}.conv2"
        assert block(found[f"{name}.conv0"]) == name


def test_a_plain_target_reads_what_was_written_before():
    source, target = resnet([3, 3, 3]), vgg([3, 2, 2])
    found = pairs(Wired()(source, target))
    names = [name for name in target.layers if name in found]
    assert len(names) == len(target.layers)
    assert reading(source, [found[name] for name in names]) == len(names) - 1
    used = [found[name] for name in names[1:-1]]
    assert all(first == f"{block(last)}.conv0" for first, last in zip(used[::2], used[1::2], strict=True))
    assert [name[0] for name in used] == list("001122")


def test_a_plain_source_gives_its_beginning():
    """A layer knows the features of those before it; where blocks add to a stream, the step between stages decides."""
    source, target = vgg([2, 2, 2]), vgg([1, 1, 1])
    assert pairs(Wired()(source, target)) == {"0.0": "0.0", "1.0": "0.1", "2.0": "1.0", "head": "head"}
    assert pairs(Wired(intact=0)(source, target)) != pairs(Wired()(source, target))
    found = pairs(Wired()(resnet([3, 3]), resnet([1, 1])))
    assert [block(found[f"{stage}.0.conv0"]) for stage in "01"] == ["0.0", "1.0"]


def mobile(widths, side=32, widen=False):
    """A stem, then depthwise and pointwise convolutions in turn; with ``widen`` a pointwise one before each, too."""
    d = Drawing()
    x, into = d.input(), 3
    d.nodes[-1] = replace(d.nodes[-1], shape=(1, 3, side, side))
    x, into = d.conv(x, shape=(8, 3, 3, 3), name="stem", out_shape=(1, 8, side, side)), 8
    for i, width in enumerate(widths):
        if widen:
            x = d.conv(x, shape=(2 * into, into, 1, 1), name=f"{i}.widen", out_shape=(1, 2 * into, side, side))
            into *= 2
        x = d.conv(x, shape=(into, 1, 3, 3), groups=into, name=f"{i}.depth", out_shape=(1, into, side, side))
        x = d.conv(d.op("relu", x), shape=(width, into, 1, 1), name=f"{i}.point", out_shape=(1, width, side, side))
        x, into = d.op("relu", x), width
    d.output(d.linear(d.op("mean", x), shape=(10, into), name="head", out_shape=(1, 10)))
    return d.graph()


def test_two_halves_take_the_place_of_one_dense_layer():
    target = mobile([8, 8, 8])
    found = pairs(Wired()(vgg([5]), target))
    for i in range(3):
        assert found[f"{i}.depth"] == found[f"{i}.point"] == f"0.{i + 1}"
    assert pairs(Wired()(target, target)) == {name: name for name in target.layers}
    widening = pairs(Wired()(vgg([5]), mobile([8], widen=True)))
    assert widening.get("0.widen") != widening.get("0.depth")


def test_stem_to_stem_and_head_to_head_whatever_their_sizes():
    source, target = resnet([2]), plain((64, 1, 11, 11), (64, 64, 3, 3), (1000, 64))
    found = pairs(Wired()(source, target))
    assert found["L1"] == "stem"
    assert found["L3"] == "head"
    found = pairs(Wired()(plain((8, 3, 3, 3), (10, 8)), plain((8, 3, 3, 3), (8, 8), (8, 8), (10, 8))))
    assert found == {"L1": "L1", "L4": "L2"}


def gated(gates=2, classes=10):
    d = Drawing()
    x = d.conv(d.input(), shape=(8, 3, 3, 3), name="stem")
    for i in range(gates):
        y = d.conv(x, name=f"{i}.conv")
        z = d.conv(d.op("mean", y), shape=(2, 8, 1, 1), name=f"{i}.reduce")
        z = d.op("sigmoid", d.conv(d.op("relu", z), shape=(8, 2, 1, 1), name=f"{i}.expand"))
        d.nodes[-1] = replace(d.nodes[-1], shape=(1, 8, 1, 1))
        y = d.op("mul", y, z)
        d.nodes[-1] = replace(d.nodes[-1], shape=(1, 8, 4, 4))
        x = d.add(x, y)
    d.output(d.linear(d.op("mean", x), shape=(classes, 8), name="head"))
    for i, node in enumerate(d.nodes):
        if not node.shape:
            d.nodes[i] = replace(node, shape=(1, 8, 1, 1) if "reduce" in node.id else (1, 8, 4, 4))
    return d.graph()


def test_gates_go_along_with_what_they_scale():
    found = Wired()(gated(2), gated(1))
    here = pairs(found)
    kept = block(here["0.conv"])
    assert here["0.reduce"] == f"{kept}.reduce"
    assert here["0.expand"] == f"{kept}.expand"
    without = Wired()(resnet([2], side=4), gated(1))
    assert (
        without.unpaired["0.reduce"].endswith("in the source has no gate") or "without" in without.unpaired["0.reduce"]
    )


def test_reuse_repeats_layers_and_whole_blocks():
    source, target = resnet([1, 1]), resnet([3, 2])
    pairing = Wired(reuse=True)(source, target)
    assert not pairing.unpaired
    for name, other in pairs(pairing).items():
        assert name.rpartition(".")[2] == other.rpartition(".")[2]
        assert name[0] == other[0]
    chain = pairs(Wired(reuse=True)(plain(*[(8, 8, 3, 3)] * 3, (4, 8)), plain(*[(8, 8, 3, 3)] * 6, (4, 8))))
    assert len(chain) == 7
    assert chain["L7"] == "L4"


@pytest.mark.parametrize("graph", [resnet([2, 2]), resnet([1, 3], convs=3), vgg([2, 2]), gated()])
@pytest.mark.parametrize("options", [{}, {"reuse": True}, {"bonus": 0.0}, {"whole": 0.0}, {"bonus": 3.0}])
def test_identity_under_all_options(graph, options):
    assert pairs(Wired(**options)(graph, graph)) == {name: name for name in graph.layers}


def test_each_source_layer_serves_once():
    for source, target in [(resnet([1]), resnet([3, 3])), (vgg([1, 1]), resnet([2, 2])), (gated(1), gated(4))]:
        found = list(pairs(Wired()(source, target)).values())
        assert len(found) == len(set(found))


def test_options():
    assert plugins.create("matchers", "wired", {"reuse": "true", "bonus": "0.2"}) == Wired(bonus=0.2, reuse=True)
    with pytest.raises(UsageError, match="must not be negative"):
        plugins.create("matchers", "wired", {"whole": "-1"})
