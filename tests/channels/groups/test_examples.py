"""The worked examples in the texts of channel groups are what the code says."""

from support.nets import traced
from torch import nn

from netgraft.channels.groups.axes import Fixed, Product, Var, normal
from netgraft.channels.groups.find import find_groups


def test_axes_of_a_convolution_a_norm_and_a_flattened_map():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 5)
    )
    axes = find_groups(traced(lambda: net, (2, 3, 3))).axes
    channels, *rest = (normal(axis) for axis in axes["0.weight"])
    assert isinstance(channels, Var)
    assert channels.size == 4
    assert rest == [Fixed(2), Fixed(3), Fixed(3)]
    assert axes["1.weight"] == (channels,)
    assert axes["4.weight"] == (Fixed(5), Product((channels, Fixed(9))))


def test_the_group_between_two_convolutions():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    (group,) = find_groups(traced(lambda: net, (2, 8, 8))).groups
    assert group.size == 4
    assert set(group.members) == {
        *(("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0)),
        *(("1.running_mean", 0), ("1.running_var", 0), ("3.weight", 1)),
    }
