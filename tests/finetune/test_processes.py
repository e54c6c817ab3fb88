"""Two gloo processes, started as torchrun starts them, end where one does."""

import subprocess

import pytest
import safetensors.torch
from support.away import AWAY
from support.runs import train, with_source, write_nets
from support.tested_methods import each_method
from support.two_processes import SAME, Two, distance, start, weights


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, which train in their folder."""
    folder = write_nets(tmp_path_factory.mktemp("two"))
    (folder / "away.py").write_text(AWAY)
    processes = Two(folder)
    yield processes
    processes.end()


def compare(two, **given):
    """How far two processes are from one after 24 steps, six an epoch; the history of one, and how far it went."""
    two.train("two", batch_size=8, **given)
    result, one = train(with_source(two.folder, out=str(two.folder / "one"), batch_size=16, **given), force=True)
    start_weights = safetensors.torch.load_file(two.folder / "init.safetensors")
    return distance(one, weights(two.folder, "two")), result.history, distance(one, start_weights)


@each_method()
def test_every_method(name, two):
    """With BatchNorm's statistics frozen (--bn eval)."""
    given = SAME | {"bn": "eval", "lr": 0.005, "method": name}  # large steps amplify rounding
    if name in ("dan", "jan", "rtn"):  # their gradients are a hundred times the task's where features are small
        given["lam"] = 0.003
    if name == "delta":  # the code's form divides small differences of losses by their deviation, rounding with them
        given["set"] = {"form": "paper"}
    if name == "fitnet":  # the regressor's norm divides by the deviation of a layer that hardly moves yet
        given["lam"] = 0.1
    apart, history, moved = compare(two, **given)
    assert apart <= 1e-6
    assert history[-1]["step"] == 24
    assert moved > 1e-3  # it did train


OPTIONS = {
    "dan": [
        {"kernels": "epoch", "epsilon": 0.01},
    ],
    "jan": [{"adversarial": True, "theta_rate": 1.0}],
    "ddc": [{"width": "4"}, {"width": "2,4", "place": "body,features", "trial": 3}],
}
"""What those methods keep, solve, fold or choose beside the losses that their defaults have."""


@pytest.mark.parametrize(("name", "options"), [(name, one) for name, all_ in OPTIONS.items() for one in all_])
def test_options(name, options, two):
    given = SAME | {"bn": "eval", "lr": 0.005, "method": name, "set": options, "lam": 1.0 if name == "ddc" else 0.003}
    apart, _, moved = compare(two, **given)
    assert apart <= 1e-6
    assert moved > 1e-3


@pytest.mark.parametrize("rule", ["plain", "conflict"])
def test_accumulated(rule, two):
    """Two batches of two processes make the step that one batch of four times their size makes in one process."""
    method = f"{two.folder}/away.py" if rule == "conflict" else "plain"
    given = SAME | {"bn": "eval", "lr": 0.02, "method": method, "clip_grad": 1.0}
    apart, history, moved = compare(two, **given, accumulate=2)
    assert apart <= 1e-6
    assert history[-1]["step"] == 24
    assert moved > 1e-3
    large, one = train(with_source(two.folder, out=str(two.folder / "large"), batch_size=32, **given), force=True)
    assert large.history[-1]["step"] == 12
    assert distance(one, weights(two.folder, "two")) <= 1e-6


def test_hardest_images_are_those_of_all_processes(two):
    """The triplet loss looks across processes; each anchor's distances are to the images of both."""
    given = SAME | {"source_data": None, "unlabelled": None, "bn": "eval", "lr": 0.005}
    apart, history, moved = compare(two, **given, method="plain", triplet=1.0)
    assert apart <= 1e-6
    assert history[-1]["train_triplet"] > 0
    assert moved > 1e-3


@pytest.fixture(scope="module")
def conflict(two):
    """A rule that is not linear, with each kind of statistics: distance and history."""
    given = SAME | {"method": f"{two.folder}/away.py", "lr": 0.02}
    return {bn: compare(two, **given, bn=bn)[:2] for bn in ("eval", "sync", "train")}


@pytest.mark.parametrize("bn", ["eval", "sync"])
def test_dtnh_in_conflict(bn, conflict):
    """Conflicts in a third of the steps: the coefficient is that of the whole batch, with either kind of statistics."""
    distance, history = conflict[bn]
    assert sum(record["train_obtuse"] for record in history) / len(history) > 0.33
    assert distance <= 1e-6


def test_statistics_of_each_process_differ(conflict):
    """--bn train: what makes two processes another training, as in DistributedDataParallel; so the others mean it."""
    assert conflict["train"][0] > 1e-4


APART = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from netgraft.finetune.protocol import Part, Update

@dataclass(frozen=True)
class Apart:
    \"\"\"Prepares something else in each process.\"\"\"

    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        module = nn.Module()
        module.register_buffer("rank", torch.zeros(()))
        return {"target": Part(run.target_module), "other": Part(module)}

    def prepare(self, run, batches, parts):
        assert run.world == 2
        parts["other"].module.rank.fill_(5 + run.rank)

    def epoch(self, run, batches, parts):
        for batch in batches:
            assert float(parts["other"].module.rank) == 5
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})
"""


def test_what_was_prepared_is_the_first_ones_everywhere(two):
    (two.folder / "apart.py").write_text(APART)
    two.train("apart", method=f"{two.folder}/apart.py", epochs=1)


def test_an_error_in_a_process_is_told_and_the_next_training_goes_on(two):
    with pytest.raises(AssertionError, match="plian"):
        two.train("two", method="plian")
    two.train("again", method="plain", epochs=1)
    assert weights(two.folder, "again")


COLLECTIVES = """
import torch
from netgraft.finetune.engine.processes import Processes
me = Processes("cpu")
x = torch.full((2, 3), float(me.rank + 1), dtype=torch.float64, requires_grad=True)
whole = me.gather(x)
assert whole.tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
(g,) = torch.autograd.grad((whole**3).sum(), x, create_graph=True)
assert torch.equal(g, 2 * 3 * x**2)  # both processes' losses depend on it
(h,) = torch.autograd.grad(g.sum(), x)
assert torch.equal(h, 2 * 6 * x)
assert me.average(x).unique().tolist() == [1.5]
a, b = me.mean([x, torch.tensor(float(me.rank))])
assert a.unique().tolist() == [1.5] and float(b) == 0.5 and not a.requires_grad
assert me.all_objects(me.rank) == [0, 1]
net = torch.nn.BatchNorm1d(2)
with torch.no_grad():
    net.weight.fill_(me.rank)
    net.running_mean.fill_(me.rank)
me.average_statistics(net)
assert net.running_mean.tolist() == [0.5, 0.5]
me.broadcast([net])
assert net.weight.tolist() == [0.0, 0.0]
torch.distributed.destroy_process_group()
"""


def test_collectives(tmp_path):
    """Values and gradients of what goes between processes, in two of them."""
    (tmp_path / "worker.py").write_text(COLLECTIVES)
    for process in start(tmp_path, ["worker.py"], 2, stderr=subprocess.PIPE):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
