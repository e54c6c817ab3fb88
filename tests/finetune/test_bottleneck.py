"""A layer before the classifier that ends as part of it: the product, whose rate is smaller, what is written."""

import pytest
import torch
from support.runs import (
    Killed,
    Killer,
    other_folder,
    same,
    state_of,
    train,
    training,
    with_source,
    write_nets,
    written_net,
)
from support.two_domains import fresh
from torch import nn
from torch.autograd import grad

from netgraft.errors import UsageError
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.bottleneck import Bottleneck, inserted


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


LAYERS = [
    nn.Linear(5, 4),
    nn.Linear(5, 4, bias=False),
    nn.Conv2d(5, 4, 1),
    nn.Conv2d(5, 4, 3, stride=2, padding=1),
    nn.Conv2d(5, 4, (3, 2), dilation=2, bias=False),
    nn.Conv2d(5, 4, 3, padding="same"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("width", [3, 9])
def test_product_is_the_layer(layer, width):
    """What passes go through inside is what the layer itself does after folding."""
    torch.manual_seed(0)
    layer = nn.Sequential(layer).double()
    bottleneck = Bottleneck(layer[0], width).double()
    x = torch.randn(2, 5, dtype=torch.float64) if isinstance(layer[0], nn.Linear) else torch.randn(2, 5, 8, 8).double()
    before = layer(x)
    with inserted(layer[0], bottleneck) as narrow:
        inside = layer(x)
    torch.testing.assert_close(narrow[0], bottleneck.down(x))
    assert narrow[0].shape[1] == width
    assert torch.equal(layer(x), before)
    bottleneck.fold(layer[0])
    torch.testing.assert_close(layer(x), inside, atol=1e-9, rtol=0)
    rows = layer[0].weight.detach().transpose(0, 1).flatten(1)  # one for each input
    assert torch.linalg.matrix_rank(rows) == min(width, *rows.shape)


def test_own_layer_gets_no_gradient():
    layer, x = nn.Linear(5, 4), torch.randn(2, 5)
    bottleneck = Bottleneck(layer, 3)
    with inserted(layer, bottleneck):
        found = grad(layer(x).sum(), [*layer.parameters(), *bottleneck.parameters()], allow_unused=True)
    assert [g is None for g in found] == [True, True, False, False, False, False]


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)])
def test_other_layers_are_refused(layer):
    with pytest.raises(UsageError, match="adaptation layer") as raised:
        Bottleneck(layer, 2, "head")
    assert "head" in str(raised.value)


# ------------------------------------------------------------------------------------------------------------------ dan


def test_rates(folder):
    """The network's learning rate is a tenth, also by the schedule; without a bottleneck it is whole."""
    for options, expected in (({"bottleneck": 4}, 0.1), ({"bottleneck": 4, "backbone_rate": 0.5}, 0.5), ({}, 1.0)):
        running = training(with_source(folder, method="dan", set=options, lr=0.04, out=f"{folder}/{len(str(options))}"))
        lr = {name: optimizer.param_groups[0]["lr"] for name, optimizer in running.run.optimizers.items()}
        assert lr["target"] == pytest.approx(expected * 0.04)
        assert lr.get("bottleneck", 0.04) == pytest.approx(0.04)
        for schedule in running.schedules:
            schedule.step_update(5)
        later = {name: optimizer.param_groups[0]["lr"] for name, optimizer in running.run.optimizers.items()}
        assert later["target"] == pytest.approx(expected * later.get("bottleneck", later["target"] / expected))


def test_losses_are_of_the_bottleneck(folder):
    set_ = {"bottleneck": 4, "layers": "features,logits,head"}
    running, batch = fresh(folder, method="dan", set=set_, bn="eval")
    net, bottleneck = running.run.target_module, running.parts["bottleneck"].module
    net.eval()
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)
    update = next(updates)
    assert update.parts == ("target", "bottleneck")
    found = []
    handle = net.head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    net(torch.cat([batch.source.x, batch.unlabelled.x]))
    handle.remove()
    narrow = found[0] @ bottleneck.down.weight.T + bottleneck.down.bias
    logits = narrow @ bottleneck.up.weight.T + bottleneck.up.bias
    one, two = (mmd.mmd([x[:16]], [x[16:]], [mmd.gaussians()], "linear") for x in (narrow, logits))
    torch.testing.assert_close(update.losses["mmd"], one + 2 * two, atol=1e-5, rtol=1e-5)
    task = nn.functional.cross_entropy(logits[:16], batch.source.y)
    torch.testing.assert_close(update.losses["task"], task, atol=1e-5, rtol=1e-5)
    whole = sum(update.losses.values())
    assert grad(whole, net.head.weight, retain_graph=True, allow_unused=True) == (None,)
    before = state_of(bottleneck)
    running.perform(update, 1.0)
    assert not same(before, state_of(bottleneck))
    assert next(updates, None) is None
    product = bottleneck.up.weight @ bottleneck.down.weight
    torch.testing.assert_close(net.head.weight.detach(), product.detach())


def test_what_is_written_is_the_product(folder):
    """And an interrupted training ends the same."""
    chosen = with_source(folder, method="dan", set={"bottleneck": 3}, recovery_interval=2, lam=0.1)
    _, whole = train(other_folder(chosen, "whole"))
    assert torch.linalg.matrix_rank(whole["head.weight"]) == 3
    running = training(other_folder(chosen, "again"))
    (folder / "again").mkdir()
    running.all()
    bottleneck = running.parts["bottleneck"].module
    x = torch.randn(4, 12)
    net = running.run.target_module
    torch.testing.assert_close(net.head(x), bottleneck(x)[1], atol=1e-6, rtol=1e-5)
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(7))
    result, resumed = train(killed, resume=True)
    assert same(whole, resumed)
    assert written_net(folder, whole).head.weight.shape == (10, 12)
    assert result.resumed
