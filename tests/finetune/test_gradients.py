"""From losses to ``.grad``: sums, penalties, what is not reached, one collective before the rule."""

import pytest
import torch
from torch import nn

from netgraft.finetune.combine import Combined, Vector, dtnh, total
from netgraft.finetune.engine.gradients import Gradients, scaled
from netgraft.finetune.protocol import Penalty, Update
from netgraft.finetune.toolbox.terms import l2_penalty


class Alone:
    """One process."""

    world, rank = 1, 0


class Many:
    """This process as one of several whose gradients are ``others``: the collective averages with them."""

    rank = 0

    def __init__(self, others):
        self.others, self.world, self.calls = others, 1 + len(others), 0

    def mean_(self, flat):
        self.calls += 1
        for other in self.others:
            flat += other
        flat /= self.world
        return flat


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def losses(net):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    out = net(x)
    return {"task": out.square().mean(), "other": out[:, 0].sin().mean()}


def gradient(net, loss):
    return [g.clone() for g in torch.autograd.grad(loss, list(net.parameters()))]


def test_total_is_the_gradient_of_the_sum(net):
    expected = gradient(net, sum(losses(net).values()))
    performed = Gradients(Alone(), total)(Update(("target",), losses(net)), list(net.parameters()))
    for parameter, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, g)
    assert performed.values.keys() == {"task", "other"}


def test_penalty_is_the_gradient_of_its_value(net):
    """The analytic L2-SP against autograd, alone and within DTNH."""
    start = [torch.randn_like(p) for p in net.parameters()]
    value = sum((p - s).square().sum() for p, s in zip(net.parameters(), start, strict=True)) * 0.15
    penalty = l2_penalty(list(net.parameters()), 0.3, start)
    assert float(penalty.value) == pytest.approx(float(value.detach()), rel=1e-5)
    for rule in (total, dtnh):
        given = {"task": losses(net)["task"]}
        Gradients(Alone(), rule)(Update(("target",), given, {"sp": penalty}), list(net.parameters()))
        fast = [p.grad.clone() for p in net.parameters()]
        slow = {"task": losses(net)["task"]}
        slow["sp"] = sum((p - s).square().sum() for p, s in zip(net.parameters(), start, strict=True)) * 0.15
        Gradients(Alone(), rule)(Update(("target",), slow), list(net.parameters()))
        for mine, parameter in zip(fast, net.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad)


def test_unreached_parameters_are_left_alone(net):
    middle = net[1](net[0](torch.ones(2, 4))).mean()
    net[2].weight.grad = torch.ones_like(net[2].weight)
    Gradients(Alone(), total)(Update(("target",), {"inner": middle}), list(net.parameters()))
    assert net[0].weight.grad is not None
    assert net[2].weight.grad is None


def test_a_graph_is_kept_where_it_is_needed(net):
    given = losses(net)
    perform = Gradients(Alone(), dtnh)
    perform(Update(("target",), given, keep=True), list(net.parameters()))
    perform(Update(("target",), given), list(net.parameters()))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(given["task"], list(net.parameters()))


def test_clipping_comes_last(net):
    Gradients(Alone(), total, clip=0.01)(Update(("target",), losses(net)), list(net.parameters()))
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("before", [False, True])
def test_projection_comes_after_the_all_reduce(before):
    """Two processes: here task and regulariser conflict, on average they do not. ``before`` is the wrong order."""
    p = nn.Parameter(torch.zeros(2))
    here = {"task": torch.tensor([1.0, 0.0]), "sp": torch.tensor([-1.0, 1.0])}
    there = {"task": torch.tensor([1.0, 0.0]), "sp": torch.tensor([3.0, 1.0])}
    update = Update(("target",), {name: (p * g).sum() for name, g in here.items()})
    vanilla = sum(here.values()) / 2 + sum(there.values()) / 2
    if before:
        projected = [
            dtnh(("task", "sp"), lambda *groups, d=d: tuple(Vector([d[g[0]].clone()]) for g in groups))
            for d in (here, there)
        ]
        assert not torch.allclose((projected[0].direction.pieces[0] + projected[1].direction.pieces[0]) / 2, vanilla)
        return
    processes = Many([torch.cat([there["task"], there["sp"], torch.zeros(3)])])
    Gradients(processes, dtnh)(update, [p])
    torch.testing.assert_close(p.grad, vanilla)
    assert processes.calls == 1


