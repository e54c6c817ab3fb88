"""What a recipe is told about its fits reaches the passes that make them."""

import pytest
from support.refit_nets import Plain
from support.stages import network

from netgraft import plugins

SIZE = (3, 16, 16)


@pytest.fixture(scope="module")
def graphs():
    return network(Plain, SIZE).graph, network(lambda: Plain((4, 6, 6)), SIZE).graph


def options(graphs, recipe, name, **given):
    return dict(plugins.create("recipes", recipe, given).passes(*graphs))[name]


def test_of_a_refit(graphs):
    assert options(graphs, "refit", "refit", refit_images=77)["images"] == 77
    assert options(graphs, "refit", "refit", keep_head=True)["head"] == "keep"
    assert "head" not in options(graphs, "refit", "refit")


@pytest.mark.parametrize("recipe", ["distil", "fit-seam"])
@pytest.mark.parametrize(
    ("name", "value"), [("side", 40), ("cut", 7), ("steps", 9), ("batch", 5), ("lr", 0.5), ("images", 99)]
)
def test_of_a_distillation(graphs, recipe, name, value):
    assert options(graphs, recipe, "distil", **{name: value})[name] == value
    assert options(graphs, recipe, "distil")[name] != value


@pytest.mark.parametrize(("name", "value"), [("mixing", "cutmix"), ("choose", "statistics")])
def test_of_the_images_of_a_distillation(graphs, name, value):
    assert options(graphs, "distil", "distil", **{name: value})[name] == value
    assert options(graphs, "distil", "distil")[name] != value


def test_the_head_that_is_kept(graphs):
    assert options(graphs, "distil", "distil", keep_head=True)["head"] == "keep"
    assert options(graphs, "distil", "refit", keep_head=True)["head"] == "keep"
