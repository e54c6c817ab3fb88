"""float16: losses are scaled as by PyTorch's GradScaler, rules and penalties see no factor, overflows step nothing."""

import functools
import itertools

import pytest
import torch
from support.away import AWAY
from support.runs import Killed, Killer, same, settings, state_of, steps, train, training, with_source, write_nets
from torch import nn

from netgraft.errors import UnknownName, UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.finetune.combine import dtnh, total
from netgraft.finetune.engine.accumulation import Accumulation
from netgraft.finetune.engine.diverged import Diverged
from netgraft.finetune.engine.gradients import Gradients
from netgraft.finetune.engine.loss_scale import LossScale
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.protocol import Part, Penalty, Update

HALF = {"amp": True, "amp_dtype": "float16"}
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """A factor that begins far too large and grows every third step."""
    made = functools.partial(torch.amp.GradScaler, init_scale=2.0**22, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", made)
    return made


class Plain:
    """Fine-tuning whose batches are kept; ``losses`` says what an update has besides the task's loss."""

    needs = frozenset()

    def __init__(self, losses=lambda run, batch: {}):  # noqa: ARG005
        self.losses, self.batches = losses, []

    def parts(self, run):
        return {"target": Part(run.target_module), "other": Part(nn.Linear(1, 1))}

    def epoch(self, run, batches, parts):
        for batch in batches:
            self.batches.append(batch)
            other = parts["other"].module(torch.ones(1, 1)).mean()
            task = run.task(run.target(batch), batch)
            yield Update(("target", "other"), {"task": task, "other": other, **self.losses(run, batch)})


def test_the_same_as_a_loop_of_pytorch(folder, quick):
    """Fifteen steps in real float16, the first of which overflow: GradScaler around ``backward`` and fused SGD."""
    method = Plain()
    chosen = settings(folder, **HALF, sched="none", weight_decay=0.0, target_arg={"drop": 0.0}, samples_per_class=24)
    running = training(chosen, method)
    net, begun = running.run.target_module, state_of(running.run.target_module)
    steps(running, 15)
    mine = state_of(net)
    factors = running.run.meters.means()

    net.load_state_dict(begun)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, fused=True)
    scaler, seen, skipped = quick("cpu"), [], 0
    for batch in method.batches:
        with torch.autocast("cpu", torch.float16):
            logits = net(batch.x)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(logits.float(), batch.y)).backward()
        scaler.unscale_(optimizer)
        if all(parameter.grad.isfinite().all() for parameter in net.parameters()):
            optimizer.step()  # GradScaler leaves it to fused optimizers to skip
        before = scaler.get_scale()
        scaler.update()
        seen.append(scaler.get_scale())
        skipped += seen[-1] < before
    assert 2 < skipped < 12
    assert running.run.loss_scale.value == seen[-1]
    assert factors["loss_scale"] == pytest.approx(sum(seen) / 15)
    assert factors["skipped"] == pytest.approx(skipped / 15)
    theirs = state_of(net)
    for key in begun:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(begun["head.weight"], mine["head.weight"], atol=1e-3)


def test_it_runs_in_float16(folder):
    def look(run, batch):
        with run.autocast():
            assert run.target_module.stem(batch.x).dtype == torch.float16
        assert run.target(batch, stats=False).logits.dtype == torch.float32
        return {}

    steps(training(settings(folder, **HALF), Plain(look)), 1)


def test_small_gradients_are_not_lost(folder):
    """A loss whose gradient is below float16's smallest number moves the weights, and without the factor it would not.

    The bias behind the last layer is left out: its gradient is taken in float32.
    """
    gradients = {}
    for name, given in {"float32": {}, "float16": HALF}.items():
        running = training(settings(folder, **given, target_arg={"drop": 0.0}))
        batch = next(running.prepared.loader.epoch(0))
        run = running.run
        run.begin(batch)
        weights = [run.target_module.stem.weight, run.target_module.head.weight]
        gradients[name] = run.grad(1e-6 * run.task(run.target(batch), batch), weights)
        if name == "float16":
            bare = 1e-6 * run.task(run.target(batch), batch)
            lost = torch.autograd.grad(bare, weights)
            assert float(lost[0].norm()) < 0.5 * float(gradients["float32"][0].norm())
    for half, whole in zip(gradients["float16"], gradients["float32"], strict=True):
        assert float((half - whole).norm() / whole.norm()) < 0.02


