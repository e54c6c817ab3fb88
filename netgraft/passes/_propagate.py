"""Walks a recorded forward pass and says what every BatchNorm layer sees, from weights alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, assert_never

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from netgraft.architecture.kinds import MomentRule
from netgraft.architecture.operations import DROPS_OUT, ELEMENTWISE, PICKS, POOLS
from netgraft.errors import TraceError
from netgraft.models.batch_norm import batch_norms
from netgraft.passes import _gaussian
from netgraft.passes._gaussian import Moments, Stop
from netgraft.passes.protocol import LiveModel
from netgraft.trace.functional import operation_name
from netgraft.trace.replay import Replay


@dataclass
class Propagated:
    """What a walk found."""

    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # norm -> mean, variance of its input, [C]
    lost: dict[str, str] = field(default_factory=dict)  # norm -> why its moments are not known
    stops: dict[str, None] = field(default_factory=dict)  # operations where propagation stopped, and why
    gates: int = 0  # products with a gate


Settle = Callable[[str, Tensor, Tensor], None]
"""Called with a norm's name and the moments of its input before it runs: may change its statistics."""


@torch.no_grad()
def propagate(network: LiveModel, settle: Settle = lambda *_: None) -> Propagated:
    """The moments of the input of every BatchNorm of ``network``, images being taken as standard normal noise.

    A BatchNorm makes N(beta, gamma^2) of what it sees, so it starts anew where its input is not known.
    """
    shape = (2, *network.image_size)
    device = next((tensor.device for tensor in network.module.parameters()), torch.device("cpu"))
    try:
        replay = Replay(network.module, torch.zeros(shape, device=device))
    except TraceError as error:
        return Propagated(lost=dict.fromkeys(batch_norms(network.module), error.what))
    walk = _Propagation(replay, network, settle)
    needed = _needed(replay, walk.norms)
    for node in replay.nodes:
        if node in needed:
            walk.visit(node)
    return walk.seen