def test_penalties_are_added_after_the_average_once():
    p = nn.Parameter(torch.ones(2))
    update = Update(
        ("target",), {"task": p.sum()}, {"sp": Penalty(torch.tensor(1.0), [p], [torch.tensor([10.0, 20.0])])}
    )
    Gradients(Many([torch.tensor([3.0, 3.0, 0.0, 0.0])]), total)(update, [p])
    assert p.grad.tolist() == [12.0, 22.0]


def test_uneven_shares_are_weighted():
    """Three samples here and one there: the mean over four, not the mean of means."""
    p = nn.Parameter(torch.zeros(1))
    update = Update(("target",), {"task": (p * torch.tensor([1.0, 2.0, 3.0])).mean()})
    other = torch.tensor([8.0 * 2 / 4, 0.0, 0.0])  # one sample of gradient 8, weighted by 1 * 2 / 4
    Gradients(Many([other]), total)(update, [p], weight=3 * 2 / 4)
    assert p.grad.tolist() == pytest.approx([(1 + 2 + 3 + 8) / 4])


def test_lambda_scales_regularisers_of_the_target_only():
    a = torch.tensor(2.0)
    update = Update(("target", "adapter"), {"task": a, "fm": a}, {"sp": Penalty(a, [a], [a.clone()])})
    half = scaled(update, 0.5)
    assert (float(half.losses["task"]), float(half.losses["fm"])) == (2.0, 1.0)
    assert float(half.penalties["sp"].gradients[0]) == 1.0
    assert scaled(update, 0).losses.keys() == {"task"}
    assert not scaled(update, 0).penalties
    assert scaled(Update(("target",), {"fm": a}), 0) is None
    judge = Update(("judge",), {"judge": a})
    assert scaled(judge, 0) is judge


def test_a_rule_sees_values_of_all_processes():
    p = nn.Parameter(torch.ones(1))
    seen = {}

    def rule(names, grads):
        seen["names"] = names
        return Combined(grads(names)[0], {})

    processes = Many([torch.tensor([4.0, 5.0, 1.0])])
    performed = Gradients(processes, rule)(Update(("target",), {"task": 3 * p.sum()}), [p])
    assert seen["names"] == ("task",)
    assert float(performed.values["task"]) == 4.0
    assert float(performed.stop) > 0


def test_gradients_that_autograd_shares_are_taken_apart():
    """For p + q autograd returns one tensor twice; adding to both in place would add twice."""
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    out = p + q
    given = {"task": (out * torch.tensor([1.0, 2.0, 3.0])).sum(), "fm": (out * torch.tensor([1.0, 0.0, 1.0])).sum()}
    Gradients(Alone(), dtnh)(Update(("target",), given), [p, q])
    assert p.grad.tolist() == q.grad.tolist() == [2.0, 2.0, 4.0]


def test_gradients_have_the_strides_of_their_parameters():
    """A fused optimizer reads memory in order: a channels-last gradient of a contiguous kernel would be mixed up."""
    conv = nn.Conv2d(4, 5, 3)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    expected = torch.autograd.grad(conv(x).square().sum(), conv.weight)[0].contiguous()
    turned = expected.contiguous(memory_format=torch.channels_last)
    Gradients(Alone(), total)(
        Update(("target",), {}, {"sp": Penalty(torch.tensor(0.0), [conv.weight], [turned])}), [conv.weight]
    )
    assert conv.weight.grad.stride() == conv.weight.stride()
    assert torch.equal(conv.weight.grad, expected)
