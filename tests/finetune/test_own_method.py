"""``examples/own_method.py``: its Fisher information and its penalty against plain calculations of both."""

import pytest
import torch
import torch.nn.functional as F
from support.runs import steps, training, with_source, write_nets
from support.tested_methods import EXAMPLE

from netgraft.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def prepared(folder, factor=60, **given):
    """After ``prepare``, with a network that is sure of some classes by so large a factor of its classifier."""
    running = training(with_source(folder, method=EXAMPLE, **given))
    with torch.no_grad():
        running.run.target_module.head.weight.mul_(factor)
    running.prepare()
    return running


def labels_of(running, fisher):
    """The classes that the log-likelihood is taken of, image by image, for each batch of the first epoch."""
    module = running.run.target_module
    for number, batch in enumerate(running.prepared.loader.epoch(0)):
        images, labels = batch.source, batch.source.y
        if fisher == "true":
            running.run.begin_extra(number)
            up_to = module(images.x).softmax(1).cumsum(1)
            labels = torch.searchsorted(up_to, running.run.random(images, "labels", 1)).clamp(max=9)[:, 0]
        yield images.x, labels


def test_each_class_is_drawn_as_often_as_it_is_likely(folder):
    running = prepared(folder)
    run, module = running.run, running.run.target_module.eval()
    batch = next(running.prepared.loader.epoch(0)).source
    drawn = []
    for step in range(400):
        run.step = step
        run.begin(batch)
        with torch.no_grad():
            drawn.append(F.one_hot(running.prepared.method._classes(run, batch), 10))
    often = torch.stack(drawn).float().mean(0)
    with torch.no_grad():
        likely = module(batch.x).softmax(1)
    assert likely.max() > 0.25
    assert (often - likely).abs().max() < 4.5 * 0.5 / 20  # standard deviations of a mean of 400


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_fisher_information(folder, fisher):
    """Squares of the gradients of all images at once by torch.func; in eval mode, at the start."""
    running = prepared(folder, set={"fisher": fisher})
    module = running.run.target_module.eval()
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def log_likelihood(given, x, y):
        return (torch.func.functional_call(module, given, (x[None],))[0].log_softmax(0) * (torch.arange(10) == y)).sum()

    each = torch.func.vmap(torch.func.grad(log_likelihood), in_dims=(None, 0, 0))
    batches = [each(parameters, images, labels) for images, labels in labels_of(running, fisher)]
    for name, mean in zip(parameters, running.parts["fisher"].module.parameters(), strict=True):
        gradients = torch.cat([batch[name] for batch in batches]).double()
        assert len(gradients) == 80
        expected = gradients.square().mean(0)
        assert expected.norm() > 0
        assert (mean - expected).norm() <= 1e-6 * expected.norm()


def test_both_kinds_differ(folder):
    one, other = (prepared(folder, set={"fisher": kind}).parts["fisher"].module for kind in ("true", "empirical"))
    assert not torch.allclose(one[0], other[0], rtol=0.01)


def test_penalty_is_equation_3(folder):
    """Its value, and its gradient against autograd's, away from the start."""
    running = prepared(folder, set={"strength": 7.0})
    run = running.run
    steps(running, 3)
    batch = next(running.prepared.loader.epoch(0))
    run.begin(batch)
    (update,) = [next(running.prepared.method.epoch(run, [batch], running.parts))]
    penalty = update.penalties["ewc"]
    fisher = list(running.parts["fisher"].module.parameters())
    named = dict(run.target_module.named_parameters())
    value = sum(
        7.0 / 2 * (f * (p - run.start[n]).square()).sum() for f, (n, p) in zip(fisher, named.items(), strict=True)
    )
    gradients = torch.autograd.grad(value, list(named.values()))
    assert value > 0
    torch.testing.assert_close(penalty.value, value.detach())
    torch.testing.assert_close(penalty.gradients, list(gradients))


def test_it_holds_what_matters(folder):
    """With strength the weights stay nearer to the start, measured by the Fisher information."""
    away = {}
    for strength in (0.0, 30.0):
        running = prepared(folder, 1, set={"strength": strength})
        steps(running, 5)
        fisher, named = running.parts["fisher"].module, running.run.target_module.named_parameters()
        pairs = zip(fisher, named, strict=True)
        away[strength] = sum(float((f * (p.detach() - running.run.start[n]).square()).sum()) for f, (n, p) in pairs)
    assert away[30.0] < away[0.0] / 2


def test_source_of_other_classes_is_refused(folder):
    running = training(with_source(folder, method=EXAMPLE))
    running.run.classes = 9
    with pytest.raises(UsageError, match="more classes"):
        running.prepare()
