"""Operators that read several tensors of the source, against PyTorch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from netgraft.errors import PlanError
from netgraft.operators.concatenate import Concatenate
from netgraft.operators.regroup_norm import RegroupNorm
from netgraft.operators.row_norm import RowNorm
from netgraft.operators.weight_norm import WeightNorm


def test_three_projections_in_one():
    torch.manual_seed(0)
    three, x = [nn.Linear(5, 4) for _ in range(3)], torch.randn(2, 5)
    source = {f"{i}.{role}": tensor for i, net in enumerate(three) for role, tensor in net.state_dict().items()}
    one = nn.Linear(5, 12)
    joined = {role: Concatenate((f"1.{role}", f"2.{role}"))(source[f"0.{role}"], source) for role in ("weight", "bias")}
    one.load_state_dict(joined)
    torch.testing.assert_close(one(x), torch.cat([net(x) for net in three], 1))


@pytest.mark.parametrize(("keys", "dim"), [(("absent",), 0), (("narrow",), 0), (("tall",), 1)])
def test_what_does_not_fit_is_refused(keys, dim):
    source = {"narrow": torch.zeros(4, 3), "tall": torch.zeros(5, 5)}
    with pytest.raises(PlanError, match=f"concatenate: {keys[0]} does not fit"):
        Concatenate(keys, dim)(torch.zeros(4, 5), source)


def test_weight_norm_both_ways():
    torch.manual_seed(0)
    normed = weight_norm(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(torch.rand(4, 1, 1, 1) + 0.5)
    state = normed.state_dict()
    direction = state["parametrizations.weight.original1"]
    plain = WeightNorm("parametrizations.weight.original0")(direction, state)
    torch.testing.assert_close(plain, normed.weight.detach())
    again = weight_norm(nn.Conv2d(3, 4, 3))
    again.load_state_dict(
        {"bias": state["bias"], "parametrizations.weight.original0": RowNorm()(plain)}
        | {"parametrizations.weight.original1": plain}
    )
    torch.testing.assert_close(again.weight.detach(), plain)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_batch_norm_as_one_over_groups(groups):
    """On an image whose channels have just the mean and variance that the batch norm has kept, both are the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 40, 40, generator=generator, dtype=torch.float64)
    x = (x - x.mean((2, 3), keepdim=True)) / x.var((2, 3), correction=0, keepdim=True).sqrt()
    wide, centre = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.3 for _ in range(2))
    x = x * wide.view(-1, 1, 1) + 4 * centre.view(-1, 1, 1)
    before, after = nn.BatchNorm2d(6, eps=0.0).double().eval(), nn.GroupNorm(groups, 6, eps=0.0).double()
    for tensor in before.parameters():
        nn.init.uniform_(tensor, 0.5, 2.0, generator=generator)
    before.running_mean.copy_(4 * centre), before.running_var.copy_(wide**2)
    state = before.state_dict()
    common = {"groups": groups, "mean": "running_mean", "variance": "running_var", "eps": 0.0}
    weight = RegroupNorm("weight", **common)(state["weight"], state)
    bias = RegroupNorm("bias", **common, gamma="weight")(state["bias"], state)
    after.load_state_dict({"weight": weight, "bias": bias})
    torch.testing.assert_close(after(x), before(x))


def test_groups_that_do_not_divide_the_channels_are_refused():
    state = {"m": torch.zeros(6), "v": torch.ones(6)}
    with pytest.raises(PlanError, match="cannot be cut into 4 groups"):
        RegroupNorm("weight", 4, "m", "v")(torch.ones(6), state)
