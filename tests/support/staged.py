"""Grafted targets for the passes that go on from them, and what every pass keeps to."""

import copy

import torch
from support.stages import network, stage

from netgraft import plugins
from netgraft.graft import graft
from netgraft.models.batch_norm import recalibrating
from netgraft.plan import Plan
from netgraft.recipes.run import run_recipe


def taught(build, size, seed=0):
    """A network whose statistics are those of the images that passes draw."""
    net = network(build, size, seed=seed)
    work = stage(net, net)
    with recalibrating(net.module):
        for part in work.shown(work.images(128, 99), net).split(32):
            net.module(part)
    return net


def grafted(source, build, recipe="graft", size=(3, 16, 16), seed=9, **options):
    """A stage with ``source`` and the target that a recipe makes of it."""
    target = network(build, size, seed=seed)
    pairing, moves, kept = run_recipe(plugins.create("recipes", recipe, options), source.graph, target.graph)
    plan = Plan("source", "target", "", "", recipe, {}, pairing, tuple(moves), tuple(kept))
    state = graft(plan, source.module.state_dict(), target.module.state_dict())
    target.module.load_state_dict(state)
    work = stage(source, target, moves, pairing.pairs)
    work.plan = plan
    return work


def check_pass(each, work):
    """Runs it twice from the same state: only keys that it names change, the source stays, and the bytes are equal.

    Returns the report and the state before.
    """
    start = copy.deepcopy(work.target.module.state_dict())
    source = copy.deepcopy(work.source.module.state_dict())
    ends, reports = [], []
    for _ in range(2):
        work.target.module.load_state_dict(start)
        torch.manual_seed(work.seed)
        reports.append(each(work))
        ends.append(copy.deepcopy(work.target.module.state_dict()))
    assert list(ends[0]) == list(start)
    changed = {key for key in start if not torch.equal(start[key], ends[0][key])}
    named = set(each.touches(work.source.graph, work.target.graph, work.plan.pairing))
    assert named <= set(start)
    assert changed <= named, sorted(changed - named)
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in start)
    assert reports[0] == reports[1]
    assert all(torch.equal(tensor, source[key]) for key, tensor in work.source.module.state_dict().items())
    assert not any(part.training for part in work.target.module.modules())
    assert not any(p.requires_grad for p in work.target.module.parameters())
    return reports[0], start, changed
