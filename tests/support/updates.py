"""A method's first update, and what the networks put out for its batch."""

import torch
from support.runs import training, with_source

from netgraft.finetune.engine.loader import to_device

EXACT = {"rel": 1e-6, "abs": 1e-9}
STILL = {"bn": "eval", "target_arg": {"drop": 0.0}}  # the same features in every pass


def moved(running, size=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in running.run.target_module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def first_update(running, batch=None):
    """What the method yields for a batch, the first of the training if none is given."""
    batch = batch or to_device(next(running.prepared.loader.epoch(0)), running.run.device)
    running.set_modes()
    running.run.begin(batch)
    return next(running.prepared.method.epoch(running.run, iter([batch]), running.parts))


def outputs(running):
    """What the target and the source put out for that batch."""
    batch = next(running.prepared.loader.epoch(0))
    with torch.no_grad():
        return running.run.target(batch), running.run.source(batch)


def begin(folder, method, **more):
    """A training, its first update, and the outputs."""
    running = training(with_source(folder, method=method, **(STILL | more)))
    return running, first_update(running), *outputs(running)


def number(tensor):
    return float(tensor.detach())


def array(tensor):
    return tensor.detach().double().numpy()
