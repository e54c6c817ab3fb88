"""Passes that run out of time: where they stop, how they close, and that the same is made again without a clock."""

import pytest
import torch
from support.nets import Straight
from support.staged import grafted, taught

from netgraft.passes.distil import Distil, closing
from netgraft.passes.refit import Refit

SIZE = (3, 16, 16)
FAST = {"steps": 60, "images": 128, "batch": 16, "lr": 5e-3}
SMALL = {"images": 32, "rows": 2000}


def work(asked=10**6):
    """A stage whose time is up when it has been asked for so many times."""
    made = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3), (16, 3))))
    left = iter([False] * asked)
    made.enough = lambda: next(left, True)
    return made


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


def test_distillation_closes_and_makes_the_same_again(rates):
    one, other = work(29), work()
    torch.manual_seed(0)  # as before every pass
    report = Distil(**FAST)(one)
    assert (report["cut"], report["steps"]) == (30, 30 + closing(30))
    assert len(rates) == 33
    by_the_clock = list(rates)
    rates.clear()
    torch.manual_seed(0)
    again = Distil(**FAST, cut=30)(other)
    assert again == report
    assert rates == by_the_clock
    for key, tensor in one.target.module.state_dict().items():
        assert torch.equal(tensor, other.target.module.state_dict()[key])


def test_the_rate_falls_to_zero_in_a_line(rates):
    Distil(**FAST)(work())
    whole = list(rates)
    rates.clear()
    Distil(**FAST, cut=30)(work())
    assert rates[:30] == whole[:30]
    start = whole[30]
    assert rates[30:] == pytest.approx([start * share for share in (3 / 4, 2 / 4, 1 / 4)])


def test_in_time_nothing_is_cut(rates):
    report = Distil(**FAST)(work())
    assert (report["cut"], report["steps"], len(rates)) == (None, 60, 60)
    assert "cut" not in next(Distil.lines(report))


def test_never_more_steps_than_were_asked_for(rates):
    assert Distil(**FAST)(work(57))["steps"] == len(rates) == 60


def test_a_refit_stops_between_two_layers_and_makes_the_same_again():
    one, other = work(1), work()
    before = one.target.module.state_dict()["convs.2.weight"].clone()
    report = Refit(**SMALL)(one)
    assert report["cut"] == 2
    assert {each["layer"] for each in report["layers"] + report["kept"]} == {"convs.0", "convs.1"}
    assert torch.equal(one.target.module.state_dict()["convs.2.weight"], before)
    assert Refit(**SMALL, cut=2)(other) == report
    for key, tensor in one.target.module.state_dict().items():
        assert torch.equal(tensor, other.target.module.state_dict()[key])
    assert "cut short after 2" in next(Refit.lines(report))


def test_a_cut_is_a_number_of_steps():
    with pytest.raises(ValueError, match="cut must be 1"):
        Distil(cut=0)
