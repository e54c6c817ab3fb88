"""The BatchNorm mismatch against nets whose statistics are computed by hand."""

import math

import pytest
import torch
from support.mismatch import bn_mismatch, layer_mismatches
from torch import nn


def two_layers():
    """conv 1x1 (1 -> 2 channels, weights 1 and 2), norm, conv 1x1 (2 -> 1, their difference), norm; eps 0."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False),
        nn.BatchNorm2d(2, eps=0),
        nn.Conv2d(2, 1, 1, bias=False),
        nn.BatchNorm2d(1, eps=0),
    )
    net[0].weight.data = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    net[1].running_mean = torch.tensor([1.0, 2.0])
    net[1].running_var = torch.tensor([4.0, 1.0])
    net[2].weight.data = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    net[3].running_mean = torch.tensor([0.5])
    net[3].running_var = torch.tensor([2.0])
    return net


def test_agrees_with_a_computation_by_hand():
    values = [0.0, 1.0, 2.0, 5.0]  # mean 2, unbiased variance 14 / 3
    images = torch.tensor(values).reshape(2, 1, 1, 2)
    first = [((2 - 1) ** 2 / 4, 14 / 3 / 4), ((4 - 2) ** 2 / 1, 4 * 14 / 3 / 1)]  # mean's part, ratio of variances
    expected_first = sum(mean + math.log(ratio) ** 2 for mean, ratio in first) / 2
    second = [(x - 1) / 2 - (2 * x - 2) for x in values]
    mean = sum(second) / 4
    variance = sum((x - mean) ** 2 for x in second) / 3
    expected_second = (mean - 0.5) ** 2 / 2 + math.log(variance / 2) ** 2
    layers = layer_mismatches(two_layers(), images)
    assert layers == {"1": pytest.approx(expected_first), "3": pytest.approx(expected_second)}
    assert bn_mismatch(two_layers(), images) == pytest.approx((expected_first + expected_second) / 2)


def test_batches_make_no_difference():
    images = torch.rand(23, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert bn_mismatch(two_layers(), images, batch=4) == pytest.approx(bn_mismatch(two_layers(), images), rel=1e-9)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten()
    )


def fitted(images):
    """A net whose running statistics are those of ``images``."""
    net = small_net()
    for layer in (net[1], net[4]):
        layer.momentum = None
    net.train()
    for _ in range(2):  # the deeper layer's statistics need the first one's in place: in training mode they are
        for layer in (net[1], net[4]):
            layer.reset_running_stats()
        with torch.no_grad():
            net(images)
    return net.eval()


def test_own_statistics_score_nothing_and_shifted_images_more():
    images = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    net = fitted(images)
    own = bn_mismatch(net, images)
    fresh = bn_mismatch(net, torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(2)))
    shifted, far, flat = (bn_mismatch(net, other) for other in (images + 0.3, images + 1, images * 0.2))
    assert own < 1e-4
    assert fresh < 0.02
    assert own < fresh < shifted < far
    assert flat > 1


def test_no_statistics_no_score():
    images = torch.rand(2, 3, 8, 8)
    assert bn_mismatch(nn.Conv2d(3, 3, 1), images) is None
    assert bn_mismatch(nn.InstanceNorm2d(3, track_running_stats=True), images) is None
    assert bn_mismatch(nn.BatchNorm2d(3, track_running_stats=False), images) is None
    assert bn_mismatch(small_net(), images[:0]) is None


def test_layers_that_the_images_do_not_reach_do_not_count():
    net = small_net()
    net.add_module("aux", nn.ModuleList([nn.BatchNorm2d(4)]))
    net.forward = lambda x: net[4](net[3](net[2](net[1](net[0](x)))))
    assert set(layer_mismatches(net, torch.rand(4, 3, 8, 8))) == {"1", "4"}


def test_dead_channels_stay_finite():
    net = small_net()
    net[0].weight.data[0] = 0
    net[0].bias.data[0] = 0
    net[1].running_var[0] = 0
    net[1].running_mean[0] = 0
    alive = layer_mismatches(net, torch.rand(4, 3, 8, 8))["1"]
    assert math.isfinite(alive)


def test_the_module_is_left_as_it_was():
    net = small_net().train()
    net[4].eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.rand(4, 3, 8, 8)
    bn_mismatch(net, images)
    assert [part.training for part in net] == [True, True, True, True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_a_failing_forward_pass_leaves_no_hooks():
    net = small_net().train()
    with pytest.raises(RuntimeError):
        bn_mismatch(net, torch.rand(4, 5, 8, 8))
    assert net.training
    assert not any(part._forward_pre_hooks for part in net.modules())
