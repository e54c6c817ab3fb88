"""The critic: its loss against finite differences of its slope, who moves in which update, and what it ends up as."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from support.runs import same, state_of, train, with_source, write_nets
from support.two_domains import flops, fresh, sides
from torch import nn
from torch.autograd import grad

from netgraft.errors import UsageError
from netgraft.finetune.methods.wdgrl import distance, slope_penalty
from netgraft.finetune.toolbox.adversary import Discriminator


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def slopes(critic, points, step=1e-6):
    """The norm of the gradient at each point, by central differences."""
    found = []
    with torch.no_grad():
        for point in points:
            moves = step * torch.eye(len(point), dtype=point.dtype)
            found.append(float(((critic(point + moves) - critic(point - moves)) / (2 * step)).norm()))
    return np.array(found)


def test_penalty_against_finite_differences():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    s, t = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64) + 1
    shares = torch.rand(6, 1, dtype=torch.float64)
    between = torch.stack([a * x + (1 - a) * y for a, x, y in zip(shares, s, t, strict=False)])
    expected = ((slopes(critic, torch.cat([s, t, between])) - 1) ** 2).mean()
    found = slope_penalty(critic, s, t, shares)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-7)
    parameter = critic[0].weight
    (gradient,) = grad(found, parameter)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            parameter[1, 2] += step
        values.append(float(slope_penalty(critic, s, t, shares).detach()))
        with torch.no_grad():
            parameter[1, 2] -= step
    assert float(gradient[1, 2]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)


def test_a_slope_of_one_is_not_penalised():
    critic = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        critic[0].weight.copy_(torch.tensor([[0.6, -0.8]]))
    s, t, shares = torch.randn(4, 2).double(), torch.randn(4, 2).double(), torch.rand(4, 1).double()
    assert float(slope_penalty(critic, s, t, shares).detach()) == pytest.approx(0, abs=1e-15)


def test_the_critic_finds_the_distance():
    """In one dimension the distance is known: the critic that descends the loss of its updates comes near it."""
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 1, 256), rng.normal(2, 0.5, 256)
    ours = [torch.from_numpy(x).float()[:, None] for x in (s, t)]
    torch.manual_seed(0)
    critic = Discriminator(1, 16)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (10 * slope_penalty(critic, *ours, torch.rand(256, 1)) - distance(critic, *ours)).backward()
        optimizer.step()
    assert float(distance(critic, *ours).detach()) == pytest.approx(wasserstein_distance(s, t), rel=0.12)


def test_losses_and_who_moves(folder):
    """The critic's own steps first, on constant features, each against the critic of the step before; then J + w W."""
    options = {"hidden": 8, "critic_steps": 2, "weight": 0.3, "penalty": 4.0}
    running, batch = fresh(folder, method="wdgrl", set=options, bn="eval")
    seen, _, run = sides(folder, bn="eval")
    net, critic = running.run.target_module, running.parts["critic"].module
    fs, ft = (side["features"].detach() for side in seen[:2])
    before = state_of(net)
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)
    for number in range(2):
        update = next(updates)
        assert update.parts == ("critic",)
        shares = running.run.random(batch, f"between {number}", 1)
        between = shares * fs + (1 - shares) * ft
        points = torch.cat([fs, ft, between]).double()
        exact = copy.deepcopy(critic).double()
        expected = 4 * ((slopes(exact, points) - 1) ** 2).mean()
        expected -= float((exact(fs.double()).mean() - exact(ft.double()).mean()).detach())
        assert float(update.losses["critic"].detach()) == pytest.approx(expected, abs=1e-5)
        assert not any(grad(update.losses["critic"], list(net.parameters()), retain_graph=True, allow_unused=True))
        stepped = state_of(critic)
        running.perform(update, 1.0)
        assert not same(stepped, state_of(critic))
    weights = dict(net.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in weights.items())
    update, stepped = next(updates), state_of(critic)
    assert update.parts == ("target",)
    torch.testing.assert_close(update.losses["task"], seen.task)
    expected = 0.3 * (critic(seen.source["features"]).mean() - critic(seen.target["features"]).mean())
    torch.testing.assert_close(update.losses["wasserstein"], expected, atol=1e-6, rtol=0)
    found = grad(update.losses["wasserstein"], net.last.weight, retain_graph=True)
    torch.testing.assert_close(found, grad(expected, run.target_module.last.weight), atol=1e-6, rtol=1e-5)
    running.perform(update, 1.0)
    assert same(stepped, state_of(critic))
    assert next(updates, None) is None


def test_random_points_differ_from_step_to_step(folder):
    """And the weight's growth and the critic's learning rate are what the options say."""
    running, batch = fresh(folder, method="wdgrl", set={"critic_lr": 0.02, "steepness": 10.0})
    assert running.run.optimizer("critic").param_groups[0]["lr"] == 0.02
    one, other = (running.run.random(batch, f"between {step}", 1) for step in (0, 1))
    assert not torch.equal(one, other)
    *_, last = running.prepared.method.epoch(running.run, [batch], running.parts)
    assert float(last.losses["wasserstein"].detach()) == 0


def test_distance_becomes_smaller(folder):
    def last(weight):
        chosen = with_source(folder, method="wdgrl", set={"weight": weight, "critic_lr": 5e-3}, epochs=6, lr=0.02)
        result, _ = train(chosen, force=True)
        return result.history[-1]["train_wasserstein"] / weight

    assert last(3.0) < 0.7 * last(1e-6)


def test_cost(folder):
    """6 F, and small products of the critic's: the network runs once."""
    plain = flops(folder, "plain")
    assert 2 * plain < flops(folder, "wdgrl", {"hidden": 4}) < 2.1 * plain


def test_no_step_is_refused(folder):
    with pytest.raises(UsageError, match="critic_steps"):
        fresh(folder, method="wdgrl", set={"critic_steps": 0})
