"""Operators that read several tensors of the source, against PyTorch's own layers."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from netgraft.errors import PlanError
from netgraft.operators.concatenate import Concatenate
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
