"""Confusion of domains and soft labels: values by SciPy and NumPy, who moves in which update."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from support.runs import same, state_of, training, with_source, write_nets
from support.two_domains import fresh, sides
from torch.autograd import grad

from netgraft.errors import UsageError
from netgraft.finetune.toolbox.adversary import confusion
from netgraft.finetune.toolbox.soft_labels import SoftLabels


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def test_confusion_is_the_cross_entropy_with_a_uniform_distribution():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=6) * 3, rng.normal(size=4) * 3
    each = []
    for z in (s, t):
        of_domains = log_softmax(np.stack([z, np.zeros_like(z)], 1), axis=1)  # the softmax of two
        each.append(-(0.5 * of_domains).sum(1).mean())
    found = confusion(torch.from_numpy(s), torch.from_numpy(t))
    assert float(found) == pytest.approx(np.mean(each), abs=1e-12)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    least = confusion(zero, zero)
    assert float(least.detach()) == pytest.approx(math.log(2), abs=1e-12)
    assert float(grad(least, zero)[0].abs().max()) < 1e-12


def prepared(folder, **more):
    running = training(with_source(folder, method="tzeng", target_arg={"drop": 0.0}, **more))
    running.prepare()
    return running


def test_soft_labels_are_class_means_of_the_source(folder):
    """Of the network before training, in eval mode, over all source images beside the first epoch's; class by class."""
    running = prepared(folder, set={"temperature": 3.0})
    net = running.run.target_module.eval()
    rows = [[] for _ in range(10)]
    for batch in running.prepared.loader.epoch(0):
        for image, label in zip(batch.source.x, batch.source.y, strict=True):
            with torch.no_grad():
                rows[int(label)].append(softmax(net(image[None])[0].double().numpy() / 3))
    assert min(map(len, rows)) > 0
    expected = np.stack([np.mean(row, 0) for row in rows])
    found = running.parts["soft_labels"].module.each
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_class_without_images_has_none(folder):
    running = training(with_source(folder, method="tzeng"))
    batch = next(running.prepared.loader.epoch(0))
    keep = batch.source.y != 3
    source = batch.source.__class__(batch.source.x[keep], batch.source.y[keep], batch.source.ids[keep])
    running.prepared.method.prepare(
        running.run, [batch.__class__(batch.x, batch.y, batch.ids, source=source)], running.parts
    )
    labels = running.parts["soft_labels"].module
    present = torch.unique(source.y)
    assert torch.count_nonzero(labels.each[3]) == 0
    torch.testing.assert_close(labels.each[present].sum(1), torch.ones(len(present)))
    assert float(labels(torch.randn(2, 10), torch.tensor([3, 3]))) == 0


def test_soft_loss():
    rng = np.random.default_rng(0)
    labels, z, y = SoftLabels(4).double(), rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    labels.each.copy_(torch.from_numpy(softmax(rng.normal(size=(4, 4)), axis=1)))
    expected = np.mean(
        [-sum(labels.each[c, k].item() * log_softmax(row)[k] for k in range(4)) for row, c in zip(z, y, strict=True)]
    )
    assert float(labels(torch.from_numpy(z), torch.from_numpy(y))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("unlabelled", ["netgraft:digits", None])
def test_losses_and_who_moves(unlabelled, folder):
    set_ = {"confusion": 0.5, "soft": 0.7, "temperature": 3.0}
    given = {"bn": "eval", "unlabelled": unlabelled}
    running, batch = fresh(folder, method="tzeng", set=set_, **given)
    labels = running.parts["soft_labels"].module
    labels.each.copy_(torch.randn(10, 10).softmax(1))
    seen, _, run = sides(folder, {"labels": "both"}, **given)
    net, discriminator = running.run.target_module, running.parts["discriminator"].module
    weights, kept = [p.detach().clone() for p in net.parameters()], state_of(labels)
    updates = running.prepared.method.epoch(running.run, [batch], running.parts)

    update = next(updates)
    assert update.parts == ("discriminator",)
    logits = [discriminator(side["features"].detach()) for side in seen[:2]]
    told = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.cat(logits), torch.cat([torch.ones(16), torch.zeros(16)])
    )
    torch.testing.assert_close(update.losses["domain"], told)
    assert not any(grad(told, list(net.parameters()), retain_graph=True, allow_unused=True))
    before = state_of(discriminator)
    running.perform(update, 1.0)
    assert not same(before, state_of(discriminator))
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))

    update, stepped = next(updates), state_of(discriminator)
    assert update.parts == ("target",)
    torch.testing.assert_close(update.losses["task"], seen.task)
    expected = 0.5 * confusion(*(discriminator(side["features"]) for side in seen[:2]))  # the new D
    torch.testing.assert_close(update.losses["confusion"], expected, atol=1e-6, rtol=0)
    if unlabelled is None:
        rows = log_softmax(seen.target["logits"].detach().double().numpy() / 3, axis=1)
        soft = -np.mean([(labels.each[y].numpy() * row).sum() for y, row in zip(batch.y.tolist(), rows, strict=True)])
        assert float(update.losses["soft"].detach()) == pytest.approx(0.7 * soft, abs=1e-5)
    else:
        assert torch.equal(seen.own.argmax(1), run.target(batch, stats=False).logits.argmax(1))
    assert grad(update.losses["soft"], net.head.weight, retain_graph=True)[0].abs().max() > 0
    running.perform(update, 1.0)
    assert same(stepped, state_of(discriminator))
    assert same(kept, state_of(labels))
    assert next(updates, None) is None


def test_without_target_labels_there_are_no_soft_ones(folder):
    running = prepared(folder, set={"labels": "source"})
    assert set(running.parts) == {"target", "discriminator"}
    batch = next(running.prepared.loader.epoch(0))
    running.run.begin(batch)
    *_, last = running.prepared.method.epoch(running.run, [batch], running.parts)
    assert set(last.losses) == {"task", "confusion"}


def test_temperature_is_positive(folder):
    with pytest.raises(UsageError, match="temperature"):
        training(with_source(folder, method="tzeng", set={"temperature": 0.0}))
