"""What of the target trains, when, and how fast: by place in the chain, by the ledger, by epoch."""

import itertools

import pytest
import safetensors.torch
import torch
from support.ledgers import write_ledger
from support.runs import Killed, Killer, same, settings, state_of, steps, train, training, with_source, write_nets
from support.tested_methods import each_method
from torch.nn import functional as F

from netgraft.errors import UsageError
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.protocol import Part, Update

STEM = {"stem", "stem_norm"}
BODY = {"body", "body_norm"}
BARE = {"opt": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "target_arg": {"drop": 0.0}}

BRANCHED = """
from torch import nn

class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, num_classes=10):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.a_norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.aside = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x).relu()
        aside = self.aside(x)
        x = (self.b(self.a_norm(self.a(x)).relu()) + aside).relu()
        return self.head(x.mean((2, 3)))
"""


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def changed(before, after):
    """The layers of which any tensor, a running statistic too, is another one."""
    return {key.rpartition(".")[0] for key in after if not torch.equal(before[key], after[key])}


def trained_layers(folder, **given):
    before = safetensors.torch.load_file(given.get("init", folder / "init.safetensors"))
    result, after = train(settings(folder, **given))
    return changed(before, after), result


# ---------------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(("count", "trained"), [("1", BODY | {"last", "head"}), ("2", {"last", "head"})])
def test_the_first_layers_stand_still(folder, count, trained):
    """With their norms, statistics included."""
    assert trained_layers(folder, freeze=count)[0] == trained


def test_frozen_norms_are_in_eval_mode(folder):
    """The loss of the first step against one written by hand: running statistics in the stem, the batch's behind it."""
    running = training(settings(folder, freeze="1", target_arg={"drop": 0.0}))
    net = running.run.target_module
    running.set_modes()
    batch = next(running.prepared.loader.epoch(0))
    running.run.begin(batch)
    with torch.no_grad():
        norm = net.stem_norm
        x = F.batch_norm(net.stem(batch.x), norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
        x = net.body(x)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        x = (x * net.body_norm.weight[:, None, None] + net.body_norm.bias[:, None, None]).relu()
        expected = net.head(net.last(x).relu().mean((2, 3)))
        torch.testing.assert_close(running.run.target(batch).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "frozen"),
    [("1", {"first"}), ("2", {"first", "a", "a_norm"}), ("3", {"first", "a", "a_norm", "b", "aside"})],
)
def test_a_branch_is_frozen_with_what_reads_it(tmp_path, count, frozen):
    """A shortcut's convolution is no layer of the chain: it stands still once the sum that it is part of does."""
    (tmp_path / "branched.py").write_text(BRANCHED)
    chosen = settings(tmp_path, target=f"{tmp_path}/branched.py:Net", init=None, freeze=count)
    assert {key.rpartition(".")[0] for key in prepare(chosen).freezing.always} == frozen


def test_what_came_from_the_source_stands_still(folder):
    """By the ledger: what is exact or refitted, statistics included; what was filled and what was kept trains."""
    layers, result = trained_layers(folder, init=write_ledger(folder), freeze="transferred")
    assert layers == {"last", "head"}
    assert result.history[-1]["train_task"] < result.history[0]["train_task"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"freeze": "4"}, "has 4 layers: at most 3"),
        ({"freeze": "stem"}, "--freeze transferred"),
        ({"freeze": "0"}, "--freeze transferred"),
        ({"freeze": "transferred", "init": None}, "Nothing of the target came from a source"),
        ({"lr_fresh": 2.0}, "ledger"),
        ({"lr_exact": -1.0}, "--lr-exact is at least 0"),
        ({"unfreeze_every": 0}, "--unfreeze-every is at least 1"),
    ],
    ids=str,
)
def test_refusals(folder, given, words):
    with pytest.raises(UsageError) as caught:
        train(settings(folder, **given))
    assert words in str(caught.value)
    assert not (folder / "run").exists()


def test_something_must_train(folder):
    with pytest.raises(UsageError, match="left to train"):
        train(settings(folder, init=write_ledger(folder, head=True), freeze="transferred"))


