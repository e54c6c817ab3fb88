"""One network written in two ways, against a forward pass: lines, images and volumes, groups, turned weights."""

import json
from functools import partial

import pytest
import torch
from support.layout_nets import Dimensional, Grouped, Headed, Mixer, Turned
from support.nets import Net

from netgraft import plugins
from netgraft.errors import CheckFailed
from netgraft.graft import graft
from netgraft.plan import Plan
from netgraft.recipes._layout import INFLATED
from netgraft.recipes.run import run_recipe
from netgraft.report.ledger import ledger
from netgraft.trace import trace

SIDE = 12


def trained(module, seed=0):
    """Statistics and affines as after training, in eval mode and float64."""
    rng = torch.Generator().manual_seed(seed)
    for key, tensor in module.double().state_dict().items():
        if key.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng, dtype=torch.float64))
        elif tensor.is_floating_point() and tensor.ndim <= 1:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=rng, dtype=torch.float64))
    return module.eval()


def transferred(source, target, source_size, target_size=None, recipe="grow", **options):
    """(plan, source net, target net with the moves made)."""
    graphs = trace(Net(source, source_size)), trace(Net(target, target_size or source_size))
    pairing, moves, kept = run_recipe(plugins.create("recipes", recipe, options), *graphs)
    plan = Plan("s", "t", "", "", recipe, {}, pairing, moves, kept)
    torch.manual_seed(0)
    one, other = trained(source()), target().double().eval()
    other.load_state_dict(graft(plan, one.state_dict(), other.state_dict()))
    assert list(ledger(plan)), "a ledger can be written of it"
    assert Plan.from_json(json.dumps(plan.to_json())) == plan
    return plan, one, other


def images(*size):
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def apart(expected, found):
    return ((expected - found).norm() / expected.norm()).item()


def still(image, axes):
    """The image again and again along a new first axis, or more of them."""
    for _ in range(axes):
        image = image.unsqueeze(2).repeat_interleave(SIDE, 2)
    return image


# ------------------------------------------------------------------------------------------- lines, images, volumes


@pytest.mark.parametrize("recipe", ["grow", "graft", "hmt"])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (1, 2), (1, 3), (3, 2), (2, 1), (3, 1)])
def test_a_network_over_another_number_of_axes_answers_still_inputs_alike(recipe, before, after):
    """Away from padding: along the axes that come or go there is none."""
    options = {"scale": "source"} if recipe == "graft" else {}
    nets = [partial(Dimensional, axes, free=abs(before - after)) for axes in (before, after)]
    if before > after:
        nets[1] = partial(Dimensional, after, free=0)
    else:
        nets[0] = partial(Dimensional, before, free=0)
    sizes = [(3, *[SIDE] * axes) for axes in (before, after)]
    plan, source, target = transferred(*nets, *sizes, recipe=recipe, **options)
    assert not plan.kept
    inputs = [images(*min(sizes, key=len))] * 2
    inputs[before < after] = still(inputs[0], abs(before - after))
    with torch.no_grad():
        assert apart(source(inputs[0]), target(inputs[1])) < 1e-12


def test_growth_to_a_volume_in_width_and_kernel_too():
    source, target = partial(Dimensional, 2, (6, 8), free=0), partial(Dimensional, 3, (12, 24), (3, 5), free=1)
    plan, one, other = transferred(source, target, (3, SIDE, SIDE), (3, SIDE, SIDE, SIDE))
    assert not plan.kept
    assert any(note.startswith(INFLATED) for note in plan.pairing.notes)
    image = images(3, SIDE, SIDE)
    # rows of the 2D net are 3 taps high, and stay so; columns grow to 5 with their padding
    with torch.no_grad():
        assert apart(one(image), other(still(image, 1))) < 1e-12
    with pytest.raises(CheckFailed, match=INFLATED):
        transferred(source, target, (3, SIDE, SIDE), (3, SIDE, SIDE, SIDE), exact=True)


