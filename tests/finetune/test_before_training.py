"""``prepare``: what a method does once before the first batch, and where it leaves the result."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from support.runs import (
    Killed,
    Killer,
    other_folder,
    same,
    settings,
    state_of,
    train,
    training,
    with_source,
    write_nets,
)
from support.tested_methods import EXAMPLE
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.engine.explain import explain
from netgraft.finetune.protocol import Need, Part, Prepares, Update


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@dataclass(frozen=True)
class Probing:
    """Looks at all batches before the first one, and says what it saw."""

    look: object = lambda run, batch: None  # noqa: ARG005
    seen: list = field(default_factory=list)
    needs: ClassVar[frozenset] = frozenset({Need.START})

    def parts(self, run):
        module = nn.Module()
        module.register_buffer("mean", torch.zeros(()))
        return {"target": Part(run.target_module), "probe": Part(module)}

    def prepare(self, run, batches, parts):
        assert run.target_module.training
        torch.randn(3)
        for batch in batches:
            self.seen.append(self.look(run, batch))
            parts["probe"].module.mean += batch.x.mean()

    def epoch(self, run, batches, parts):
        for batch in batches:
            self.seen.append(("step", run.step, float(parts["probe"].module.mean)))
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})


def prepared(folder, own, **given):
    running = training(with_source(folder, **given), own)
    running.prepare()
    return running


def trained(folder, own, **given):
    running = training(with_source(folder, **given), own)
    (folder / "run").mkdir(exist_ok=True)
    running.all()
    return running


def test_capability_is_the_function():
    assert isinstance(Probing(), Prepares)
    assert not isinstance(object(), Prepares)


def test_before_the_first_batch_with_those_of_the_first_epoch(folder):
    method = Probing(lambda _, batch: batch.ids.tolist())
    running = trained(folder, method)
    ids = [batch.ids.tolist() for batch in running.prepared.loader.epoch(0)]
    assert method.seen[: len(ids)] == ids
    assert method.seen[len(ids)][:2] == ("step", 0)
    assert method.seen[-1][1] == 9
    assert method.seen[-1][2] != 0


def test_batches_may_be_asked_for_again(folder):
    class Twice(Probing):
        def prepare(self, run, batches, parts):  # noqa: ARG002
            self.seen.extend([batch.ids.tolist() for batch in batches] for _ in range(2))

    method = Twice()
    prepared(folder, method)
    assert method.seen[0] == method.seen[1] != []


def test_it_changes_nothing_of_the_training(folder):
    """Statistics, random numbers, and what the passes leave behind: the steps are those of plain fine-tuning."""

    def look(run, batch):
        for x in (batch, batch.x, batch.source):
            run.target(x)
        run.target(batch, train=False)
        run.source(batch)

    found = []
    for method in (Probing(), Probing(look)):
        running = prepared(folder, method, method="l2-sp")  # which needs theta^0
        assert same(state_of(running.run.target_module), {**running.run.start, **running.run.start_buffers})
        found.append(state_of(trained(folder, method, method="l2-sp").run.target_module))
    assert same(*found)


def test_every_batch_has_other_random_numbers(folder):
    def look(run, batch):
        one = type(batch)(batch.x, batch.y, torch.zeros(len(batch.ids), dtype=torch.int64))  # always the first image
        drawn = torch.rand(1), torch.rand(1, generator=run.generator("a")), run.random(one, "a")[0]
        return [float(number) for number in drawn]

    method = Probing(look)
    again = Probing(method.look)
    prepared(folder, method)
    prepared(folder, again)
    assert method.seen == again.seen
    assert all(len(set(column)) == len(method.seen) > 3 for column in zip(*method.seen, strict=True))


COUNTING = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import torch
from torch import nn
from netgraft.finetune.protocol import Part, Update

@dataclass(frozen=True)
class Counting:
    """Counts how often it prepares, in a file."""

    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        module = nn.Module()
        module.register_buffer("mean", torch.zeros(()))
        return {"target": Part(run.target_module), "probe": Part(module)}

    def prepare(self, run, batches, parts):
        with open(Path(__file__).with_name("count"), "a") as file:
            file.write("x")
        parts["probe"].module.mean.fill_(float(sum(batch.x.mean() for batch in batches)))

    def epoch(self, run, batches, parts):
        for batch in batches:
            run.note("mean", parts["probe"].module.mean)
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})
'''


def test_once_and_not_when_resumed(folder):
    (folder / "counting.py").write_text(COUNTING.replace("__file__", repr(str(folder / "counting.py"))))
    chosen = settings(folder, method=f"{folder}/counting.py", recovery_interval=2)
    whole, weights = train(other_folder(chosen, "whole"))
    assert (folder / "count").read_text() == "x"
    with pytest.raises(Killed):
        train(chosen, watch=Killer(7))
    result, resumed = train(chosen, resume=True)
    assert (folder / "count").read_text() == "xx"
    assert result.resumed
    assert same(weights, resumed)
    assert [record["train_mean"] for record in result.history] == [record["train_mean"] for record in whole.history]
    assert whole.history[0]["train_mean"] != 0


def test_average_of_the_weights_begins_where_the_network_does(folder):
    """A method whose ``prepare`` sets the classifier."""

    class Setting(Probing):
        def prepare(self, run, batches, parts):  # noqa: ARG002
            with torch.no_grad():
                run.target_module.head.bias.fill_(3.0)

    running = prepared(folder, Setting(), model_ema=True, method="l2-sp")  # which needs theta^0
    assert running.ema.module.head.bias.tolist() == [3.0] * 10
    assert not torch.equal(running.run.start["head.bias"], running.run.target_module.head.bias)


def test_theta_0_is_copied_before(folder):
    """Where the method needs it; else it is refused afterwards."""
    with pytest.raises(UsageError, match="before training"):
        _ = prepared(folder, Probing()).run.start


def test_cost_says_that_there_is_work_before(folder):
    """Two passes, and as many for all batches."""
    twice = "[run.target(batch, train=False) for batch in batches for _ in range(2)]"
    (folder / "twice.py").write_text(COUNTING.replace("with open", f"{twice}\n        return\n        with open"))
    cost, plain = (explain(with_source(folder, method=name)) for name in (f"{folder}/twice.py", "plain"))
    (line,) = [line for line in cost.remarks if "before the first step" in line]
    assert "2.00 F for the first batch" in line
    assert cost.step == plain.step
    assert not any("before" in line for line in plain.remarks)


def test_cost_of_the_example(folder):
    assert explain(with_source(folder, method=EXAMPLE)).updates == 1
