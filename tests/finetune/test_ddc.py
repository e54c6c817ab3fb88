"""DDC's adaptation layer: where it stands, how wide it is, what chooses, and what is written in the end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from support.runs import Killed, Killer, other_folder, same, state_of, train, training, with_source, write_nets
from support.two_domains import fresh
from torch import nn

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.toolbox import mmd

STACKED = """
import torch
from torch import nn


class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, width=6, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.top = nn.Sequential(nn.Linear(width * 16, 20), nn.ReLU(), nn.Linear(20, 14), nn.ReLU(), nn.Linear(14, 10))

    def forward(self, x):
        return self.top(nn.functional.max_pool2d(self.norm(self.stem(x)).relu(), 2).flatten(1))
"""
"""Three linear layers beside each other, as in AlexNet."""


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@pytest.fixture
def stacked(folder):
    (folder / "stacked.py").write_text(STACKED)
    return {"target": f"{folder}/stacked.py:Net", "init": None, "target_arg": {}}


def relative(s, t):
    both = np.concatenate([s, t])
    return ((s.mean(0) - t.mean(0)) ** 2).sum() / cdist(both, both, "sqeuclidean").mean()


def test_relative_discrepancy():
    rng = np.random.default_rng(0)
    s, t = rng.normal(0, 1, (9, 4)), rng.normal(1, 2, (7, 4))
    found = mmd.relative_mmd(torch.from_numpy(s), torch.from_numpy(t))
    assert float(found) == pytest.approx(relative(s, t), abs=1e-12)
    again = mmd.relative_mmd(torch.from_numpy(100 * s), torch.from_numpy(100 * t))
    assert float(again) == pytest.approx(float(found), abs=1e-12)


@pytest.mark.parametrize(("place", "before"), [("features", 4), ("top.4", 4), ("top.2", 2), ("stem", 0)])
def test_losses_of_the_layer(folder, stacked, place, before):
    """In every place: the network written out, with ``down`` and ``up`` instead of that layer."""
    running, batch = fresh(
        folder, method="ddc", set={"width": "5", "place": place, "weight": 2.0}, bn="eval", **stacked
    )
    net = running.run.target_module.eval()
    bottleneck = running.parts["adaptation"].module.get(0)
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)
    update = next(updates)
    assert update.parts == ("target", "adaptation")
    x = torch.cat([batch.source.x, batch.unlabelled.x])
    if place == "stem":
        x = narrow = bottleneck.down(x)
        x, top = F.max_pool2d(net.norm(bottleneck.up(x)).relu(), 2).flatten(1), net.top
        x = top(x)
    else:
        x = F.max_pool2d(net.norm(net.stem(x)).relu(), 2).flatten(1)
        x = narrow = bottleneck.down(net.top[:before](x))
        x = net.top[before + 1 :](bottleneck.up(x))
    narrow = narrow.flatten(2).mean(2) if narrow.dim() > 2 else narrow
    expected = 2 * (narrow[:16].mean(0) - narrow[16:].mean(0)).square().sum()
    torch.testing.assert_close(update.losses["mmd"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(update.losses["task"], F.cross_entropy(x[:16], batch.source.y), atol=1e-6, rtol=1e-5)
    running.perform(update, 1.0)
    assert next(updates, None) is None
    layer = net.stem if place == "stem" else net.top[before]
    product = torch.einsum("ow...,wi->oi...", bottleneck.up.weight, bottleneck.down.weight.flatten(1))
    torch.testing.assert_close(layer.weight.detach(), product.detach(), atol=1e-6, rtol=1e-5)


def read_by(net, number, images):
    """What the linear layer of this number reads."""
    with torch.no_grad():
        return net.top[:number](F.max_pool2d(net.norm(net.stem(images)).relu(), 2).flatten(1))


def test_place_of_the_smallest_discrepancy(folder, stacked):
    """Among all linear layers beside the classifier, by what they read, whether the domains differ there or not."""
    chosen = with_source(folder, method="ddc", set={"width": "3", "place": "auto"}, bn="eval", batch_size=64, **stacked)
    running = training(chosen)
    net, candidates = running.run.target_module, running.parts["adaptation"].module
    assert candidates.kinds == (("top.4", 3), ("top.0", 3), ("top.2", 3))
    batches = list(running.prepared.loader.epoch(0))
    net.eval()
    sides = [torch.cat(x) for x in ([b.source.x for b in batches], [b.unlabelled.x for b in batches])]
    s, t = (read_by(net, 2, x).mean(0) for x in sides)
    towards = (s - t) / (s - t).norm()
    numbers = []
    for where in ("everywhere", "nowhere"):
        with torch.no_grad():
            net.top[2].bias.fill_(50.0)  # the ReLU behind it changes nothing
            rows = torch.randn(14, 20, generator=torch.Generator().manual_seed(0))
            along = (rows @ towards)[:, None] * towards
            net.top[2].weight.copy_(along if where == "everywhere" else rows - along)
        running.prepare()
        net.eval()
        values = [relative(*(read_by(net, n, x).double().numpy() for x in sides)) for n in (4, 0, 2)]
        numbers.append(int(candidates.chosen))
        assert numbers[-1] == int(np.argmin(values)), where
    assert numbers[0] != 0
    assert numbers[1] == 0


def test_width_of_the_smallest_discrepancy(folder):
    """After the trial of each: the features' own discrepancies decide, and only the adaptation layers have moved."""
    set_ = {"width": "2,4,8", "trial": 4}
    running = training(with_source(folder, method="ddc", set=set_, bn="eval", target_arg={"drop": 0.0}))
    net, candidates = running.run.target_module, running.parts["adaptation"].module
    before, drawn = state_of(net), [state_of(one) for one in candidates.each]
    running.prepare()
    assert same(before, state_of(net))
    assert not any(same(one, state_of(other)) for one, other in zip(drawn, candidates.each, strict=True))
    net.eval()
    heard = []
    net.head.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    s, t = [], []
    for number, batch in enumerate(running.prepared.loader.epoch(0)):
        if number == 4:
            break
        for rows, x in ((s, batch.source.x), (t, batch.unlabelled.x)):
            net(x)
            rows.append(heard.pop())
    values = []
    for one in candidates.each:
        with torch.no_grad():
            values.append(relative(*(one.down(torch.cat(rows)).double().numpy() for rows in (s, t))))
    assert int(candidates.chosen) == int(np.argmin(values))
    assert not any(parameter.grad is not None for parameter in candidates.parameters())
    assert float(np.ptp(values)) > 1e-3


