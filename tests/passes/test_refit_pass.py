"""The refit as a pass: what it shows, touches and reports. How it fits is tested in tests/refit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.nets import Perceptron, Straight
from support.staged import check_pass, grafted, taught
from support.stages import network, stage
from torch import nn

from netgraft import plugins
from netgraft.architecture import cost
from netgraft.errors import TraceError, UsageError
from netgraft.passes.refit import Refit

SIZE = (3, 16, 16)
SMALL = {"images": 32, "rows": 2000}


def test_it_refits_what_it_names():
    work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3)), classes=7))
    report, start, changed = check_pass(Refit(**SMALL), work)
    assert (report["images"], report["aside"]) == (32, 8)
    assert [(each["source"], each["layer"]) for each in report["layers"]] == [("convs.1", "convs.1")]
    assert all(0.3 < each["r2"] <= 1 for each in report["layers"])
    assert [each["layer"] for each in report["kept"]] == ["convs.0"]  # the source's kernel, padded with zeros
    assert report["kept"][0]["before"] > 0.9999
    assert report["left"] == {}
    assert report["settled"] == []
    assert changed == {
        *(f"convs.1.{role}" for role in ("weight", "bias")),
        *(f"norms.{i}.{role}" for i in range(2) for role in ("weight", "bias", "running_mean", "running_var")),
    }
    assert not any(key.startswith("head") for key in changed)
    assert set(start) > changed


def test_by_the_plan_layers_follow_where_their_weights_came_from():
    work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 3), (12, 3), (12, 3))), skip=("convs.1",))
    report, _, changed = check_pass(Refit(**SMALL, pairs="plan"), work)
    expected = {p.target: p.source for p in work.plan.pairing.pairs if p.target.startswith("convs")}
    assert {each["layer"]: each["source"] for each in report["layers"] + report["kept"]} == expected
    assert not any(key.startswith("convs.1") for key in changed)


def test_other_seeds_other_images():
    states = []
    for seed in (0, 1):
        work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3))))
        work.seed = seed
        Refit(**SMALL)(work)
        states.append(work.target.module.convs[1].weight.clone())
    assert not torch.equal(*states)


def test_images_are_shown_a_few_at_a_time(monkeypatch):
    """16 x 16 x 16 numbers in the largest map of an image; never as many images as an axis is long."""
    work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3))))
    monkeypatch.setattr(cost, "MOST_ACTIVATIONS", 16 * 16 * 16 * 10)
    seen = []
    work.source.module.register_forward_pre_hook(lambda _m, given: seen.append(len(given[0])))
    report = Refit(images=100)(work)
    assert set(seen) == {10}
    assert (report["images"], report["aside"]) == (100, 20)
    graphs = work.source.graph, work.target.graph
    assert cost.batch_size(*graphs, 100, shrink=1 / 2) == 11  # not 12: the first layer has as many channels
    monkeypatch.setattr(cost, "MOST_ACTIVATIONS", 10**9)
    assert cost.batch_size(*graphs, 10**6) == cost.MOST_AT_A_TIME
    assert cost.batch_size(*graphs, 4) == 2


def test_smaller_images_where_the_user_says_so():
    size = (3, 64, 64)
    work = grafted(taught(Straight, size), lambda: Straight(((12, 5), (16, 3))), size=size)
    seen = set()
    for each in (work.source, work.target):
        each.module.register_forward_pre_hook(lambda _m, given: seen.add(tuple(given[0].shape[1:])))
    report = Refit(**SMALL, side=40)(work)
    assert seen == {(3, 40, 40)}
    assert report["layers"]


class Restless(Straight):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize("side", [0, 1])
def test_networks_that_cannot_be_replayed_are_refused(side):
    builds = [Straight, Straight]
    builds[side] = Restless
    work = grafted(network(builds[0], SIZE), builds[1], skip=("convs.0",))
    with pytest.raises(TraceError, match="run again"):
        Refit(**SMALL)(work)


def test_vectors_are_no_images():
    net = network(Perceptron, (12,))
    with pytest.raises(UsageError, match="image"):
        Refit()(stage(net, net))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(48, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.conv(x.flatten(1, 2))).mean(2))


def test_nothing_to_refit_is_an_error_that_says_why():
    work = grafted(taught(Straight, SIZE), Volume)
    with pytest.raises(UsageError, match="Not a single layer") as error:
        Refit(**SMALL)(work)
    assert "conv1d is not refitted" in str(error.value.where)


def test_options():
    assert plugins.create("passes", "refit", {"images": "64", "pairs": "plan"}) == Refit(images=64, pairs="plan")
    with pytest.raises(UsageError, match="two images"):
        plugins.create("passes", "refit", {"images": 1})


def test_what_is_exact_counts_as_done():
    work = grafted(taught(Straight, SIZE), Straight)
    report, _, changed = check_pass(Refit(**SMALL), work)
    assert not changed
    assert report["settled"] == ["convs.0", "convs.1", "head"]
    assert work.settled >= {"convs.0", "norms.0"}
    lines = [line for line in Refit.lines(report) if isinstance(line, str)]
    assert lines[0] == "refit: 0 layers on 32 images"
    assert lines[1].endswith("convs.0, convs.1, head: already gives what the source gives: left as it is")


def test_the_report_says_what_it_was_measured_on():
    work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3))))
    found = list(Refit.lines(Refit(**SMALL)(work)))
    assert found[0].endswith("on the 8 kept aside")
    assert found[1] == ("follows", "target layer", "before", "R^2", "how")


def answers(work, images):
    return [each.module(work.shown(images, each)) for each in (work.source, work.target)]


def test_a_kept_head_gives_the_source_s_answers():
    """Ridge regression of the answers on what the head reads, by NumPy, on images that the refit has not seen."""
    source = taught(lambda: Straight(((8, 3), (12, 3)), 5), SIZE)
    source.module.head.weight.mul_(20)
    work = grafted(source, lambda: Straight(((6, 5), (9, 3)), 5))
    read = []
    work.target.module.head.register_forward_pre_hook(lambda _m, given: read.append(given[0].clone()))
    report, _, changed = check_pass(Refit(images=512, head="keep"), work)
    found = next(each for each in report["layers"] if each["layer"] == "head")
    assert found["source"] == "head"
    assert {"head.weight", "head.bias"} <= changed
    read.clear()
    wanted, given = answers(work, work.images(400, 77))
    x, y = read[0].double().numpy(), wanted.double().numpy()
    a, b = x - x.mean(0), y - y.mean(0)
    rho = 0.1 * (a**2).sum(0).mean()
    best = a @ np.linalg.solve(a.T @ a + rho * np.eye(a.shape[1]), a.T @ b) + y.mean(0)
    left = ((given.double().numpy() - y) ** 2).sum()
    assert left < 1.1 * ((best - y) ** 2).sum()
    assert 1 - left / (b**2).sum() == pytest.approx(found["r2"], abs=0.15)
    assert float((wanted.argmax(1) == given.argmax(1)).double().mean()) > 0.5


def test_a_kept_head_needs_the_source_s_classes():
    work = grafted(taught(lambda: Straight(((8, 3), (12, 3)), 5), SIZE), lambda: Straight(((12, 5), (16, 3)), 7))
    with pytest.raises(UsageError, match="7 outputs, and the source 5 classes"):
        Refit(**SMALL, head="keep")(work)


def test_the_penalty_is_the_one_that_was_asked_for():
    for ridge in (0.7, None):
        work = grafted(taught(Straight, SIZE), lambda: Straight(((12, 5), (16, 3))))
        found = {each.get("ridge") for each in Refit(**SMALL, ridge=ridge)(work)["layers"]}
        assert (found == {ridge}) == (ridge is not None)
        assert None not in found
    with pytest.raises(ValueError, match="ridge must be positive"):
        Refit(ridge=0)
