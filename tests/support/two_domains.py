"""The first batch of two domains: its run, what the network gives for it, and what a step with it costs."""

from support.runs import training, with_source
from torch.utils.flop_counter import FlopCounterMode

from netgraft.finetune.toolbox import domains
from netgraft.finetune.toolbox.domains import DomainAdaptation


def fresh(folder, **more):
    """A run in train mode, and its first batch."""
    running = training(with_source(folder, **({"method": "ddc", "target_arg": {"drop": 0.0}} | more)))
    running.run.target_module.train()
    batch = next(running.prepared.loader.epoch(0))
    running.run.begin(batch)
    return running, batch


def sides(folder, set_=None, layers=(domains.FEATURES, domains.LOGITS), **more):
    """What the first batch of a run gives, the batch, and the run."""
    running, batch = fresh(folder, **more)
    return DomainAdaptation(**(set_ or {})).sides(running.run, batch, layers), batch, running.run


def flops(folder, method, set_=None):
    """Of all updates with one batch of 16 images of the target."""
    running, batch = fresh(folder, method=method, set=set_ or {}, unlabelled=None)
    with FlopCounterMode(display=False) as counter:
        for update in running.prepared.method.epoch(running.run, [batch], running.parts):
            running.perform(update, 1.0)
    return counter.get_total_flops()
