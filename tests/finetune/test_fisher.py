"""The Fisher information against a loop over single images in float64, and the penalties of it."""

import copy

import pytest
import torch
from support.runs import steps, training, with_source, write_nets
from support.two_processes import SAME, Two
from support.updates import EXACT, first_update

from netgraft.errors import UsageError
from netgraft.finetune.methods.ewc import ElasticWeightConsolidation
from netgraft.finetune.toolbox.fisher import _chances

KINDS = ["true", "expected", "empirical"]


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def prepared(folder, method="ewc", factor=60, **given):
    """After ``prepare``, with a network that is sure of some classes by so large a factor of its classifier."""
    running = training(with_source(folder, method=method, **given))
    with torch.no_grad():
        running.run.target_module.head.weight.mul_(factor)
    running.prepare()
    return running


def held(running):
    """What ``prepare`` measured, by the name of the weight."""
    names = running.prepared.method.held(running.run)
    return dict(zip(names, running.parts["fisher"].module, strict=True))


def by_loop(running, kind, source=True, batches=None):
    """F of every parameter, image by image and class by class, in float64; and how many images there were."""
    module = copy.deepcopy(running.run.target_module).double().eval()
    sums = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    count = 0
    for number, batch in enumerate(running.prepared.loader.epoch(0)):
        if number == batches:
            break
        images = batch.source if source else batch
        running.run.begin_extra(number)
        numbers = running.run.random(images, "fisher", 1).double()
        for x, y, u in zip(images.x.double(), images.y, numbers, strict=True):
            p = module(x[None])[0].softmax(0).detach()
            drawn = min(int(torch.searchsorted(p.cumsum(0), u)), 9)
            chances = {"true": {drawn: 1.0}, "empirical": {int(y): 1.0}, "expected": dict(enumerate(p.tolist()))}[kind]
            for label, chance in chances.items():
                module.zero_grad()
                (-torch.nn.functional.cross_entropy(module(x[None]), torch.tensor([label]))).backward()
                for name, parameter in module.named_parameters():
                    sums[name] += chance * parameter.grad**2
            count += 1
    return {name: total / count for name, total in sums.items()}, count


def close(found, expected):
    assert expected.norm() > 0
    assert float((found.double() - expected).norm()) <= 1e-6 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [True, False])
def test_it_is_that_of_a_loop_over_images(folder, kind, source):
    """On the images of --source-data where they are given, else on the target's; each image's own gradient."""
    running = prepared(folder, set={"fisher": kind}, **({} if source else {"source_data": None}))
    expected, count = by_loop(running, kind, source)
    assert count == 80
    found = held(running)
    assert set(found) == {name for name in expected if not name.startswith("head.")}
    for name, information in found.items():
        close(information, expected[name])


def test_kinds_and_images_differ(folder):
    found = [held(prepared(folder, set={"fisher": kind}))["body.weight"] for kind in KINDS]
    found.append(held(prepared(folder, source_data=None))["body.weight"])
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not torch.allclose(one, other, rtol=0.01)


def test_expected_is_the_mean_of_what_is_drawn(folder):
    """F of the true distribution, averaged over many draws for the same images."""
    running = prepared(folder, set={"fisher": "expected", "images": 16})
    run = running.run
    batch = next(running.prepared.loader.epoch(0)).source
    drawn = []
    for step in range(400):
        run.step = step
        run.begin(batch)
        drawn.append(_chances(run, batch, "true"))
    often, likely = torch.stack(drawn).float().mean(0), _chances(run, batch, "expected")
    assert likely.max() > 0.25
    assert (often - likely).abs().max() < 4.5 * 0.5 / 20  # standard deviations of a mean of 400


@pytest.mark.parametrize(("images", "batches"), [(20, 2), (32, 2), (33, 3), (0, 5)])
def test_so_many_images(folder, images, batches):
    """In whole batches of 16, of which an epoch has 5."""
    running = prepared(folder, set={"fisher": "empirical", "images": images})
    expected, _ = by_loop(running, "empirical", batches=batches)
    close(held(running)["last.weight"], expected["last.weight"])


def test_negative_images_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        ElasticWeightConsolidation(images=-1)


def test_the_network_is_as_it_was(folder):
    running = training(with_source(folder, method="ewc"))
    before = copy.deepcopy(running.run.target_module.state_dict())
    running.prepare()
    for name, tensor in running.run.target_module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in running.run.target_module.parameters())


def test_source_of_other_classes(folder):
    """Its labels matter to the empirical one alone."""
    for kind in KINDS:
        running = training(with_source(folder, method="ewc", set={"fisher": kind}))
        batch = next(running.prepared.loader.epoch(0))
        batch.source.y.fill_(11)
        running.run.begin_extra(0)
        if kind == "empirical":
            with pytest.raises(UsageError, match="more classes"):
                running.prepared.method.prepare(running.run, [batch], running.parts)
        else:
            running.prepared.method.prepare(running.run, [batch], running.parts)


def test_penalty_is_equation_3(folder):
    """Its value, and its gradient against autograd's, away from the start; new weights are free."""
    running = prepared(folder, set={"strength": 7.0})
    steps(running, 3)
    run = running.run
    named = dict(run.target_module.named_parameters())
    fisher = held(running)
    assert "stem.bias" in fisher
    assert "body_norm.weight" in fisher
    value = sum(3.5 * (f * (named[n] - run.start[n]).square()).sum() for n, f in fisher.items())
    expected = torch.autograd.grad(value, [named[n] for n in fisher])
    penalty = first_update(running).penalties["ewc"]
    assert value > 0
    assert float(penalty.value) == pytest.approx(float(value.detach()), **EXACT)
    assert [id(p) for p in penalty.parameters] == [id(named[n]) for n in fisher]
    for gradient, by_autograd in zip(penalty.gradients, expected, strict=True):
        assert not gradient.requires_grad
        assert (gradient - by_autograd).norm() <= 1e-6 * by_autograd.norm()


def test_it_holds_what_matters(folder):
    """With strength the weights stay nearer to the start, measured by the Fisher information."""
    away = {}
    for strength in (0.0, 300.0):
        running = prepared(folder, factor=1, set={"strength": strength})
        steps(running, 5)
        named = dict(running.run.target_module.named_parameters())
        start = running.run.start
        away[strength] = sum(float((f * (named[n].detach() - start[n]) ** 2).sum()) for n, f in held(running).items())
    assert away[300.0] < away[0.0] / 2


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_two_processes_measure_it_on_all_images(kind, tmp_path):
    """Batches of 8 images in each of two processes, of 16 in one: F as the first of them saved it."""
    folder = write_nets(tmp_path)
    given = SAME | {"epochs": 1, "bn": "eval", "method": "ewc", "set": {"fisher": kind, "images": 40}}
    two = Two(folder)
    try:
        two.train("two", batch_size=8, **given)
    finally:
        two.end()
    state = torch.load(folder / "two" / "state.pt", weights_only=True)
    running = training(with_source(folder, batch_size=16, **given))
    running.prepare()
    alone = running.parts["fisher"].module.state_dict()
    assert state["world"] == 2
    assert list(alone) == list(state["modules"]["fisher"])
    for name, found in state["modules"]["fisher"].items():
        close(found, alone[name].double())
