"""What ``--explain`` says a step costs, against the FLOPs of the real training, counted around its steps."""

from contextlib import nullcontext

import pytest
from support.runs import train, training, with_source, write_nets
from support.tested_methods import METHODS, each_method, label
from torch.utils.flop_counter import FlopCounterMode

from netgraft.finetune.engine.explain import explain
from netgraft.finetune.engine.watch import Quiet
from netgraft.report.training import cost_lines

CLOSE = 0.05
STAGED = {  # ten steps; what costs most comes in only some of them
    "fm": {"set": {"hint_epochs": 1}},
    "fsp": {"set": {"pretrain_epochs": 1}},
    "l2t-ww": {"set": {"meta_every": 3}},
    "l2t-gan": {"set": {"meta_every": 4}},
    "l2t-gan, not learning": {"set": {"meta_every": 4, "meta": "fixed"}},
    "cetl, measuring": {"set": {"stage_unit": "step", "stage_count": 3, "fisher_batches": 1}},
    **{f"cetl, {config}": {"set": {"config": config}} for config in ("f", "u", "e", "fi", "coupled")},
    "plain, thawing": {"unfreeze_every": 1},
    "kd, lambda falls to 0": {"lam_decay": 0.0},
    "kd, accumulated": {"accumulate": 2},
    "fm, dtnh": {"combine": "dtnh"},
    "jacobian, attention": {"set": {"of": "attention", "at": 1.0}},
}
QUICK = "plain", "fitnet", "jacobian", "cetl", "lwf", "tzeng"
QUICK_STAGES = "fm", "l2t-ww", "cetl, measuring", "plain, thawing", "kd, lambda falls to 0", "kd, accumulated"


class Everywhere(nullcontext):
    """No module in particular: what tells modules apart takes no leaf as the input of one."""

    parents = frozenset({"Global"})


class Steps(Quiet):
    """Counts between the start of each batch and its end: no preparation, nothing after an epoch, no test images."""

    def __init__(self, running):
        self.counter, self.kinds = FlopCounterMode(display=False), []
        self.counter.mod_tracker = Everywhere()
        begin = running.run.begin

        def begun(batch):
            self.before = self.counter.get_total_flops()
            begin(batch)

        running.run.begin, running.watch = begun, self

    def batch(self, epoch, step, images, meters):  # noqa: ARG002
        self.kinds.append(self.counter.get_total_flops() - self.before)


def counted(chosen):
    """FLOPs of each step of the whole training."""
    running = training(chosen)
    running.folder.path.mkdir()
    watch = Steps(running)
    with watch.counter:
        running.all()
    return watch.kinds


def compared(folder, name, **more):
    if name == "cetl":
        more["set"] = {"tolerance": 0.0} | more.get("set", {})  # no stage settles
    chosen = with_source(folder, method=name, **more)
    cost, kinds = explain(chosen), counted(chosen)
    assert len(kinds) in (10, 8)  # whole steps of two batches in each epoch
    assert cost.step == pytest.approx(sum(kinds) / len(kinds) / cost.forward, rel=CLOSE)
    return cost, [kind / cost.forward for kind in kinds]


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@each_method(QUICK)
def test_some_methods(name, folder):
    compared(folder, name)


@pytest.mark.slow
@each_method([name for name in METHODS if label(name) not in QUICK])
def test_every_other_method(name, folder):
    compared(folder, name)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK_STAGES)) for kind in STAGED]
)
def test_stages(kind, folder):
    """Each is there with its cost and its share of the steps."""
    cost, kinds = compared(folder, kind.partition(",")[0], **STAGED[kind])
    assert sum(one.share for one in cost.stages) == pytest.approx(1)
    for one in cost.stages:
        same = [cost for cost in kinds if cost == pytest.approx(one.step, rel=1e-6)]
        assert len(same) >= round(len(kinds) * one.share), one.name


def test_what_the_source_costs(folder):
    """Jacobian's: a pass forwards, and one backwards to the image, which convolutions without weights' gradients cost.

    The first pass of a cache saves none of it, for it is not the pass of an image alone but its gradient.
    """
    cost, plain = (explain(with_source(folder, method=name)) for name in ("jacobian", "kd"))
    assert cost.source == pytest.approx(2 * plain.source, rel=1e-6)
    assert (cost.cached, plain.cached) == (cost.step, pytest.approx(plain.step - plain.source))


def test_nothing_is_cached(folder):
    """Nothing is written, and what a cache has does not make the source look cheap."""
    chosen = with_source(folder, method="kd", cache=f"{folder}/cache")
    cost = explain(chosen)
    assert not (folder / "cache").exists()
    train(chosen)
    assert (folder / "cache").exists()
    assert explain(chosen).source == cost.source > 0


def test_report(folder):
    """Stages are told where there are several."""
    text = "\n".join(cost_lines(explain(with_source(folder, method="fitnet"))))
    assert "one step (mean)" in text
    assert all(f"50.0% of steps: {name} " in text for name in ("hints", "answers"))
    assert "(mean)" not in "\n".join(cost_lines(explain(with_source(folder, method="kd"))))
