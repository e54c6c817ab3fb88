"""The matcher proportional: floor(j n_s / n_t) within stages of equal resolution."""

from dataclasses import replace

import pytest
from support.drawn import Drawing, plain

from netgraft.matchers.proportional import Proportional
from netgraft.models.model import load_model
from netgraft.trace import trace

CONV, FC = (8, 8, 3, 3), (8, 8)


def pairs(pairing):
    return {pair.target: pair.source for pair in pairing.pairs}


def staged(*sides, image=32):
    """A chain of convolutions whose outputs have these sides, and a linear head."""
    d = Drawing()
    x = d.input()
    d.nodes[-1] = replace(d.nodes[-1], shape=(2, 8, image, image))
    for i, side in enumerate(sides):
        x = d.conv(x, shape=CONV, name=f"{side}.{i}", out_shape=(2, 8, side, side))
    d.output(d.linear(x, shape=FC, name="head", out_shape=(2, 8)))
    return d.graph()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (5, 3), (4, 8), (7, 2), (1, 6)])
def test_within_one_stage(m, n):
    found = pairs(Proportional()(plain(*[CONV] * m, FC), plain(*[CONV] * n, FC)))
    assert found == {f"L{j + 1}": f"L{j * m // n + 1}" for j in range(n)} | {f"L{n + 1}": f"L{m + 1}"}


def test_stage_by_stage():
    found = pairs(Proportional()(staged(32, 16, 16, 16, 16, 8), staged(32, 32, 16, 16, 8, 8)))
    places = {"32.0": "32.0", "32.1": "32.0", "16.2": "16.1", "16.3": "16.3", "8.4": "8.5", "8.5": "8.5"}
    assert found == places | {"head": "head"}


def test_the_stride_product_counts_not_the_size():
    found = pairs(Proportional()(staged(64, 32, 32, image=64), staged(32, 16, 16)))
    assert found == {"32.0": "64.0", "16.1": "32.1", "16.2": "32.2", "head": "head"}


def test_a_resolution_that_the_source_lacks_goes_to_the_nearest():
    found = pairs(Proportional()(staged(16, 16, 8), staged(32, 16, 8, 4)))
    assert found == {"32.0": "16.0", "16.1": "16.1", "8.2": "8.2", "4.3": "8.2", "head": "head"}


def test_like_kinds_only():
    pairing = Proportional()(plain(CONV, FC, CONV, FC), plain(CONV, CONV, FC, FC, FC))
    assert pairs(pairing) == {"L1": "L1", "L2": "L3", "L3": "L2", "L4": "L2", "L5": "L4"}
    pairing = Proportional()(plain(CONV, CONV), plain(FC, CONV))
    assert pairs(pairing) == {"L2": "L2"}
    assert pairing.unpaired.keys() == {"L1"}


def test_real_networks():
    source, target = (trace(load_model(name, role="target")) for name in ("resnet50", "resnet18"))
    found = pairs(Proportional()(source, target))
    assert found["layer1.0.conv1"].startswith("layer1.0")
    for name, other in found.items():
        assert name.split(".")[0] == other.split(".")[0]
    order = list(source.layers)
    places = [order.index(other) for other in found.values()]
    assert places == sorted(places)
