"""Adversaries: the reversed gradient, who is frozen when, multilinear maps, weights, and what a step costs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from support.runs import Killed, Killer, other_folder, same, state_of, steps, train, training, with_source, write_nets
from support.two_domains import flops, fresh, sides
from support.two_processes import SAME, distance, launch, weights
from torch.autograd import grad, gradcheck
from torch.utils.flop_counter import FlopCounterMode

from netgraft.errors import UsageError
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.methods.cdan import certainty
from netgraft.finetune.toolbox.adversary import (
    Discriminator,
    Multilinear,
    domain_loss,
    is_source,
    ramp,
    recognised,
    reverse,
)


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def first_update(folder, method, set_=None, progress=0.0, **more):
    """The first update of a run that is so far already, those after it, and the run."""
    running, batch = fresh(folder, method=method, set=set_ or {}, **more)
    running.run.step = round(progress * running.run.steps)
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)
    return next(updates), updates, running


# ---------------------------------------------------------------------------------------------------------- adversaries


def test_reversal():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reverse(x, 0.3), x)
    (gradient,) = grad((reverse(x, 0.3) ** 2).sum(), x)
    torch.testing.assert_close(gradient, -0.3 * 2 * x.detach())
    assert gradcheck(lambda x: reverse(x, -1.0) ** 3, x)  # a strength of -1 is the identity


def test_ramp():
    run = type("Run", (), {"steps": 40})()
    values = []
    for run.step in range(41):
        values.append(ramp(run, 10.0))
        assert ramp(run, 0.0) == 1
    expected = [math.tanh(10 * step / 40 / 2) for step in range(41)]  # the same function
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert values[0] == 0


def test_domain_loss():
    s, t = torch.randn(6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    one, zero = torch.ones_like(s), torch.zeros_like(t)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(domain_loss(s, t), (bce(s, one) + bce(t, zero)) / 2)
    torch.testing.assert_close(is_source(t).mean(), bce(t, torch.ones_like(t)))
    ws, wt = torch.rand(6, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    expected = (bce(s, one, weight=ws) + bce(t, zero, weight=wt)) / 2
    torch.testing.assert_close(domain_loss(s, t, (ws, wt)), expected)
    assert float(recognised(torch.tensor([1.0, -1]), torch.tensor([-1.0, -2, -3, 4]))) == (0.5 + 0.75) / 2


def test_discriminator_sees_each_image_alone():
    net, x = Discriminator(4, 8), torch.randn(5, 4)
    assert net(x).shape == (5,)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))
    assert not list(net.buffers())


# ----------------------------------------------------------------------------------------------------------------- dann


def test_the_discriminator_descends_what_the_network_ascends(folder):
    """The gradients of one backward pass, against those of two losses written out."""
    update, _, running = first_update(folder, "dann", {"hidden": 16, "weight": 0.7}, progress=0.25)
    seen, _, run = sides(folder)
    discriminator = running.parts["discriminator"].module
    logits = [discriminator(side["features"]) for side in seen[:2]]
    names = torch.cat([torch.ones(16), torch.zeros(16)])
    told = F.binary_cross_entropy_with_logits(torch.cat(logits), names)
    torch.testing.assert_close(update.losses["domain"], told)
    strength = 0.7 * math.tanh(10 * running.run.step / running.run.steps / 2)
    assert strength > 0.5
    whole, mine = sum(update.losses.values()), list(discriminator.parameters())
    torch.testing.assert_close(grad(whole, mine, retain_graph=True), grad(told, mine, retain_graph=True))
    expected = grad(seen.task - strength * told, list(run.target_module.parameters()))
    found = grad(whole, list(running.run.target_module.parameters()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert update.parts == ("target", "discriminator")


def test_at_first_only_the_discriminator_learns(folder):
    """At strength 0 the gradient does reach the network, and is 0; a little later it is not."""
    sizes = []
    for progress in (0.0, 0.25):
        update, _, running = first_update(folder, "dann", progress=progress)
        net, discriminator = running.run.target_module, running.parts["discriminator"].module
        wrt = [net.stem.weight, net.last.weight, next(discriminator.parameters())]
        gradients = grad(update.losses["domain"], wrt)  # an error where one is not reached
        sizes.append([float(g.abs().max()) for g in gradients])
    assert sizes[0][:2] == [0, 0]
    assert all(size > 0 for size in (sizes[0][2], *sizes[1]))


def test_how_well_domains_are_told_is_logged(folder):
    """The mean over batches of the share that the discriminator's logits tell, each domain one half."""
    running, _ = fresh(folder, method="dann")
    logits, shares = [], []
    net = running.parts["discriminator"].module
    net.register_forward_hook(lambda _, __, out: logits.append(out.detach()))
    for batch in running.prepared.loader.epoch(0):
        running.run.begin(batch)
        logits.clear()
        for update in running.prepared.method.epoch(running.run, [batch], running.parts):
            running.perform(update, 1.0)
        told = torch.cat(logits).numpy() > 0
        assert len(told) == 32  # 16 of the source, then 16 of the target
        shares.append((told[:16].mean() + (~told[16:]).mean()) / 2)
    assert len(set(shares)) > 1
    assert running.run.meters.means()["domain_accuracy"] == pytest.approx(np.mean(shares), rel=1e-6)
    result, _ = train(with_source(folder, method="dann", epochs=1))
    assert "train_domain_accuracy" in result.history[0]


