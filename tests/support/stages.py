"""A stage as a pass gets it, from two functions that build networks."""

import torch
from support.nets import Net

from netgraft.data.images import ImageSource
from netgraft.models.normalisation import Normalisation
from netgraft.passes.protocol import LiveModel, Stage
from netgraft.plan import Pairing, Plan
from netgraft.trace import trace


def network(build, size, state=None, seed=0):
    model = Net(build, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    if state is not None:
        module.load_state_dict(state)
    return LiveModel(model, trace(model), module.eval().requires_grad_(False), Normalisation((0.5,), (0.5,)))


def stage(source, target, moves=(), pairs=(), seed=0):
    plan = Plan("source", "target", "", "", "test", {}, Pairing(tuple(pairs)), tuple(moves), ())
    return Stage(plan, source, target, ImageSource(), seed)
