"""What a budget is reckoned with: more work takes longer, smaller images less, and only networks that take them."""

import pytest
import timm
import torch
import torchvision
from support.stages import network

from netgraft.architecture.cost import fitting
from netgraft.architecture.resolution import is_pooled
from netgraft.recipes._costs import SIDES, estimated_seconds
from netgraft.recipes.auto import Auto

SIZE = (3, 224, 224)


def graph(name):
    return network(lambda: timm.create_model(name), SIZE).graph


@pytest.fixture(scope="module")
def pair():
    return graph("resnet18"), graph("mobilenetv3_small_050")


def test_who_takes_images_of_any_size(pair):
    assert all(map(is_pooled, pair))
    assert is_pooled(graph("convnext_atto"))
    assert not is_pooled(network(torchvision.models.vgg11, SIZE).graph)
    assert not is_pooled(graph("vit_tiny_patch16_224"))
    with torch.no_grad():
        assert timm.create_model("mobilenetv3_small_050").eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_smaller_images_cost_less(pair):
    seconds = estimated_seconds(*pair, "cpu")
    whole = seconds.learning(600, None)
    assert whole == pytest.approx(seconds.answer + 600 * seconds.step)
    at = [seconds.learning(600, side) for side in SIDES]
    assert whole > at[0] > at[1] > at[2]
    steps = 600 * seconds.step * (0.9 * (96 / 224) ** 2 + 0.1)
    assert at[2] == pytest.approx(steps + seconds.answer * ((96 / 224) ** 2 + 0.1))


def test_of_networks_of_one_size_no_smaller_images(pair):
    seconds = estimated_seconds(pair[0], graph("vit_tiny_patch16_224"), "cpu")
    assert list(seconds.ways([600, 300])) == [(600, None), (300, None)]
    assert list(estimated_seconds(*pair, "cpu").ways([600])) == [(600, None), *((600, side) for side in SIDES)]


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
            took += seconds.learning(recipe.steps, recipe.side)
        assert took <= 60 * budget


def test_with_more_time_full_size(pair):
    taken = [Auto(budget=budget).choose(*pair, "cpu") for budget in (1, 4, 10)]
    assert taken[0].name in ("refit", "graft")
    assert [each.name for each in taken[1:]] == ["distil", "distil"]
    assert taken[1].recipe.side in SIDES
    assert taken[2].recipe.side is None
    assert "at full size" in taken[1].why
