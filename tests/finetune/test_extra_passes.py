"""Passes beside the training's own: whose random numbers they draw, in which mode and with which weights they run."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from support.runs import same, settings, state_of, steps, train, training, with_source, write_nets
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.protocol import Need, Part, Update


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@dataclass(frozen=True)
class Own:
    """A method made of one function."""

    do: object
    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):  # noqa: ARG002
        for batch in batches:
            yield from self.do(run, batch)


def plain(run, batch):
    yield Update(("target",), {"task": run.task(run.target(batch), batch)})


def own(folder, do, **given):
    return training(with_source(folder, **given), Own(do))


def begun(folder, need=None, **given):
    """A run with its first batch, in train mode."""
    running = own(folder, plain, **given)
    running.run.needs = frozenset({need} if need else ())
    batch = to_device(next(running.prepared.loader.epoch(0)), running.run.device)
    running.run.target_module.train()
    running.run.begin(batch)
    return running.run, batch


# ------------------------------------------------------------------------------------------------------ random numbers


def before(run, batch):
    run.target(batch.x)
    yield from plain(run, batch)


def after(run, batch):
    yield from plain(run, batch)
    for x in (batch, batch.source, batch.x.flip(3)):
        run.target(x)
    run.target(batch, params={"head.bias": torch.zeros(10)})


def of_its_own(run, batch):
    nn.Dropout()(torch.randn_like(batch.x))
    run.target(batch, train=False)
    yield from plain(run, batch)
    torch.rand(7)


@pytest.mark.parametrize("do", [before, after, of_its_own])
def test_nothing_that_a_method_draws_changes_the_training(folder, do):
    """Dropout in every step is that of plain fine-tuning, whatever else is drawn before and after it."""
    one, other = own(folder, plain), own(folder, do)
    for running in (one, other):
        steps(running, 4)
    assert same(state_of(one.run.target_module), state_of(other.run.target_module))


def test_extra_passes_draw_other_numbers_each_and_the_same_again(folder):
    run, batch = begun(folder, bn="eval")
    own_pass, *extra = (run.target(batch).logits for _ in range(3))
    assert not torch.equal(own_pass, extra[0])
    assert not torch.equal(*extra)
    run.begin(batch)
    assert torch.equal(run.target(batch, stats=False).logits, extra[0])
    run.step += 1
    run.begin(batch)
    assert not torch.equal(run.target(batch, stats=False).logits, extra[0])


def test_draw_by_wish(folder):
    """A pass that draws the run's numbers moves them on; one that is told not to leaves them to the next."""
    run, batch = begun(folder)
    state = run.numbers.state[0]
    run.target(batch, draw=False)
    assert torch.equal(run.numbers.state[0], state)
    run.target(batch)
    assert torch.equal(run.numbers.state[0], state)
    run.target(batch, draw=True)
    assert not torch.equal(run.numbers.state[0], state)


def test_drawing_leaves_the_generators_as_they_were(folder):
    run, batch = begun(folder)
    outside = torch.get_rng_state()
    run.target(batch)
    assert torch.equal(torch.get_rng_state(), outside)


def test_numbers_of_an_image(folder):
    """Whichever process holds it, in whatever batch; other ones for another tag, step, seed, data set."""
    run, batch = begun(folder)
    whole = run.random(batch, "labels", 2)
    assert whole.shape == (16, 2)
    part = type(batch)(batch.x[5:9], batch.y[5:9], batch.ids[5:9].flip(0))
    assert torch.equal(run.random(part, "labels", 2), whole[5:9].flip(0))
    others = [run.random(batch, "noise", 2), run.random(batch.source, "labels", 2)]
    run.step = 1
    others.append(run.random(batch, "labels", 2))
    run.seed, run.step = 1, 0
    others.append(run.random(batch, "labels", 2))
    assert not any(torch.equal(other, whole) for other in others)


def test_numbers_of_images_are_uniform(folder):
    run, batch = begun(folder)
    many = type(batch)(batch.x, batch.y, torch.arange(5000))
    drawn = run.random(many, "labels").sort().values
    assert drawn.shape == (5000,)
    assert (drawn - (torch.arange(5000) + 0.5) / 5000).abs().max() < 1.95 / math.sqrt(5000)  # Kolmogorov, 0.001


