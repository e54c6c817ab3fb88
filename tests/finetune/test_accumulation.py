"""Several batches make one step, and it is that of one large batch."""

import pytest
import torch
from support.away import AWAY
from support.runs import Killed, Killer, same, settings, train, with_source, write_nets
from support.two_processes import distance
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.combine import dtnh, total
from netgraft.finetune.engine.accumulation import Accumulation
from netgraft.finetune.engine.gradients import Gradients
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.protocol import Penalty, Update

BARE = """
from torch import nn

class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))
"""


@pytest.fixture
def folder(tmp_path):
    write_nets(tmp_path)
    (tmp_path / "bare.py").write_text(BARE)
    (tmp_path / "away.py").write_text(AWAY)
    return tmp_path


@pytest.mark.parametrize("method", ["plain", "away.py"])
def test_equal_to_one_large_batch(folder, method):
    """Twenty steps of 16 images, at once or in fours, without batch norm: rates, clipping, penalties and all."""
    given = {
        "target": f"{folder}/bare.py:Net",
        "init": None,
        "target_arg": {},
        "method": f"{folder}/{method}" if method.endswith(".py") else method,
        "epochs": 4,
        "warmup_epochs": 1,
        "clip_grad": 1.0,
        "model_ema": True,
    }
    large, one = train(settings(folder, **given, out=f"{folder}/large"))
    small, four = train(settings(folder, **given, batch_size=4, accumulate=4))
    assert distance(one, four) <= 1e-6
    assert [record["step"] for record in small.history] == [20, 40, 60, 80]
    for theirs, mine in zip(large.history, small.history, strict=True):
        for name in ("train_task", "eval_loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
        if method == "away.py":
            assert mine["train_obtuse"] == theirs["train_obtuse"]
    _, without = train(settings(folder, **given, batch_size=4, out=f"{folder}/without"))
    assert distance(one, without) > 1e-3


def gradients(rule, size):
    return Gradients(Processes("cpu"), rule, accumulation=Accumulation(size))


def test_the_rule_decides_when_all_is_in():
    """In the first batch task and regulariser conflict, over both they do not; the analytic gradient counts once."""
    p = nn.Parameter(torch.zeros(2))
    batches = [
        {"task": torch.tensor([1.0, 0.0]), "away": torch.tensor([-1.0, 1.0])},
        {"task": torch.tensor([1.0, 0.0]), "away": torch.tensor([3.0, 1.0])},
    ]
    perform = gradients(dtnh, 2)
    for number, batch in enumerate(batches):
        perform.accumulation.begin(number)
        decay = Penalty(torch.tensor(0.0), [p], [torch.tensor([0.5, 0.25])])
        update = Update(("target",), {name: (p * g).sum() for name, g in batch.items()}, {"decay": decay})
        performed = perform(update, [p])
        assert (performed is None) == (number == 0)
        assert (p.grad is None) == (number == 0)
        perform.accumulation.end()
    mean = sum(sum(batch.values()) for batch in batches) / 2
    torch.testing.assert_close(p.grad, mean + torch.tensor([0.5, 0.25]))


def test_parameters_that_one_batch_reaches():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    perform = gradients(total, 2)
    for number, loss in enumerate([3 * p.sum(), 5 * q.sum()]):
        perform.accumulation.begin(number)
        performed = perform(Update(("target",), {"task": loss}), [p, q])
    assert (float(p.grad), float(q.grad)) == (1.5, 2.5)
    assert float(performed.values["task"]) == 4.0


def test_a_step_without_all_its_updates_is_refused():
    p = nn.Parameter(torch.ones(1))
    perform = gradients(total, 2)
    perform.accumulation.begin(0)
    perform(Update(("target",), {"task": p.sum()}), [p])
    perform.accumulation.end()
    perform.accumulation.begin(1)
    with pytest.raises(UsageError, match="cannot be accumulated"):
        perform.accumulation.end()


def test_methods_of_several_steps_are_refused(folder):
    with pytest.raises(UsageError, match="cannot be accumulated") as caught:
        train(with_source(folder, method="l2t-gan", accumulate=2, samples_per_class=4))
    assert "several updates" in caught.value.where


def test_resumed_between_two_steps(folder):
    """A state every third batch comes after the step that this batch is part of; the end is the same."""
    given = {"accumulate": 2, "batch_size": 8, "recovery_interval": 3}
    _, whole = train(settings(folder, **given, out=f"{folder}/whole"))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(7))
    result, resumed = train(settings(folder, **given), resume=True)
    assert result.resumed
    assert same(whole, resumed)


def test_an_epoch_has_whole_steps(folder):
    """80 images in batches of 16 are 5; in steps of 2 batches the fifth is left out, in steps of 9 there are 5."""
    for accumulate, batches in ((2, 4), (9, 5)):
        result, _ = train(settings(folder, accumulate=accumulate, epochs=1), force=True)
        assert result.history[-1]["step"] == batches
