"""How unusual images are to a source, judged by the statistics in its BatchNorm layers: no labels, no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm


def bn_mismatch(module: nn.Module, images: Tensor, *, batch: int = 64) -> float | None:
    """The mean of ``layer_mismatches`` over the BatchNorm layers; None if there are none.

    0 where the images look to every layer like those it was trained on; smaller is better. Only values of one and the
    same source compare. It ordered generators as the outcome of label-free distillation did (OPERATORS.md part 4).
    """
    layers = layer_mismatches(module, images, batch=batch)
    return sum(layers.values()) / len(layers) if layers else None


@torch.no_grad()
def layer_mismatches(module: nn.Module, images: Tensor, *, batch: int = 64) -> dict[str, float]:
    """For each BatchNorm layer that the forward pass reaches, by name: how far the images' statistics are from its own.

    With mean m and variance v of the layer's input over ``images`` (all batches together, and all positions), and the
    layer's running mean M and variance V, both variances plus the layer's eps: the mean over channels of
    (m - M)^2 / V + (log v - log V)^2.

    ``images`` ``[count, C, H, W]`` are normalised as the source expects, and pass in eval mode, ``batch`` at a time, on
    the module's device. Afterwards the module is as it was. Statistics are added up in float64.
    """
    moments = {name: _Moments() for name, layer in module.named_modules() if _has_statistics(layer)}
    if not moments or not len(images):
        return {}
    parameter = next((tensor for tensor in module.parameters()), images)
    with _eval_mode(module), ExitStack() as hooks:
        for name, moment in moments.items():
            handle = module.get_submodule(name).register_forward_pre_hook(_adding_to(moment))
            hooks.callback(handle.remove)
        for part in images.split(batch):
            module(part.to(parameter.device))
    found = ((name, module.get_submodule(name), moment) for name, moment in moments.items() if moment.count)
    return {name: _distance(layer, moment) for name, layer, moment in found}


class _Moments:
    """Mean and summed squared deviation per channel of values that come in batches (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(
        self,
        values: Tensor,  # [batch, channels, ...]
    ) -> None:
        values = values.detach().double().transpose(0, 1).flatten(1)
        new, mean = values.shape[1], values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        if not self.count:
            self.count, self.mean, self.squares = new, mean, squares
            return
        total, step = self.count + new, mean - self.mean
        self.mean = self.mean + step * (new / total)
        self.squares = self.squares + squares + step.square() * (self.count * new / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.squares / max(self.count - 1, 1)  # unbiased, as running variances are


def _adding_to(moments: _Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        moments.add(inputs[0])

    return hook


def _has_statistics(layer: nn.Module) -> bool:
    """BatchNorm and its relatives (synchronised, frozen, timm's with an activation), by what they hold."""
    statistics = (getattr(layer, "running_mean", None), getattr(layer, "running_var", None))
    return all(isinstance(tensor, Tensor) for tensor in statistics) and not isinstance(layer, _InstanceNorm)


def _distance(layer: Any, moments: _Moments) -> float:
    variance, running = (tensor.double() + layer.eps for tensor in (moments.variance, layer.running_var))
    means = (moments.mean - layer.running_mean.double()).square() / running
    return float((means + (variance.log() - running.log()).square()).mean())


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