# ----------------------------------------------------------------------------------------------------------------- cdan


def test_multilinear_map():
    f, g = torch.randn(5, 3), torch.randn(5, 4).softmax(1)
    exact = Multilinear([3, 4], 7)
    torch.testing.assert_close(exact(f, g), torch.stack([torch.kron(a, b) for a, b in zip(f, g, strict=True)]))
    assert (exact.width, len(exact.state_dict())) == (12, 0)
    assert Multilinear([64, 64], 7).width == 4096
    assert Multilinear([64, 65], 7).width == 7


def test_randomised_map_keeps_inner_products():
    torch.manual_seed(0)
    f, g = torch.randn(6, 3), torch.randn(6, 4).softmax(1)
    random = Multilinear([3, 4], 200_000, longest=11)
    assert set(random.state_dict()) == {"matrix0", "matrix1"}
    assert not list(random.parameters())
    h, exact = random(f, g), Multilinear([3, 4], 0)(f, g)
    torch.testing.assert_close(h @ h.T, exact @ exact.T, atol=0.1, rtol=0)
    i = 17
    one = sum(random.matrix0[a, i] * f[0, a] for a in range(3)) * sum(random.matrix1[b, i] * g[0, b] for b in range(4))
    torch.testing.assert_close(h[0, i], one / math.sqrt(200_000))


def test_several_layers():
    """Each element of the outer product of three, and of the randomised product."""
    torch.manual_seed(0)
    f, g, h = (torch.randn(5, n, dtype=torch.float64) for n in (3, 4, 2))
    expected = torch.stack([torch.kron(torch.kron(a, b), c) for a, b, c in zip(f, g, h, strict=True)])
    torch.testing.assert_close(Multilinear([3, 4, 2], 7)(f, g, h), expected)
    random = Multilinear([3, 4, 2], 6, longest=23).double()
    maps = [random.get_buffer(f"matrix{i}").numpy() for i in range(3)]
    each = [x.numpy() @ m for x, m in zip((f, g, h), maps, strict=True)]
    np.testing.assert_allclose(random(f, g, h).numpy(), each[0] * each[1] * each[2] / math.sqrt(6), atol=1e-12)
    with pytest.raises(UsageError, match="another number of channels"):
        random(g, f, h)


@pytest.mark.parametrize("longest", [4096, 10])
def test_losses_with_several_layers(longest, folder):
    """The discriminator reads body, features and predictions; the reversed gradient goes through both of the first."""
    set_ = {"hidden": 16, "longest": longest, "dimensions": 24, "layers": "body,features", "entropy": False}
    update, _, running = first_update(folder, "cdan", set_, progress=0.5)
    module, names = running.parts["discriminator"].module, ("body", "features", "logits")
    assert module["map"].widths == (12, 12, 10)
    assert module["map"].width == (24 if longest == 10 else 1440)
    seen, _, run = sides(folder, layers=names)
    told = 0.0
    for side, name in ((seen.source, 1.0), (seen.target, 0.0)):
        b, f, p = side["body"], side["features"], side["logits"].detach().softmax(1)
        if longest == 10:
            m = module["map"]
            h = (b @ m.matrix0) * (f @ m.matrix1) * (p @ m.matrix2) / math.sqrt(24)
        else:
            h = torch.einsum("bi,bj,bk->bijk", b, f, p).reshape(len(f), -1)
        told = told + F.binary_cross_entropy_with_logits(module["net"](h), torch.full((len(f),), name)) / 2
    torch.testing.assert_close(update.losses["domain"], told, atol=1e-6, rtol=0)
    strength = math.tanh(10 * running.run.step / running.run.steps / 2)
    for mine, theirs in ((running.run.target_module, run.target_module),):
        one = grad(update.losses["domain"], [mine.last.weight, mine.body.weight])
        other = grad(-strength * told, [theirs.last.weight, theirs.body.weight])
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_layers_that_do_not_say_their_width(folder):
    with pytest.raises(UsageError, match="how many channels"):
        training(with_source(folder, method="cdan", set={"layers": "drop"}))


