"""The laws that every recipe keeps, over the whole folder: a new file is tested by being there."""

import pytest
from support.nets import Branched, Flat, Perceptron, Straight, Tied, traced
from support.recipe_laws import check_identity, check_laws, check_result, make_plan
from torch import nn

from netgraft import plugins
from netgraft.errors import NetgraftError, UsageError

RECIPES = {name: plugins.create("recipes", name, {}) for name in plugins.listing("recipes")}
every = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
NETS = {
    "straight": Straight,
    "straight, wider": lambda: Straight(((12, 5), (16, 3))),
    "straight, deeper": lambda: Straight(((8, 3), (12, 3), (12, 3)), classes=7),
    "straight, layer norms": lambda: Straight(norm=lambda width: nn.GroupNorm(1, width)),
    "flat": Flat,
    "flat, wider": lambda: Flat((6, 9), hidden=15),
    "branched": Branched,
    "branched, wider": lambda: Branched(12),
    "perceptron": Perceptron,
    "tied": Tied,
    "tied, wider and deeper": lambda: Tied(9, 2),
}
NEEDS_ATTENTION = {"mimetic", "structured"}
"""Make attention alone, and refuse all of these."""
SIZES = {"perceptron": (12,), "tied": (6,), "tied, wider and deeper": (9,)}


@pytest.fixture(scope="module")
def graphs():
    return {name: traced(build, SIZES.get(name, (3, 16, 16))) for name, build in NETS.items()}


@every
@pytest.mark.parametrize("target", NETS)
def test_laws(recipe, target, graphs):
    for source in graphs.values():
        try:
            make_plan(recipe, source, graphs[target])
        except NetgraftError:
            continue  # a recipe may refuse a pair, but not break a law
        plan = check_laws(recipe, source, graphs[target])
        check_result(plan, source, graphs[target])


@every
@pytest.mark.parametrize("name", NETS)
def test_equal_graphs_are_copied_as_a_whole(recipe, name, graphs):
    if recipe in [RECIPES[refuses] for refuses in NEEDS_ATTENTION]:
        with pytest.raises(UsageError, match="nothing in the target that it can set"):
            make_plan(recipe, graphs[name], graphs[name])
        return
    check_identity(recipe, graphs[name])


@every
def test_documented(recipe):
    assert all(option.doc for option in plugins.options(type(recipe)))
