"""The laws that every matcher keeps, over the whole folder: a new file is tested by being there."""

import pytest
from hypothesis import given, settings
from support.drawn import ZOO, graphs, renamed

from netgraft import plugins
from netgraft.plan import Pairing

MATCHERS = {name: plugins.create("matchers", name, {}) for name in plugins.listing("matchers")}
every = pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS)
thorough = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def check_laws(matcher, source, target):
    pairing = matcher(source, target)
    assert isinstance(pairing, Pairing)
    targets = [pair.target for pair in pairing.pairs]
    assert len(set(targets)) == len(targets), "a target more than once"
    assert set(targets) <= target.layers.keys()
    assert {pair.source for pair in pairing.pairs} <= source.layers.keys()
    assert all(pair.why for pair in pairing.pairs)
    for pair in pairing.pairs:
        assert source.layers[pair.source].kind == target.layers[pair.target].kind
    kernels = {layer.name for layer in target.kernels()}
    assert kernels <= set(targets) | pairing.unpaired.keys(), "a kernel without a partner and without a reason"
    assert not set(targets) & pairing.unpaired.keys()
    assert all(pairing.unpaired.values())
    assert matcher(source, target) == pairing, "not deterministic"
    return pairing


def check_names(matcher, source, target, pairing):
    """Other names, same pairs."""
    (other_source, there), (other_target, here) = renamed(source, "s_"), renamed(target, "t_")
    other = matcher(other_source, other_target)
    assert [(there[p.source], here[p.target]) for p in other.pairs] == [(p.source, p.target) for p in pairing.pairs]
    assert {here[name] for name in other.unpaired} == set(pairing.unpaired)


@every
@pytest.mark.parametrize("target", ZOO)
def test_laws(matcher, target):
    for source in ZOO.values():
        pairing = check_laws(matcher, source, ZOO[target])
        check_names(matcher, source, ZOO[target], pairing)


@every
@thorough
@given(source=graphs(), target=graphs())
def test_laws_on_any_graphs(matcher, source, target):
    check_names(matcher, source, target, check_laws(matcher, source, target))


def check_identity(matcher, graph):
    pairing = matcher(graph, graph)
    if getattr(matcher, "ablation", False):
        return
    assert all(pair.source == pair.target for pair in pairing.pairs)
    if any(graph.by_id[id].layer in {k.name for k in graph.kernels()} for id in graph.from_input & graph.to_output):
        assert pairing.pairs


@every
@pytest.mark.parametrize("name", ZOO)
def test_the_same_graph_gives_identity(matcher, name):
    check_identity(matcher, ZOO[name])


@every
@thorough
@given(graph=graphs())
def test_the_same_graph_gives_identity_whatever_it_is(matcher, graph):
    check_identity(matcher, graph)


@every
def test_documented(matcher):
    assert all(option.doc for option in plugins.options(type(matcher)))
    assert isinstance(getattr(matcher, "ablation", False), bool)
