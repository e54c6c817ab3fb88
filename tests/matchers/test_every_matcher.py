"""The laws that every matcher keeps, over the whole folder: a new file is tested by being there."""

import pytest
from hypothesis import given, settings
from support.drawn import ZOO, graphs
from support.matcher_laws import check_identity, check_laws, check_names

from netgraft import plugins
from netgraft.matchers.protocol import Ablation

MATCHERS = {name: plugins.create("matchers", name, {}) for name in plugins.listing("matchers")}
every = pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS)
thorough = settings(deadline=None, derandomize=True, database=None, max_examples=60)


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
    assert not isinstance(matcher, Ablation) or isinstance(matcher.ablation, bool)