def test_gradients_of_a_methods_own_are_finite(folder, quick):  # noqa: ARG001
    """With a factor of 2^22 they overflow, and are taken again with a smaller one; the factor itself stays."""
    running = training(settings(folder, **HALF, target_arg={"drop": 0.0}))
    batch = next(running.prepared.loader.epoch(0))
    run = running.run
    run.begin(batch)
    loss, weights = run.task(run.target(batch), batch), [run.target_module.stem.weight]
    (taken,) = run.grad(loss, weights)
    (bare,) = torch.autograd.grad(loss, weights)
    assert float((taken - bare).norm() / bare.norm()) < 0.02
    assert run.loss_scale.value == 2.0**22
    unreached = torch.zeros(2, requires_grad=True)
    assert run.grad(weights[0].sum(), [unreached])[0].tolist() == [0.0, 0.0]
    (endless,) = run.grad((weights[0].sum() * 0).sqrt(), weights)
    assert not endless.isfinite().any()


def losses(net):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    out = net(x)
    return {"task": out.square().mean(), "fm": -3 * out.square().mean() + out[:, 0].sin().mean()}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("rule", [total, dtnh])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_rules_penalties_and_clipping_see_no_factor(net, rule, clip):
    """The factor is a power of 2: with it and without it gradients are equal bit for bit."""
    parameters = list(net.parameters())
    found, values = [], []
    for scale in (None, LossScale(CPU)):
        asked = []

        def spy(names, grads, asked=asked):
            def ask(*groups):
                vectors = grads(*groups)
                asked.extend(piece.clone() for vector in vectors for piece in vector.pieces)
                return vectors

            return rule(names, ask)

        penalty = Penalty(torch.tensor(2.0), [parameters[0]], [torch.full_like(parameters[0], 1e-3)])
        perform = Gradients(Processes("cpu"), spy, clip, loss_scale=scale)
        performed = perform(Update(("target",), losses(net), {"sp": penalty}), parameters)
        assert performed.stepping
        found.append([*asked, *(p.grad.clone() for p in parameters)])
        values.append({name: float(value) for name, value in {**performed.values, **performed.telemetry}.items()})
    assert len(found[0]) == (4 if rule is total else 8) + 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert values[0] == values[1]