def test_a_kernel_axis_that_ends_with_one_tap_takes_the_sum_of_its_taps():
    class Cube(torch.nn.Module):
        def __init__(self, depth=2):
            super().__init__()
            self.conv = torch.nn.Conv3d(2, 4, (depth, 2, 2))
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3, 4)))

    for recipe in ("grow", "graft"):
        plan, source, target = transferred(Cube, partial(Cube, 1), (2, SIDE, 5, 5), recipe=recipe)
        assert not plan.kept
        volume = still(images(2, 5, 5), 1)
        with torch.no_grad():
            assert apart(source(volume), target(volume)) < 1e-12


def test_auto_takes_growth_for_the_same_network_over_volumes():
    graphs = trace(Net(Dimensional, (3, 12, 12))), trace(Net(partial(Dimensional, 3), (3, 12, 12, 12)))
    choice = plugins.create("recipes", "auto", {}).choose(*graphs, "cpu")
    assert choice.name == "grow"
    assert "still" in choice.why


# --------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(("before", "after"), [(4, 1), (8, 1), (8, 4), (4, 2)])
@pytest.mark.parametrize("recipe", ["grow", "graft"])
def test_larger_groups_hold_what_smaller_ones_compute(recipe, before, after):
    options = {"scale": "source"} if recipe == "graft" else {}
    nets = [partial(Grouped, groups) for groups in (before, after)]
    plan, source, target = transferred(*nets, (3, 8, 8), recipe=recipe, **options)
    assert not plan.kept
    assert not plan.pairing.notes
    with torch.no_grad():
        assert apart(source(images(3, 8, 8)), target(images(3, 8, 8))) < 1e-12


def test_of_a_dense_kernel_the_blocks_on_the_diagonal_stay_and_it_is_said():
    plan, source, target = transferred(Grouped, partial(Grouped, 4), (3, 8, 8))
    dense, grouped = source.blocks[0][3].weight, target.blocks[0][3].weight
    for group in range(4):
        rows = slice(2 * group, 2 * group + 2)
        assert torch.equal(grouped[rows], dense[rows, rows])
    assert any("what stays within 4 groups" in note for note in plan.pairing.notes)


def test_more_groups_of_the_same_size_are_growth_as_before():
    plan, source, target = transferred(partial(Grouped, 4, 8), partial(Grouped, 8, 16), (3, 8, 8))
    assert not any(step.operator in ("to-dense", "to-grouped") for move in plan.moves for step in move.steps)
    with torch.no_grad():
        assert apart(source(images(3, 8, 8)), target(images(3, 8, 8))) < 1e-12


def test_a_dense_kernel_says_nothing_of_a_depthwise_one_to_growth():
    plan, *_ = transferred(Grouped, partial(Grouped, 8), (3, 8, 8))
    assert "the target does not contain the source" in plan.pairing.notes[0]


# ------------------------------------------------------------------------------------------------- linear layers


@pytest.mark.parametrize("turned", ["source", "target"])
@pytest.mark.parametrize(("recipe", "wide"), [("grow", 1), ("grow", 2), ("graft", 1), ("graft", 2), ("hmt", 1)])
def test_a_linear_layer_is_the_same_with_its_weight_turned(recipe, wide, turned):
    linear = [Turned, torch.nn.Linear] if turned == "source" else [torch.nn.Linear, Turned]
    nets = partial(Mixer, linear[0]), partial(Mixer, linear[1], 8 * wide, 16 * wide)
    options = {"scale": "source"} if recipe == "graft" else {}
    plan, source, target = transferred(*nets, (4, 6), recipe=recipe, **options)
    assert not plan.kept
    tokens = images(4, 6)
    with torch.no_grad():
        assert apart(source(tokens), target(tokens)) < 1e-12


@pytest.mark.parametrize("convolutional", [True, False])
def test_a_classifier_of_convolutions_is_one_of_linear_layers(convolutional):
    nets = partial(Headed, convolutional), partial(Headed, not convolutional, hidden=20)
    plan, source, target = transferred(*nets, (3, 8, 8))
    assert not plan.kept
    with torch.no_grad():
        assert apart(source(images(3, 8, 8)), target(images(3, 8, 8))) < 1e-12


def test_a_map_pairs_a_linear_layer_with_a_convolution_of_one_tap():
    _, source, target = transferred(
        Headed, partial(Headed, True), (3, 8, 8), recipe="graft", maps=(("head", "head"),), scale="source"
    )
    assert torch.equal(target.head.weight.flatten(1), source.head.weight)
