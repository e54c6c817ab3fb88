"""Layers are fitted on as many images as they need, and the pass of each batch goes no farther than it must."""

import copy

import pytest
import torch
from support.refit_nets import Plain, Residual, images, in_batches, layers, made, refitted
from torch import nn

from netgraft.architecture import cost
from netgraft.passes.refitting import jobs as jobs_module
from netgraft.passes.refitting.batches import Batches
from netgraft.passes.refitting.channels import OutputChannels
from netgraft.passes.refitting.frontier import Frontier
from netgraft.passes.refitting.jobs import Jobs
from netgraft.passes.refitting.walk import refit
from netgraft.trace.replay import Replay


def batches_of(x, size, aside):
    parts = x.split(size)
    return Batches(size, aside, len(parts) - aside, parts.__getitem__, parts.__getitem__)


def jobs_for(net, batches, rows=40_000):
    replay = Replay(net, batches.source(0))
    pairs = [(layer.name, layer.name) for layer in replay.graph.kernels() if layer.name != "head"]
    channels = OutputChannels(replay.graph, replay.graph, layers(replay.graph, replay.graph, pairs), None)
    found = Jobs(replay, replay, batches, channels, torch.Generator(), rows).make(pairs)
    return {job.layer.name: job for job in found}


def test_few_images_for_large_maps_and_many_for_small_ones(monkeypatch):
    """16 x 16 positions an image in the first two layers, 8 x 8 in the third; 27, 72 and 108 unknowns."""
    monkeypatch.setattr(jobs_module, "LEAST_IMAGES", 1)
    monkeypatch.setattr(cost, "LEAST_ROWS", 256)
    found = jobs_for(made(Plain), batches_of(images(64), 2, 4))
    fitted = {name: [k for k in job.rows if k >= 4] for name, job in found.items()}
    aside = {name: [k for k in job.rows if k < 4] for name, job in found.items()}
    assert {name: 2 * len(each) for name, each in fitted.items()} == {"convs.0": 2, "convs.1": 6, "convs.2": 28}
    assert {name: 2 * len(each) for name, each in aside.items()} == {"convs.0": 2, "convs.1": 2, "convs.2": 8}
    assert all(each[0] == 4 for each in fitted.values())
    for name, unknowns in (("convs.0", 27), ("convs.1", 72), ("convs.2", 108)):
        assert sum(map(len, found[name].rows.values())) >= 16 * unknowns
        assert {k: len(wanted) for k, wanted in found[name].wanted.items()} == {
            k: len(rows) for k, rows in found[name].rows.items()
        }


def test_no_more_images_than_can_be_kept_beside_one_another(monkeypatch):
    net, batches = made(Plain), batches_of(images(64), 2, 4)
    assert all(len(job.rows) == 32 for job in jobs_for(net, batches).values())
    monkeypatch.setattr(jobs_module, "MOST_KEPT", 10 * 2 * 8 * 16 * 16)
    found = jobs_for(net, batches)
    assert len(found["convs.0"].rows) == 20 + 4  # of 26 batches of 2 x 3 x 16 x 16, one for four is kept aside
    assert len(found["convs.1"].rows) == 8 + 2  # of 10 batches of 2 x 8 x 16 x 16


@pytest.mark.parametrize("build", [Plain, Residual])
def test_how_many_images_at_a_time_does_not_matter(build, monkeypatch):
    """All positions are taken, so that nothing is drawn: only sums are added up in another order."""
    monkeypatch.setattr(cost, "LEAST_ROWS", 10**6)
    source, start = made(build), made(build, seed=5)
    x, found = images(48), []
    for size in (2, 8):
        target = copy.deepcopy(start)
        batches = batches_of(x, size, 8 // size)
        there, here = Replay(source, batches.source(0)), Replay(target, batches.target(0))
        pairs = [(layer.name, layer.name) for layer in here.graph.kernels() if layer.name != "head"]
        channels = OutputChannels(there.graph, here.graph, layers(there.graph, here.graph, pairs), None)
        outcome = refit(there, here, batches, pairs, channels, torch.Generator(), 10**6)
        assert {each.layer for each in outcome.done} == {name for name, _ in pairs}
        found.append((target.state_dict(), [each.r2 for each in outcome.done]))
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)
    for key, tensor in found[0][0].items():
        torch.testing.assert_close(tensor, found[1][0][key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("build", [Plain, Residual])
def test_batches_that_wait_see_the_weights_that_layers_got(build, monkeypatch):
    """Statistics of the norms of a late layer, which sees all batches, are those of the finished network."""
    monkeypatch.setattr(jobs_module, "LEAST_IMAGES", 1)
    monkeypatch.setattr(cost, "LEAST_ROWS", 256)
    monkeypatch.setattr(cost, "ROWS_PER_UNKNOWN", 64)
    source, target = made(build), made(build, seed=5)
    x = images(36)
    done, _ = refitted(source, target, x=x)
    last = [name for name, part in target.named_modules() if isinstance(part, nn.BatchNorm2d)]
    last = {"Plain": last[-1], "Residual": "blocks.1.bn2"}[build.__name__]
    assert done
    seen = []
    target.get_submodule(last).register_forward_pre_hook(lambda _m, given: seen.append(given[0].clone()))
    batches = in_batches(x)
    for k in range(batches.aside, batches.aside + batches.fitted):
        target(batches.target(k))
    given = torch.cat(seen)
    torch.testing.assert_close(target.get_submodule(last).running_mean, given.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_pass_goes_as_far_as_is_asked_for():
    net, x = made(Plain), images(6)
    asked = []

    def inputs(k):
        asked.append(k)
        return x[2 * k : 2 * k + 2]

    recording = Replay(net, x[:2])
    frontier = Frontier(recording, inputs)
    first, last = recording.starts["convs.1"], recording.starts["convs.2"]
    assert set(frontier.reach(first, [1])) == {1}
    assert asked == [1]
    passes = frontier.reach(last, [0, 1])
    assert asked == [1, 0]
    read = next(node for node in last.all_input_nodes if not node.meta.get("params"))
    after = []
    net.convs[2].register_forward_pre_hook(lambda _m, given: after.append(given[0].clone()))
    net(x[2:4])
    torch.testing.assert_close(passes[1].values[read], after[0])
    assert not torch.equal(passes[0].values[read], passes[1].values[read])


def test_values_that_are_counted_are_those_that_are_kept():
    net, x = made(Residual), images(4)
    recording = Replay(net, x)
    for name in ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.down.0", "head"):
        each = recording.beside(x)
        each.advance(recording.starts[name])
        kept = {node: value for node, value in each.values.items() if node.op != "get_attr"}
        assert recording.numbers_at(recording.starts[name]) == sum(
            value.numel() for value in kept.values() if isinstance(value, torch.Tensor)
        )