def test_batches_of_one_step_have_one_factor(net):
    """Two accumulated batches, equal bit for bit to those without a factor; it counts one step."""
    parameters, found = list(net.parameters()), []
    for scale in (None, LossScale(CPU)):
        accumulation = Accumulation(2)
        perform = Gradients(Processes("cpu"), dtnh, None, accumulation, scale)
        for number in range(2):
            accumulation.begin(number)
            perform(Update(("target",), losses(net)), parameters)
        found.append([p.grad.clone() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert scale.state_dict()["_growth_tracker"] == 1


class Beside:
    """One of two processes; the other's gradients are ``other``, as they come into the collective."""

    world, rank = 2, 0

    def __init__(self, other):
        self.other = other

    def mean_(self, flat):
        return flat.add_(self.other).div_(2)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_anywhere_skips_everywhere(bad):
    """The other process's gradients are scaled by the same factor; where they overflow, this one skips too."""
    p, scale = nn.Parameter(torch.zeros(2)), LossScale(CPU)
    update = Update(("target",), {"task": (p * torch.tensor([1.0, 2.0])).sum()})
    good = torch.tensor([3 * 2.0**16, 2 * 2.0**16, 0.0, 0.0])
    Gradients(Beside(good), total, loss_scale=scale)(update, [p])
    assert p.grad.tolist() == [2.0, 2.0]
    assert scale.value == 2.0**16
    p.grad = None
    update = Update(("target",), {"task": (p * torch.tensor([1.0, 2.0])).sum()})
    performed = Gradients(Beside(torch.tensor([0.0, bad, 0.0, 0.0])), total, loss_scale=scale)(update, [p])
    assert not performed.stepping
    assert p.grad is None
    assert scale.value == 2.0**15


def test_an_overflow_steps_no_part(folder):
    """In the second step the gradient of one part is infinite; its loss is not. Momentum stands still as well."""

    def infinite(run, batch):  # noqa: ARG001
        if run.step != 1:
            return {}
        (weight,) = running.parts["other"].module.weight
        return {"root": (weight - weight.detach()).sum().sqrt()}

    running = training(settings(folder, **HALF), Plain(infinite))
    seen, performed = [], []
    for optimizer in running.run.optimizers.values():
        optimizer.register_step_post_hook(lambda *_: performed.append(running.run.step))
    for count in (1, 1, 1):
        seen.append([state_of(part.module) for part in running.parts.values()])
        running.run.step = len(seen) - 1
        step(running, count)
    seen.append([state_of(part.module) for part in running.parts.values()])
    weights = [[weights_of(state) for state in states] for states in seen]
    assert [[same(a, b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(weights)] == [
        [False, False],
        [True, True],
        [False, False],
    ]
    assert performed == [0, 0, 2, 2]  # some optimizers count steps without gradients
    assert running.run.loss_scale.value == 2.0**15
    assert running.run.meters.means()["skipped"] == pytest.approx(1 / 3)
    assert not running.parts["other"].module.weight.isnan().any()


def weights_of(state):
    return {key: tensor for key, tensor in state.items() if "running" not in key and "num_batches" not in key}


def step(running, count):
    run, batch = running.run, next(running.prepared.loader.epoch(0))
    running.set_modes()
    run.begin(batch)
    for update in running.prepared.method.epoch(run, [batch] * count, running.parts):
        running.perform(update, 1.0)


def test_an_update_without_losses_is_no_step_of_the_factor():
    p, scale = nn.Parameter(torch.ones(2)), LossScale(CPU)
    update = Update(("target",), {}, {"sp": Penalty(torch.tensor(1.0), [p], [torch.tensor([1.0, 2.0])])})
    assert Gradients(Processes("cpu"), total, loss_scale=scale)(update, [p]).stepping
    assert p.grad.tolist() == [1.0, 2.0]
    assert scale.state_dict()["_growth_tracker"] == 0


def test_what_is_never_finite_ends_the_training(folder):
    def endless(run, batch):  # noqa: ARG001
        return {"root": (run.target_module.head.bias * 0).sum().sqrt()}

    running = training(settings(folder, **HALF), Plain(endless))
    with pytest.raises(Diverged, match="however small"):
        step(running, 60)


def test_resumed_equals_uninterrupted(folder, quick):  # noqa: ARG001
    """Killed between an overflow and the next growth; the factor and its counter go on, and files are the same."""
    given = HALF | {"recovery_interval": 1, "epochs": 4}
    train(settings(folder, **given, out=f"{folder}/whole"))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(12))
    kept = torch.load(folder / "run/state.pt", weights_only=True)["loss_scale"]
    assert kept["scale"] < 2.0**22
    assert kept["_growth_tracker"] in (1, 2)
    train(settings(folder, **given), resume=True)
    for name in ("last.safetensors", "best.safetensors"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    states = [torch.load(folder / name / "state.pt", weights_only=True)["loss_scale"] for name in ("run", "whole")]
    assert states[0] == states[1]
    assert read_provenance(folder / "run/last.safetensors")["finetune"]["amp_dtype"] == "float16"


def test_a_regulariser_and_its_rule(folder):
    """A whole training with DTNH and a method's own loss, close to that in float32."""
    (folder / "away.py").write_text(AWAY)
    given = {"method": f"{folder}/away.py", "combine": "dtnh", "epochs": 1, "target_arg": {"drop": 0.0}}
    results = [train(settings(folder, **given, **more, out=f"{folder}/{i}"))[0] for i, more in enumerate(({}, HALF))]
    here, there = (result.history[-1] for result in results)
    assert here["train_task"] == pytest.approx(there["train_task"], rel=0.02)
    assert here["train_task"] != there["train_task"]


def test_precisions_have_caches_of_their_own(folder):
    given = {"cache": f"{folder}/cache", "amp": True}
    folders = {
        prepare(with_source(folder, method="fm", amp_dtype=kind, **given)).run.net.cache.folder
        for kind in ("bfloat16", "float16")
    }
    assert len(folders) == 2


def test_wrong_types_are_refused(folder):
    with pytest.raises(UsageError, match="Without mixed precision"):
        settings(folder, amp_dtype="float16")
    with pytest.raises(UnknownName, match="float8"):
        settings(folder, amp=True, amp_dtype="float8")