def _needed(replay: Replay, norms: Mapping[str, nn.Module]) -> set[fx.Node]:
    """The nodes that some norm depends on, norms included."""
    found = {node for node in replay.nodes if node.op == "call_module" and str(node.target) in norms}
    for node in reversed(replay.nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return found


class _Propagation:
    def __init__(self, replay: Replay, network: LiveModel, settle: Settle) -> None:
        self.replay, self.settle = replay, settle
        self.module = network.module
        self.norms: dict[str, Any] = dict(batch_norms(network.module))
        self.values: dict[fx.Node, Any] = {}  # Moments, a list of them, Stop, or what does not depend on the input
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.seen = Propagated()

    def visit(self, node: fx.Node) -> None:
        given = [self.values[other] for other in node.all_input_nodes]
        stop = next((value for value in given if isinstance(value, Stop)), None)
        try:
            if node.op == "call_module" and str(node.target) in self.norms:
                self.values[node] = self.norm(node, given[0])
            elif stop is not None:
                raise stop
            elif node.op == "placeholder":
                self.values[node] = _gaussian.standard(node.meta["shape"], self.replay.device)
            elif any(isinstance(value, (Moments, list)) for value in given):
                self.values[node] = self.layer(node, given[0]) if node.op == "call_module" else self.operation(node)
            else:
                self.values[node] = self.replay.values[node] = self.replay.evaluate(node)
        except (Stop, TraceError, RuntimeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = error if isinstance(error, Stop) else Stop(str(error).partition("\n")[0])
            if reason is not stop:
                reason = Stop(f"{node.target if node.op == 'call_module' else operation_name(node)}: {reason}")
                self.seen.stops[str(reason)] = None
            self.values[node] = reason

    # -- layers --------------------------------------------------------------------------------------------------

    def norm(self, node: fx.Node, given: Any) -> Moments:
        """N(beta, gamma^2), correlated as before; then the activation that the module has in it, if any."""
        name, shape = str(node.target), node.meta["shape"]
        norm = self.norms[name]
        one = torch.ones_like(norm.running_var, dtype=torch.float64)
        gamma, beta = (one, one * 0) if norm.weight is None else (norm.weight.double(), norm.bias.double())
        if isinstance(given, Moments):
            try:
                mean, cov = given.along(1)
            except Stop as reason:
                given = reason
        if isinstance(given, Moments):
            variance = cov.diagonal().clamp_min(0)
            self.calls.setdefault(name, []).append((mean, variance))
            self.seen.moments[name] = _mixed(self.calls[name])
            self.settle(name, *self.seen.moments[name])
            scale = gamma * variance.clamp_min(1e-30).rsqrt()
        else:
            self.seen.lost[name] = str(given)
            cov, scale = torch.diag(one), gamma
        # A channel of hardly any variance is not blown up to gamma^2.
        scale = scale * (norm.running_var.double() / (norm.running_var.double() + norm.eps)).sqrt()
        result = _gaussian.spread(beta, cov * scale[:, None] * scale, shape, 1)
        for child in norm.children():  # timm's norms with an activation
            result = _gaussian.elementwise(result, child)
        return result

    def layer(self, node: fx.Node, given: Moments) -> Moments:
        name, shape = str(node.target), node.meta["shape"]
        module = self.module.get_submodule(name)
        called = self.replay.graph.by_id[self.replay.ids[node]]
        layer = self.replay.graph.layers[called.layer or ""]
        if called.facts.get("prepared") or called.facts.get("others"):
            raise Stop("a layer that does more than its kind")
        match layer.rules.moments:
            case MomentRule.CONV if isinstance(module, _ConvNd):
                return _gaussian.through_conv(given, module.weight, module.bias, module.groups, shape)
            case MomentRule.LINEAR if isinstance(module, nn.Linear):
                return _gaussian.through_linear(given, module.weight, module.bias, shape)
            case MomentRule.ELEMENTWISE:
                mean, cov = given.along(1)
                moments = _gaussian.spread(mean, cov, shape, 1)
                return _gaussian.elementwise(moments, lambda x: module(x.float()).double())
            case MomentRule.CONV | MomentRule.LINEAR | MomentRule.UNKNOWN:  # the first two: of somebody's own class
                raise Stop(f"no rule for a {layer.kind}")
            case never:
                assert_never(never)

    # -- operations ----------------------------------------------------------------------------------------------

    def operation(self, node: fx.Node) -> Any:
        name, args, shape = operation_name(node), self._read(node.args), node.meta.get("shape", ())
        first = args[0]
        call: Any = node.target
        rest = partial(_call, call, args[1:], self._read(node.kwargs))
        if node.target is operator.getitem:
            return first[args[1]]
        if name == "cat" and all(isinstance(part, Moments) for part in first):
            return _gaussian.concatenate(first, args[1] if len(args) > 1 else 0)
        if name in ("add", "sub", "mul", "div") and len(args) > 1:
            alpha: Any = node.kwargs.get("alpha", 1)
            return self._arithmetic(name, first, args[1], float(alpha))
        if not isinstance(first, Moments) or any(isinstance(arg, Moments) for arg in args[1:]):
            raise Stop("no rule for it")
        if name in DROPS_OUT or name == "_to_copy":
            return first if name != "native_dropout" else [first, None]
        if name in PICKS:
            return _gaussian.moved(first, rest)
        if name in ELEMENTWISE:
            return _gaussian.elementwise(first, rest)
        if name == "mean" and len(args) > 1:
            dims = [args[1]] if isinstance(args[1], int) else args[1]
            return self._mean(first, [d % len(first.shape) for d in dims], shape)
        if name in POOLS:
            return self._pool(name, first, args, shape)
        if name in ("convolution", "conv2d"):
            groups, transposed = (
                (args[8], args[6]) if name == "convolution" else (args[6] if len(args) > 6 else 1, False)
            )
            if not transposed and isinstance(args[1], Tensor):
                return _gaussian.through_conv(first, args[1], args[2] if len(args) > 2 else None, groups, shape)
        if name == "linear" and isinstance(args[1], Tensor):
            return _gaussian.through_linear(first, args[1], args[2] if len(args) > 2 else None, shape)
        raise Stop("no rule for it")

    def _arithmetic(self, name: str, one: Any, other: Any, alpha: float) -> Moments:
        if not isinstance(one, Moments) and name in ("add", "mul"):
            one, other = other, one
        if not isinstance(one, Moments):
            raise Stop("no rule for it")
        sign = alpha if name == "add" else -alpha
        if not isinstance(other, Moments):
            one, number = _per_channel(one, other)
            if name in ("add", "sub"):
                return _gaussian.affine(one, 1.0, sign * number)
            return _gaussian.affine(one, number if name == "mul" else 1 / number)
        if name in ("add", "sub"):
            return _gaussian.add(one, other, sign)
        if name == "div":
            raise Stop("a quotient of two feature maps")
        product = _gaussian.multiply(one, other)
        self.seen.gates += 1
        return product

    def _mean(self, given: Moments, dims: list[int], shape: Any) -> Moments:
        axis = given.axis
        if axis in dims or 0 in dims:
            raise Stop("a mean over channels")
        axis -= 0 if len(shape) == len(given.shape) else sum(d < axis for d in dims)
        return _gaussian.average(given, prod(given.shape[d] for d in dims), shape, axis)

    def _pool(self, name: str, given: Moments, args: Any, shape: Any) -> Any:
        if "adaptive" in name:
            return _gaussian.average(given, max(prod(given.shape[2:]) // prod(shape[2:]), 1), shape, 1)
        size = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        count = prod(size) if len(size) > 1 else size[0] ** 2
        if name == "avg_pool2d":
            return _gaussian.average(given, count, shape, 1)
        largest = _gaussian.maximum(given, count, shape)
        return [largest, None] if name.endswith("indices") else largest

    def _read(self, value: Any) -> Any:
        return fx.node.map_arg(value, self.values.__getitem__)


def _call(function: Any, args: Any, kwargs: Any, tensor: Tensor) -> Any:
    return function(tensor.clone() if tensor.is_floating_point() else tensor, *args, **kwargs)


def _per_channel(given: Moments, constant: Any) -> tuple[Moments, Tensor | float]:
    """A number, or a constant that says one number per channel as [C], and the moments in the same order."""
    if not isinstance(constant, Tensor) or constant.numel() == 1:
        return given, float(constant)
    axis = given.axis
    end = axis - given.place.dim()
    if constant.dim() < -end or constant.shape[end] != constant.numel() or constant.numel() != given.shape[axis]:
        raise Stop("a constant that differs from place to place")
    return _gaussian.spread(*given.along(axis), given.shape, axis), constant.double().flatten()


def _mixed(calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all calls of a layer together."""
    means, variances = (torch.stack(parts) for parts in zip(*calls, strict=True))
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)