def test_weights_are_of_certainty(folder):
    _, _, running = first_update(folder, "cdan")
    logits = torch.randn(6, 10), 5 * torch.randn(8, 10)
    for found, x in zip(certainty(running.run, *logits), logits, strict=True):
        expected = 1 + np.exp(-entropy(x.double().softmax(1).numpy(), axis=1))
        np.testing.assert_allclose(found.numpy(), expected / expected.mean(), rtol=1e-5)
    assert torch.isfinite(certainty(running.run, 1e4 * logits[0], logits[1])[0]).all()


@pytest.mark.parametrize("entropy_", [True, False])
@pytest.mark.parametrize("longest", [4096, 10])
def test_conditional_loss_and_gradients(longest, entropy_, folder):
    """Predictions and weights are constants: the gradient reaches the network through its features alone."""
    set_ = {"hidden": 16, "longest": longest, "dimensions": 24, "entropy": entropy_}
    update, _, running = first_update(folder, "cdan", set_, progress=0.5)
    seen, _, run = sides(folder)
    module = running.parts["discriminator"].module
    told = 0.0
    for side, name in ((seen.source, 1.0), (seen.target, 0.0)):
        f, p = side["features"], side["logits"].detach().double().softmax(1).float()
        if longest == 10:
            h = (f @ module["map"].matrix0) * (p @ module["map"].matrix1) / math.sqrt(24)
        else:
            h = torch.einsum("bi,bj->bij", f, p).reshape(len(f), -1)
        weight = torch.from_numpy(1 + np.exp(-entropy(p.numpy(), axis=1))) if entropy_ else torch.ones(len(f))
        loss = F.binary_cross_entropy_with_logits(module["net"](h), torch.full((len(f),), name), reduction="none")
        told = told + (loss * weight / weight.mean()).mean().float() / 2
    torch.testing.assert_close(update.losses["domain"], told, atol=1e-6, rtol=0)
    strength = math.tanh(10 * running.run.step / running.run.steps / 2)
    theirs = grad(-strength * told, list(run.target_module.parameters()), allow_unused=True)
    mine = grad(update.losses["domain"], list(running.run.target_module.parameters()), allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_random_matrices_are_resumed(folder):
    """They were drawn once, and are part of the state."""
    chosen = with_source(folder, method="cdan", set={"longest": 10, "hidden": 16}, recovery_interval=2)
    _, whole = train(other_folder(chosen, "whole"))
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(7))
    running = training(killed)
    module = running.parts["discriminator"].module["map"]
    drawn = module.matrix0.clone()
    module.matrix0.zero_()
    running.load()
    assert torch.equal(module.matrix0, drawn)
    result, resumed = train(killed, resume=True)
    assert result.resumed
    assert same(whole, resumed)


# ----------------------------------------------------------------------------------------------------------------- adda


def test_true_alternation(folder):
    """D steps first and alone; then the encoder alone, against the new D; the classifier and M_s never."""
    running, batch = fresh(folder, method="adda", set={"hidden": 16}, bn="eval")
    net, module = running.run.target_module, running.parts["discriminator"].module
    set_train_mode(running.parts, bn="eval")
    net.eval()
    states = [state_of(m) for m in (net, module["net"], module["reference"])]
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)

    update = next(updates)
    logits = module["net"](features_of(net, batch.source.x)), module["net"](features_of(net, batch.unlabelled.x))
    told = domain_loss(*logits)  # M_t is M_s still
    torch.testing.assert_close(update.losses["domain"], told)
    assert update.parts == ("discriminator",)
    running.perform(update, 1.0)
    assert same(states[0], state_of(net))
    assert not same(states[1], state_of(module["net"]))

    update, stepped = next(updates), state_of(module["net"])
    expected = F.binary_cross_entropy_with_logits(module["net"](features_of(net, batch.unlabelled.x)), torch.ones(16))
    torch.testing.assert_close(update.losses["confusion"], expected)
    assert update.parts == ("target",)
    running.perform(update, 1.0)
    assert same(stepped, state_of(module["net"]))
    assert same(states[2], state_of(module["reference"]))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, states[0][name])}
    assert moved >= {"stem.weight", "body.weight", "last.weight"}
    assert not moved & {"head.weight", "head.bias"}
    assert next(updates, None) is None