# ------------------------------------------------------------------------------------------------- modes and weights


def test_eval_mode_is_the_network_as_it_is_used(folder):
    run, batch = begun(folder)
    module = run.target_module
    module.body_norm.eval()
    seen = run.target(batch, train=False).logits
    modes = {name: part.training for name, part in module.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["body_norm"]
    assert torch.equal(seen, module.eval()(batch.x))


def test_eval_mode_leaves_the_first_pass_its_statistics(folder):
    run, batch = begun(folder)
    before = state_of(run.target_module)
    run.target(batch, train=False)
    assert same(before, state_of(run.target_module))
    run.target(batch)
    assert not torch.equal(before["stem_norm.running_mean"], run.target_module.stem_norm.running_mean)
    with pytest.raises(UsageError, match="eval mode"):
        run.target(batch, train=False, stats=True)


@pytest.mark.parametrize("train", [False, True])
def test_theta_0_with_its_statistics(folder, train):
    """After some steps, the network that the training began with; nothing of it is written to."""
    running = own(folder, plain, target_arg={"drop": 0.0})
    run = running.run
    start = {**run.start, **run.start_buffers}
    steps(running, 5)
    fresh = prepare(settings(folder, target_arg={"drop": 0.0})).run.target_module.train(train)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    batch = next(running.prepared.loader.epoch(0))
    seen = run.target(batch, params=start, train=train)
    assert torch.equal(seen.logits, fresh(batch.x))
    assert same(kept, start)
    assert not torch.equal(seen.logits, run.target(batch, train=train).logits)


def test_theta_0_is_refused_when_it_has_gone(folder):
    running = own(folder, plain)
    steps(running, 1)
    with pytest.raises(UsageError, match=r"before training"):
        _ = running.run.start_buffers


# ------------------------------------------------------------------------------------------- gradients of the source


def test_gradients_of_the_source(folder):
    """By its parameters and by its images; it is not touched, and what it gave without gradients stays known."""
    run, batch = begun(folder, Need.SOURCE_GRADIENTS)
    module, before = run.source_module, state_of(run.source_module)
    known = run.source(batch)
    x = batch.x.clone().requires_grad_()
    parameters = run.source_parameters
    loss = F.cross_entropy(run.source(x, params=parameters).logits, batch.y)
    found = torch.autograd.grad(loss, [x, *parameters.values()])
    module.requires_grad_(True)
    expected = torch.autograd.grad(F.cross_entropy(module(x), batch.y), [x, *module.parameters()])
    module.requires_grad_(False)
    torch.testing.assert_close(found, expected)
    (by_images,) = torch.autograd.grad(F.cross_entropy(run.source(x, params={}).logits, batch.y), x)
    torch.testing.assert_close(by_images, expected[0])
    assert run.source(batch) is known
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    assert same(before, state_of(module))
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_gradients_of_the_source_are_declared(folder):
    run, batch = begun(folder, Need.SOURCE_MODEL)
    with pytest.raises(UsageError, match="gradients"):
        run.source(batch, params={})
    with pytest.raises(UsageError, match="gradients"):
        _ = run.source_parameters


SOURCE_FISHER = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
import torch.nn.functional as F
from netgraft.finetune.protocol import Need, Part, Update

@dataclass(frozen=True)
class SourceFisher:
    """Takes gradients of the source in every step."""

    needs: ClassVar[frozenset] = frozenset({Need.SOURCE_GRADIENTS})

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            loss = F.cross_entropy(run.source(batch, params=run.source_parameters).logits, batch.y)
            found = torch.autograd.grad(loss, list(run.source_parameters.values()))
            run.note("slope", sum(g.square().sum() for g in found))
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})
'''


def test_source_is_bit_equal_after_a_training_with_its_gradients(folder):
    (folder / "fisher.py").write_text(SOURCE_FISHER)
    running = training(with_source(folder, method=f"{folder}/fisher.py"))
    (folder / "run").mkdir()
    before = state_of(running.run.source_module)
    result = running.all()
    assert result.history[-1]["train_slope"] > 0
    assert same(before, state_of(running.run.source_module))
    with pytest.raises(UsageError, match="gradients through it"):
        train(settings(folder, method=f"{folder}/fisher.py"), force=True)
