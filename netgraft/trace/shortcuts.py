"""Results of operations on the meta device, known without asking PyTorch.

PyTorch infers the shapes of many operations in Python, a thousand times slower than it takes to see that ReLU leaves
the shape as it is. A shortcut only answers plain cases; everything else, mistakes included, goes to PyTorch. It gives
the strides that a CPU gives, because later views depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

UNARY = (
    *("relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "mish"),
    *("softplus", "exp", "log", "neg", "abs", "sqrt", "rsqrt", "square", "erf", "sin", "cos", "reciprocal", "roll"),
    *("clamp", "clamp_min", "clamp_max", "pow.Tensor_Scalar", "_softmax", "_safe_softmax", "celu", "selu", "relu6"),
    *("add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar", "rsub.Scalar", "logit", "log_sigmoid", "round", "floor"),
)
BINARY = ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor")
IN_PLACE = (
    *("relu_", "gelu_", "silu_", "sigmoid_", "tanh_", "hardswish_", "hardsigmoid_", "hardtanh_", "leaky_relu_", "elu_"),
    *("mish_", "exp_", "log_", "neg_", "abs_", "sqrt_", "rsqrt_", "erfinv_", "clamp_", "clamp_min_", "clamp_max_"),
    *("normal_", "uniform_", "random_", "exponential_", "fill_.Scalar", "zero_"),
    *("add_.Scalar", "sub_.Scalar", "mul_.Scalar", "div_.Scalar"),
)
BINARY_IN_PLACE = ("add_.Tensor", "sub_.Tensor", "mul_.Tensor", "div_.Tensor", "copy_")

Shortcut = Callable[..., Any]


class Shortcuts(TorchDispatchMode):
    """Takes shortcuts in everything that runs inside, such as the initialisation of weights that do not exist."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)``, by a shortcut if there is one."""
    shortcut = _shortcuts().get(func)
    if shortcut is not None:
        result = shortcut(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return func(*args, **kwargs)


@cache
def _shortcuts() -> dict[Any, Shortcut]:
    aten = torch.ops.aten
    special: dict[str, Shortcut] = {
        "native_batch_norm": _batch_norm,
        "native_layer_norm": _layer_norm,
        "native_group_norm": _group_norm,
        "addmm": _addmm,
        "mm": _mm,
        "bmm": _bmm,
        "cat": _cat,
        "clone": _clone,
    }
    table = {
        **dict.fromkeys(UNARY, _unary),
        **dict.fromkeys(BINARY, _binary),
        **dict.fromkeys(IN_PLACE, _in_place),
        **dict.fromkeys(BINARY_IN_PLACE, _binary_in_place),
        **special,
    }
    found = {}
    for name, shortcut in table.items():
        packet = getattr(aten, name.partition(".")[0], None)
        overload = getattr(packet, name.partition(".")[2] or "default", None)
        if overload is not None:
            found[overload] = shortcut
    return found


# ------------------------------------------------------------------------------------------------------- the shortcuts


def _unary(x: Any, *args: Any, **_: Any) -> Any:
    if not _plain(x) or any(isinstance(arg, Tensor) for arg in args) or (args and args[-1] is True):
        return NotImplemented
    return _like(x)


def _binary(x: Any, y: Any, **kwargs: Any) -> Any:
    if not _plain(x) or "rounding_mode" in kwargs:
        return NotImplemented
    if type(y) in (int, float):
        return _like(x)
    if not _plain(y) or x.dtype != y.dtype:
        return NotImplemented
    if x.shape == y.shape:
        return _like(x) if x.stride() == y.stride() else NotImplemented
    big, small = (x, y) if (x.dim(), x.numel()) >= (y.dim(), y.numel()) else (y, x)
    if not big.is_contiguous() or any(
        a not in (1, b) for a, b in zip(small.shape[::-1], big.shape[::-1], strict=False)
    ):
        return NotImplemented
    return _like(big)


def _in_place(x: Any, *_: Any, **__: Any) -> Any:
    return x if x.device.type == "meta" and x.is_floating_point() else NotImplemented


def _binary_in_place(x: Any, y: Any, *_: Any, **__: Any) -> Any:
    if x.device.type != "meta" or not x.is_floating_point():
        return NotImplemented
    fits = type(y) in (int, float) or (isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point())
    return x if fits else NotImplemented


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any) -> Any:
    if not _plain(x) or x.dim() < 2 or not _vectors(x.shape[1], weight, bias, mean, var):
        return NotImplemented
    if not (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        return NotImplemented
    count = x.shape[1] if training else 0
    return _like(x), _empty((count,), x), _empty((count,), x)


def _layer_norm(x: Any, shape: Sequence[int], weight: Any, bias: Any, _eps: float) -> Any:
    own = tuple(shape)
    if (
        not _plain(x)
        or tuple(x.shape[-len(own) :]) != own
        or any(t is not None and t.shape != own for t in (weight, bias))
    ):
        return NotImplemented
    rest = (*x.shape[: -len(own)], *(1 for _ in own))
    return _empty(x.shape, x), _empty(rest, x), _empty(rest, x)


def _group_norm(x: Any, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, _eps: float) -> Any:
    if not _plain(x) or not _vectors(c, weight, bias) or x.numel() != n * c * hxw or c % group or not x.is_contiguous():
        return NotImplemented
    return _like(x), _empty((n, group), x), _empty((n, group), x)


def _addmm(bias: Any, x: Any, y: Any, **kwargs: Any) -> Any:
    if kwargs or not _plain(bias) or tuple(bias.shape) not in ((y.shape[1],), (x.shape[0], y.shape[1])):
        return NotImplemented
    return _mm(x, y) if bias.dtype == x.dtype else NotImplemented


def _mm(x: Any, y: Any) -> Any:
    if not (_plain(x) and _plain(y) and x.dtype == y.dtype and x.dim() == y.dim() == 2 and x.shape[1] == y.shape[0]):
        return NotImplemented
    return _empty((x.shape[0], y.shape[1]), x)


def _bmm(x: Any, y: Any) -> Any:
    if not (_plain(x) and _plain(y) and x.dtype == y.dtype and x.dim() == y.dim() == 3):
        return NotImplemented
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[1]:
        return NotImplemented
    return _empty((*x.shape[:2], y.shape[2]), x)


def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    first = tensors[0]
    if not all(_plain(t) and t.is_contiguous() and t.dtype == first.dtype and t.dim() == first.dim() for t in tensors):
        return NotImplemented
    shape = list(first.shape)
    if not -len(shape) <= dim < len(shape):
        return NotImplemented
    shape[dim] = sum(t.shape[dim] for t in tensors)
    for t in tensors:
        if any(a != b for i, (a, b) in enumerate(zip(t.shape, shape, strict=True)) if i != dim % len(shape)):
            return NotImplemented
    return _empty(shape, first)


def _clone(x: Any, *, memory_format: Any = None) -> Any:
    if not _plain(x):
        return NotImplemented
    if memory_format is torch.contiguous_format:
        return _empty(x.shape, x)
    return _like(x) if memory_format in (None, torch.preserve_format) else NotImplemented


# ------------------------------------------------------------------------------------------------------------- helpers


def _plain(x: Any) -> bool:
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "meta" and x.is_floating_point()


def _vectors(length: int, *tensors: Any) -> bool:
    return all(t is None or tuple(t.shape) == (length,) for t in tensors)


def _like(x: Tensor) -> Any:
    """A tensor with the shape and strides of ``x``, if ``x`` fills its memory without gaps."""
    if not x.is_contiguous():
        order = sorted(zip(x.stride(), x.shape, strict=True), reverse=True)
        steps = [(stride, size) for stride, size in order if size > 1]
        dense = all(a == b * size for (a, _), (b, size) in pairwise(steps)) and (not steps or steps[-1][0] == 1)
        if not dense:
            return NotImplemented
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return torch.empty_strided(tuple(shape), strides[::-1], dtype=like.dtype, device="meta")
