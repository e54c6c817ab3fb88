"""A file with another implementation's keys: both networks run, and what cannot be told is refused."""

import pytest
import torch
from torch import nn

from netgraft.models.foreign_keys import by_order


def state(net, seed=0):
    torch.manual_seed(seed)
    return {
        key: torch.rand_like(value) + 0.1 if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }


class One(nn.Module):
    def __init__(self, last=6):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b, self.c, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(6, last, 3), nn.Linear(last, 5)

    def forward(self, x):
        return self.head(self.c(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))


class Other(nn.Module):
    """The same with other names; a linear layer for the convolution of one pixel."""

    def __init__(self, swapped=False):
        super().__init__()
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6), nn.Conv2d(6, 6, 3), nn.Linear(6, 5)]
        self.layers = nn.ModuleList(layers[::-1] if swapped else layers)

    def forward(self, x):
        a, norm, b, c, head = self.layers
        x = b(torch.relu(norm(a(x))).movedim(1, -1)).movedim(-1, 1)
        return head(c(x).mean((2, 3)))


def test_the_other_network_computes_the_same():
    one, other = One(), Other()
    given = state(one)
    other.load_state_dict({**other.state_dict(), **by_order(given, other.state_dict())})
    one.load_state_dict(given)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), one.eval()(x))


def test_counters_may_be_missing_and_purposes_come_in_any_order():
    given = {key: value for key, value in state(One()).items() if "num_batches" not in key}
    turned = dict(sorted(given.items(), key=lambda each: (list("anbch").index(each[0][0]), each[0])))
    assert list(turned) != list(given)  # biases before weights
    found = by_order(turned, Other().state_dict())
    assert all(torch.equal(found[key].flatten(), value.flatten()) for key, value in by_order(given, found).items())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (One(7), Other()),  # another width
        (One(), Other(swapped=True)),  # another order
        (One(), nn.Sequential(*Other().layers[:4])),  # a layer less
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))),  # too few
    ],
)
def test_what_order_and_shapes_do_not_tell(given, wanted):
    assert by_order(state(given), wanted.state_dict()) is None


def test_a_weight_never_becomes_a_statistic():
    given = state(One())
    given["norm.extra"] = given.pop("norm.running_mean")
    assert by_order(given, Other().state_dict()) is None