def test_trial_is_adam_on_the_loss(folder):
    """One step moves each parameter with a gradient by Adam's 1e-3; two, each by PyTorch's own on the loss."""
    set_ = {"width": "3,4", "trial": 2, "weight": 1.5}
    running = training(with_source(folder, method="ddc", set=set_, bn="eval", target_arg={"drop": 0.0}))
    bottleneck = running.parts["adaptation"].module.get(1)
    mine = nn.ModuleList([nn.Linear(12, 4), nn.Linear(4, 10)])
    mine[0].load_state_dict(bottleneck.down.state_dict())
    mine[1].load_state_dict(bottleneck.up.state_dict())
    running.prepare()
    net = running.run.target_module.eval()
    heard = []
    net.head.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    optimizer = torch.optim.Adam(mine.parameters(), 1e-3)
    for _, batch in zip(range(2), running.prepared.loader.epoch(0), strict=False):
        net(batch.source.x), net(batch.unlabelled.x)
        s, t = (mine[0](heard.pop(0)) for _ in range(2))
        loss = F.cross_entropy(mine[1](s), batch.source.y) + 1.5 * (s.mean(0) - t.mean(0)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(bottleneck.down.weight, mine[0].weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(bottleneck.up.weight, mine[1].weight, atol=1e-6, rtol=0)


def test_choosing_leaves_the_network_as_it_was(folder):
    """BatchNorm's running statistics too, which no pass of a trial updates."""
    options = {"width": "2,4", "place": "body,features", "trial": 2}
    running = training(with_source(folder, method="ddc", set=options))
    before = state_of(running.run.target_module)
    running.prepare()
    assert same(before, state_of(running.run.target_module))


def test_auto_widths(folder):
    running = training(with_source(folder, method="ddc", set={"width": "auto"}))
    assert running.parts["adaptation"].module.kinds == (("head", 12),)
    widths = running.prepared.method._widths
    run = type("Run", (), {"target_module": nn.ModuleDict({"a": nn.Linear(300, 2), "b": nn.Conv2d(2000, 3, 1)})})()
    assert (widths(run, "a"), widths(run, "b")) == ([64, 128, 256], [64, 128, 256, 512, 1024])


def test_interrupted(folder):
    """The choice is part of the state; the written classifier has the rank of the layer."""
    chosen = with_source(folder, method="ddc", set={"width": "2,3", "trial": 2}, recovery_interval=2)
    result, whole = train(other_folder(chosen, "whole"))
    assert result.history[0]["train_adaptation_width"] in (2, 3)
    assert torch.linalg.matrix_rank(whole["head.weight"]) == result.history[0]["train_adaptation_width"]
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(7))
    result, resumed = train(killed, resume=True)
    assert result.resumed
    assert same(whole, resumed)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"place": "head"}, UsageError),
        ({"width": "0,4"}, UsageError),
        ({"width": "some"}, UsageError),
        ({"width": "4", "trial": 0}, UsageError),
        ({"width": "4", "place": "nowhere"}, UnknownName),
        ({"width": "4", "place": "stem_norm"}, UsageError),
    ],
)
def test_senseless_options_are_refused(folder, options, error):
    with pytest.raises(error):
        training(with_source(folder, method="ddc", set=options))