@each_method()
def test_every_method_leaves_what_is_frozen(name, folder):
    """And thaws layer by layer; of what trains a method may reach the head alone, or all but the head."""
    before = safetensors.torch.load_file(folder / "init.safetensors")
    given = {"freeze": "1", "unfreeze_every": 1, "samples_per_class": 4}
    result, after = train(with_source(folder, method=name, **given))
    assert result.history[-1]["step"] == 4
    assert set() < changed(before, after) <= {"head", "last"}


# -------------------------------------------------------------------------------------------------- layer by layer


class Watching:
    """Plain fine-tuning; ``states`` are those of the network at the beginning of each epoch."""

    needs = frozenset()

    def __init__(self):
        self.states = []

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):  # noqa: ARG002
        self.states.append(state_of(run.target_module))
        for batch in batches:
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_layers_thaw_from_the_head_down(folder, opt):
    """One more every second epoch, and its norm with it; fused SGD takes momenta of different age."""
    method = Watching()
    running = training(settings(folder, unfreeze_every=2, epochs=8, opt=opt, lr=0.01, samples_per_class=4), method)
    (folder / "run").mkdir()
    running.all()
    states = [*method.states, state_of(running.run.target_module)]
    found = [changed(one, other) for one, other in itertools.pairwise(states)]
    head, last = {"head"}, {"head", "last"}
    assert found == [head, head, last, last, last | BODY, last | BODY, last | BODY | STEM, last | BODY | STEM]


def test_frozen_layers_stay_frozen_when_others_thaw(folder):
    assert trained_layers(folder, unfreeze_every=1, freeze="2", epochs=4)[0] == {"last", "head"}


def test_thawing_goes_on_where_it_stopped(folder):
    given = {"unfreeze_every": 1, "epochs": 3, "recovery_interval": 2}
    _, whole = train(settings(folder, **given, out=f"{folder}/whole"))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(9))
    result, resumed = train(settings(folder, **given), resume=True)
    assert result.resumed
    assert same(whole, resumed)


# ---------------------------------------------------------------------------------------------------- learning rates

FACTORS = {"lr_exact": 0.1, "lr_refitted": 0.5, "lr_fresh": 3.0}
OF = {"stem": 0.1, "stem_norm": 0.1, "body": 0.5, "body_norm": 0.5, "last": 3.0, "head": 3.0}


@pytest.mark.parametrize("sched", ["none", "cosine"])
def test_rates_by_provenance(folder, sched):
    """A bare step of -lr factor g, with g from a network of its own."""
    running = training(settings(folder, init=write_ledger(folder), sched=sched, **FACTORS, **BARE))
    net = training(settings(folder, **BARE)).run.target_module.train()
    batch = next(running.prepared.loader.epoch(0))
    named = dict(net.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(net(batch.x), batch.y), list(named.values()))
    before = state_of(running.run.target_module)
    steps(running, 1)
    after = state_of(running.run.target_module)
    for (name, _), g in zip(named.items(), gradients, strict=True):
        expected = -0.1 * OF[name.rpartition(".")[0]] * g
        torch.testing.assert_close(after[name] - before[name], expected, rtol=1e-4, atol=1e-6)


def test_factors_hold_at_every_step_and_decay_is_as_before(folder):
    """Each tensor's rate is its factor times the schedule's, which the record has; norms and biases do not decay."""
    given = {"init": write_ledger(folder), "epochs": 2, "warmup_epochs": 1, "min_lr": 0.01}
    running = training(settings(folder, **FACTORS, **given))
    (folder / "run").mkdir()
    history = running.all().history
    plain, _ = train(settings(folder, **given, out=f"{folder}/plain"))
    assert [record["lr"] for record in history] == pytest.approx([record["lr"] for record in plain.history], rel=1e-9)
    names = {id(p): name for name, p in running.run.target_module.named_parameters()}
    seen = set()
    for group in running.run.optimizer("target").param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["lr"] == pytest.approx(history[-1]["lr"] * OF[name.rpartition(".")[0]], rel=1e-9)
            assert group["weight_decay"] == (1e-4 if parameter.ndim > 1 else 0.0)
    assert seen == set(names.values())


def test_factors_of_a_resumed_training(folder):
    given = {"init": write_ledger(folder), "recovery_interval": 2, **FACTORS}
    _, whole = train(settings(folder, **given, out=f"{folder}/whole"))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(7))
    _, resumed = train(settings(folder, **given), resume=True)
    assert same(whole, resumed)
