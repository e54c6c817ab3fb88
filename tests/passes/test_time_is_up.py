"""Passes that run out of time: where they stop, how they close, and that the same is made again without a clock."""

import pytest
import torch
from support.nets import Straight
from support.staged import grafted, taught

from netgraft.passes.distil import Distil, closing
from netgraft.passes.protocol import Stage
from netgraft.passes.refit import Refit

SIZE = (3, 16, 16)
FAST = {"steps": 60, "images": 128, "batch": 16, "lr": 5e-3}
SMALL = {"images": 32, "rows": 2000}


def work():
    return grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3), (16, 3))))


@pytest.fixture
def clock(monkeypatch):
    """Time that is up when it has been asked for so many times."""

    def up_after(asked):
        left = iter([False] * asked)
        monkeypatch.setattr(Stage, "late", property(lambda _: next(left, True)))

    return up_after


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of all steps, in order."""
    found = []
    step = torch.optim.Adam.step

    def recorded(self, *args, **more):
        found.append(self.param_groups[0]["lr"])
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    return found


def test_distillation_closes_and_makes_the_same_again(clock, rates):
    clock(29)
    one, other = work(), work()
    torch.manual_seed(0)  # as before every pass
    report = Distil(**FAST)(one)
    assert (report["cut"], report["steps"]) == (30, 30 + closing(30))
    assert len(rates) == 33
    by_the_clock = list(rates)
    rates.clear()
    clock(10**6)
    torch.manual_seed(0)
    again = Distil(**FAST, cut=30)(other)
    assert again == report
    assert rates == by_the_clock
    for key, tensor in one.target.module.state_dict().items():
        assert torch.equal(tensor, other.target.module.state_dict()[key])


def test_the_rate_falls_to_zero_in_a_line(clock, rates):
    clock(10**6)
    Distil(**FAST)(work())
    whole = list(rates)
    rates.clear()
    Distil(**FAST, cut=30)(work())
    assert rates[:30] == whole[:30]
    start = whole[30]
    assert rates[30:] == pytest.approx([start * share for share in (3 / 4, 2 / 4, 1 / 4)])


def test_in_time_nothing_is_cut(clock, rates):
    clock(10**6)
    report = Distil(**FAST)(work())
    assert (report["cut"], report["steps"], len(rates)) == (None, 60, 60)
    assert "cut" not in next(Distil.lines(report))


def test_never_more_steps_than_were_asked_for(clock, rates):
    clock(57)
    assert Distil(**FAST)(work())["steps"] == len(rates) == 60


def test_a_refit_stops_between_two_layers_and_makes_the_same_again(clock):
    clock(1)
    one, other = work(), work()
    before = one.target.module.state_dict()["convs.2.weight"].clone()
    report = Refit(**SMALL)(one)
    assert report["cut"] == 2
    assert {each["layer"] for each in report["layers"] + report["kept"]} == {"convs.0", "convs.1"}
    assert torch.equal(one.target.module.state_dict()["convs.2.weight"], before)
    clock(10**6)
    assert Refit(**SMALL, cut=2)(other) == report
    for key, tensor in one.target.module.state_dict().items():
        assert torch.equal(tensor, other.target.module.state_dict()[key])
    assert "cut short after 2" in next(Refit.lines(report))


def test_a_cut_is_a_number_of_steps():
    with pytest.raises(ValueError, match="cut must be 1"):
        Distil(cut=0)


def test_late_is_after_the_deadline():
    stage = work()
    assert not stage.late
    stage.deadline = float("inf")
    assert not stage.late
    stage.deadline = 0.0
    assert stage.late
