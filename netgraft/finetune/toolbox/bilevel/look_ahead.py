"""Where some steps on the matching loss and one on the task's lead a network, and how its weights should differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from netgraft.finetune.protocol import Batch, Outputs, Run
from netgraft.finetune.toolbox.adapters import features
from netgraft.finetune.toolbox.bilevel.adjoint import Loss, Sgd, hypergradient
from netgraft.finetune.toolbox.bilevel.matching import distances, matching_loss

Extra = Callable[[Sequence[Tensor]], Tensor]
"""A further loss of the steps, of the adapted features of each pair."""


class LookAheadNetwork:
    """The target and its adapters as functions of their trained parameters."""

    def __init__(self, run: Run, adapters: nn.Module) -> None:
        self.run, self.adapters = run, adapters
        self.sgd = Sgd.of(run.optimizer("target"), run.optimizer("adapters"))
        place = {id(parameter): i for i, parameter in enumerate(self.sgd.parameters)}
        self.names = [
            {name: place[id(p)] for name, p in module.named_parameters() if id(p) in place}
            for module in (run.target_module, adapters)
        ]

    def target(self, parameters: Sequence[Tensor], batch: Batch) -> Outputs:
        """A pass that leaves no trace in BatchNorm's statistics."""
        return self.run.target(batch, params={name: parameters[i] for name, i in self.names[0].items()})

    def adapted(self, parameters: Sequence[Tensor], seen: Outputs) -> list[Tensor]:
        given = {name: parameters[i] for name, i in self.names[1].items()}
        at = features(self.run.target_module, seen)
        with self.run.autocast():
            found: list[Tensor] = functional_call(self.adapters, given, (at,))
        return [one.float() for one in found]


def look_ahead(
    run: Run,
    batch: Batch,
    adapters: nn.Module,
    sources: Sequence[Tensor],  # of each pair, at the target's size
    coefficients: Sequence[Tensor],  # of each pair, [B, C], with a graph to the weights' parameters
    *,
    steps: int,
    matched: Sequence[int] | None = None,  # numbers of the pairs that the coefficients are of; None: all
    extra: Extra | None = None,
) -> Tensor:
    """J after ``steps`` steps on the matching loss and one on J, for an update of the weights alone.

    Its value is J of this process's samples; its gradient by the parameters of ``coefficients`` is the hypergradient
    (L2T-ww). Everything happens on copies, with random numbers of its own: the target, its momentum, its
    BatchNorm statistics and the random numbers of later passes are as if nothing had been.
    """
    network = LookAheadNetwork(run, adapters)
    leaves = [a.detach().requires_grad_() for a in coefficients]
    numbers = range(len(sources)) if matched is None else matched

    def matching(parameters: Sequence[Tensor]) -> Tensor:
        adapted = network.adapted(parameters, network.target(parameters, batch))
        away = distances([adapted[i] for i in numbers], [sources[i] for i in numbers])
        loss = matching_loss(leaves, away)
        return loss if extra is None else loss + extra(adapted)

    def task(parameters: Sequence[Tensor]) -> Tensor:
        return run.task(network.target(parameters, batch), batch)

    inner: list[Loss] = [*[matching] * steps, task]
    with _own_random_numbers(run), sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
        found = hypergradient(inner, task, network.sgd, leaves, run.reduce)
    slope = torch.stack([(a * m).sum() for a, m in zip(coefficients, found.coefficients, strict=True)]).sum()
    return slope - slope.detach() + found.outer


@contextmanager
def _own_random_numbers(run: Run) -> Iterator[None]:
    """Dropout inside does not change dropout later on."""
    devices = [run.device] if run.device.type == "cuda" else []
    seed = int(torch.randint(2**62, (), generator=run.generator("look ahead")))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + run.rank)
        yield
