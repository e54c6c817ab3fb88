"""What a budget is reckoned with: more images and more steps take longer, and what is taken fits into it."""

import pytest
import timm
from support.stages import network

from netgraft.architecture.cost import fitting
from netgraft.recipes._costs import estimated_seconds
from netgraft.recipes.auto import Auto

SIZE = (3, 224, 224)


def graph(name):
    return network(lambda: timm.create_model(name), SIZE).graph


@pytest.fixture(scope="module")
def pair():
    return graph("resnet18"), graph("mobilenetv3_small_050")


def test_more_images_take_longer_until_there_are_enough_positions(pair):
    seconds = estimated_seconds(*pair, "cpu")
    assert seconds.refit(128) < seconds.refit(256) < seconds.refit(2048)
    assert fitting(pair[0], 10) < fitting(pair[0], 100) < fitting(pair[0], 10**4) == fitting(pair[0], 10**6)
    widest = 512 * 9  # unknowns of the last layers, at 7 x 7 positions
    assert fitting(pair[0], 10**6) > 3 * 40_000 * widest**2


@pytest.mark.parametrize("budget", [1, 5, 20, 300])
def test_what_is_taken_fits_into_the_budget(pair, budget):
    seconds = estimated_seconds(*pair, "cpu")
    for choice in Auto(budget=budget).candidates(*pair, "cpu"):
        recipe, took = choice.recipe, 0.0
        if choice.name in ("refit", "distil"):
            took = seconds.refit(recipe.refit_images)
        if choice.name == "distil":
            took += seconds.learning(recipe.steps)
        assert took <= 60 * budget


def test_with_more_time_more_images_and_more_steps(pair):
    taken = [Auto(budget=budget).choose(*pair, "cpu") for budget in (1, 2, 4, 10)]
    assert [each.name for each in taken] == ["refit", "refit", "distil", "distil"]
    assert taken[0].recipe.refit_images < taken[1].recipe.refit_images
    assert taken[2].recipe.steps < taken[3].recipe.steps
    assert all(each.recipe.side is None for each in taken[2:])
