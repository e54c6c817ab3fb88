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

from netgraft.trace.uniform import Fills

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

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills = Fills()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False keeps PyTorch from importing its compiler, which takes longer than all of tracing."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(func, args, kwargs or {})
        self.fills.note(func, args, result)
        return result


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
        "convolution": _convolution,
        "mean.dim": _reduction,
        "sum.dim_IntList": _reduction,
        "linalg_vector_norm": lambda x, _order=2, dims=None, keepdim=False, **kw: _reduction(x, dims, keepdim, **kw),
        "avg_pool2d": _avg_pool,
        "max_pool2d_with_indices": _max_pool,
        "_adaptive_avg_pool2d": _resize,
        "upsample_nearest2d": _resize,
        "upsample_bilinear2d": _resize,
        "upsample_bicubic2d": _resize,
        "_upsample_bilinear2d_aa": _resize,
        "_upsample_bicubic2d_aa": _resize,
        "_unsafe_view": _unsafe_view,
        "empty.memory_format": _new,
        "zeros": _new,
        "ones": _new,
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


def _reduction(x: Any, dims: Any, keepdim: bool = False, **kwargs: Any) -> Any:
    if not _plain(x) or not dims or kwargs or any(not -x.dim() <= d < x.dim() for d in dims):
        return NotImplemented
    gone = {d % x.dim() for d in dims}
    return _empty([1 if i in gone else n for i, n in enumerate(x.shape) if keepdim or i not in gone], x)


def _convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if not (_plain(x) and _plain(weight) and x.dtype == weight.dtype and x.dim() == weight.dim() >= 3):
        return NotImplemented
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if x.shape[1] != (weight.shape[0] if transposed else weight.shape[1] * groups) or not _vectors(channels, bias):
        return NotImplemented
    n = x.dim() - 2
    if any(len(given) != n for given in (stride, padding, dilation, output_padding)) or channels % groups:
        return NotImplemented
    shape = [x.shape[0], channels]
    for size, kernel, s, p, d, extra in zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True
    ):
        span = d * (kernel - 1) + 1
        shape.append((size - 1) * s - 2 * p + span + extra if transposed else (size + 2 * p - span) // s + 1)
    return _in_format(shape, x) if min(shape) >= 1 else NotImplemented


def _avg_pool(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    *_: Any,
) -> Any:
    return _pooled(x, kernel, stride, padding, (1,), ceil)


def _max_pool(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Any:
    values = _pooled(x, kernel, stride, padding, dilation, ceil)
    if values is NotImplemented:
        return NotImplemented
    return values, torch.empty_strided(values.shape, values.stride(), dtype=torch.int64, device="meta")


def _pooled(
    x: Any, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil: bool
) -> Any:
    if not _plain(x) or x.dim() != 4:
        return NotImplemented
    shape = list(x.shape[:2])
    for i, size in enumerate(x.shape[2:]):
        k, s, p, d = (given[i % len(given)] for given in (kernel, stride or kernel, padding, dilation))
        if p * 2 > k or s < 1:
            return NotImplemented
        length = (size + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil else 0)) // s + 1
        shape.append(length - 1 if ceil and (length - 1) * s >= size + p else length)
    return _in_format(shape, x) if min(shape) >= 1 else NotImplemented


def _resize(x: Any, size: Any, *_: Any) -> Any:
    if not _plain(x) or x.dim() != 4 or size is None or len(size) != 2 or min(*size, *x.shape) < 1:
        return NotImplemented
    return _in_format([*x.shape[:2], *size], x)


def _unsafe_view(x: Any, shape: Sequence[int]) -> Any:
    numel = 1
    for size in shape:
        numel *= size
    return _empty(shape, x) if _plain(x) and numel == x.numel() and min(shape, default=1) >= 0 else NotImplemented


def _new(size: Sequence[int], *, device: Any = None, dtype: Any = None, **others: Any) -> Any:
    plain = all(value is None or value is False or value is torch.strided for value in others.values())
    if device is None or device.type != "meta" or not plain or min(size, default=0) < 0:
        return NotImplemented
    return torch.empty_strided(tuple(size), _strides(size), dtype=dtype or torch.get_default_dtype(), device="meta")


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


def _in_format(shape: Sequence[int], like: Tensor) -> Any:
    """A feature map that lies in memory as the one it was computed from."""
    if like.is_contiguous():
        return _empty(shape, like)
    if len(shape) == 4 and like.is_contiguous(memory_format=torch.channels_last):
        _, c, h, w = shape
        return torch.empty_strided(tuple(shape), (c * h * w, 1, w * c, c), dtype=like.dtype, device="meta")
    return NotImplemented


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty_strided(tuple(shape), _strides(shape), dtype=like.dtype, device="meta")


def _strides(shape: Sequence[int]) -> list[int]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]