@pytest.mark.parametrize("unlabelled", ["netgraft:digits", None])
def test_statistics_are_those_of_the_target_s_images(folder, unlabelled):
    """After a step BatchNorm has moved a tenth of the way to what the encoder's pass of these images showed it."""
    running, batch = fresh(folder, method="adda", unlabelled=unlabelled)
    net, reference = running.run.target_module, running.parts["discriminator"].module["reference"]
    set_train_mode(running.parts, bn="train")
    before, kept = state_of(net), state_of(reference)
    images = (batch.unlabelled or batch).x
    seen = F.conv2d(images, before["stem.weight"], before["stem.bias"], padding=1).transpose(0, 1).flatten(1)
    for update in running.prepared.method.epoch(running.run, [batch], running.parts):
        running.perform(update, 1.0)
    after = state_of(net)
    for name, value in (("mean", seen.mean(1)), ("var", seen.var(1, unbiased=True))):
        expected = 0.9 * before[f"stem_norm.running_{name}"] + 0.1 * value
        torch.testing.assert_close(after[f"stem_norm.running_{name}"], expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(after[f"body_norm.running_{name}"], before[f"body_norm.running_{name}"])
    assert after["stem_norm.num_batches_tracked"] == before["stem_norm.num_batches_tracked"] + 1
    assert same(kept, state_of(reference))


def features_of(net, images):
    found = []
    handle = net.head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    net(images)
    handle.remove()
    return found[0]


def test_reference_is_frozen_in_eval_mode(folder):
    running = training(with_source(folder, method="adda"))
    reference = running.parts["discriminator"].module["reference"]
    assert not any(p.requires_grad for p in reference.parameters())
    steps(running, 2)
    assert not any(m.training for m in reference.modules())
    assert running.parts["discriminator"].module["net"].training
    _, weights_ = train(with_source(folder, method="adda"))
    start = state_of(training(with_source(folder, method="adda", out=f"{folder}/x")).run.target_module)
    assert torch.equal(weights_["head.weight"], start["head.weight"])
    assert not torch.equal(weights_["stem.weight"], start["stem.weight"])


def test_no_dropout_gives_the_target_away(folder):
    """The encoder's features are those of no dropout, as the reference's, and it is in train mode afterwards."""
    told = []
    for drop in (0.0, 0.5):
        running, batch = fresh(folder, method="adda", target_arg={"drop": drop})
        set_train_mode(running.parts, bn="train")
        told.append(next(running.prepared.method.epoch(running.run, [batch], running.parts)).losses["domain"])
        assert all(m.training for m in running.run.target_module.modules())
    assert torch.equal(*told)


# ---------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", ["dann", "cdan"])
def test_cost_is_that_of_both_batches(method, folder):
    """6 F and the discriminator's three passes: all else is the plain step of twice as many images."""
    width = 12 if method == "dann" else 12 * 10
    multiplications = width * 8 + 8 * 8 + 8
    assert flops(folder, method, {"hidden": 8}) == 2 * flops(folder, "plain") + 3 * 2 * 32 * multiplications


def test_cost_of_alternation(folder):
    """3 F + F_s less the classifier: one pass of M_t serves both steps, and M_s has no gradients."""
    running, batch = fresh(folder, method="plain")
    with FlopCounterMode(display=False) as counter:
        running.run.target_module(batch.x)
    forward, head = counter.get_total_flops(), 2 * 16 * 12 * 10
    one = 2 * 16 * (12 * 8 + 8 * 8 + 8)  # of the discriminator, one domain
    inner = one - 2 * 16 * 12 * 8  # of its first step no gradient of features is needed
    expected = flops(folder, "plain") - 2 * head + forward + 2 * one + 2 * (one + inner) + 3 * one
    assert flops(folder, "adda", {"hidden": 8}) <= expected


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """How far two gloo processes are from one."""
    folder = write_nets(tmp_path_factory.mktemp("two"))
    options = {"dann": {"hidden": 16}, "cdan": {"hidden": 16}, "adda": {"hidden": 16, "adam": False}}
    runs = {f"{m} {bn}": {"method": m, "set": options[m], "bn": bn} for m in options for bn in ("eval", "sync")}
    runs = {name: SAME | {"lr": 0.005, "epochs": 1} | given for name, given in runs.items()}
    launch(folder, {name: given | {"batch_size": 8} for name, given in runs.items()})
    ones = {n: train(with_source(folder, out=f"{folder}/one", batch_size=16, **g), force=True) for n, g in runs.items()}
    return {name: distance(one, weights(folder, name)) for name, (_, one) in ones.items()}


@pytest.mark.parametrize("bn", ["eval", "sync"])
@pytest.mark.parametrize("method", ["dann", "cdan", "adda"])
def test_two_processes_train_as_one(method, bn, far):
    assert far[f"{method} {bn}"] <= 2e-6
