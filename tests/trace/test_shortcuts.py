"""Shortcuts on the meta device give what PyTorch gives on the CPU: shapes, strides, types; and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netgraft.trace import shortcuts
from netgraft.trace.structure import map_tensors, tensors_in

aten = torch.ops.aten


def check(func: Any, *args: Any, strides: bool = True, **kwargs: Any) -> None:
    """``func`` on meta copies of the arguments gives the shapes, types and strides of ``func`` on the arguments."""
    on_meta = map_tensors(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), args)
    real = tensors_in(func(*args, **kwargs))
    quick = tensors_in(shortcuts.call(func, on_meta, kwargs))
    assert [(tuple(t.shape), t.dtype) for t in quick] == [(tuple(t.shape), t.dtype) for t in real]
    assert all(t.device.type == "meta" for t in quick)
    if strides:
        assert [_steps(t) for t in quick] == [_steps(t) for t in real]


def _steps(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel()]


X = torch.rand(2, 6, 5, 4)
LAST = X.contiguous(memory_format=torch.channels_last)
TURNED = X.permute(0, 2, 3, 1)
GAPS = torch.rand(2, 6, 5, 8)[..., ::2]
INPUTS = {
    "plain": X,
    "channels last": LAST,
    "permuted": TURNED,
    "with gaps": GAPS,
    "expanded": X[:, :1].expand(2, 3, 5, 4),
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", shortcuts.UNARY)
def test_unary(name: str, x: Tensor) -> None:
    packet, _, overload = name.partition(".")
    extra = {
        "clamp": (0.1,),
        "clamp_min": (0.1,),
        "clamp_max": (0.1,),
        "pow": (2,),
        "_softmax": (1, False),
        "_safe_softmax": (1,),
        "roll": ([1], [1]),
    }.get(packet, (2.0,) if overload == "Scalar" else ())
    func = getattr(getattr(aten, packet), overload or "default", None)
    if func is None or packet == "log_sigmoid":
        pytest.skip("this PyTorch has no such overload")
    check(func, x, *extra, strides=packet not in ("roll", "_softmax", "_safe_softmax"))


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", shortcuts.BINARY)
def test_binary(name: str, x: Tensor) -> None:
    func = getattr(aten, name.partition(".")[0]).Tensor
    others = [
        x,
        x.clone(),
        x + 1,
        torch.rand(x.shape),
        torch.rand(x.shape[1:]),
        torch.rand(x.shape[-1]),
        torch.rand(()),
    ]
    for other in [
        *others,
        2,
        2.5,
        torch.arange(x.shape[-1]),
        torch.rand(1, x.shape[1], 1, 1),
        torch.rand(7, 1, 1, 1, 1),
    ]:
        check(func, x, other)
        if isinstance(other, Tensor):
            check(func, other, x)


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_norms(x: Tensor) -> None:
    c, n = x.shape[1], x.shape[-1]
    v = torch.rand(c)
    if x is X or x is LAST:
        check(aten.native_batch_norm.default, x, v, v, v, v, False, 0.1, 1e-5)
    check(aten.native_layer_norm.default, x, [n], torch.rand(n), None, 1e-5)
    check(aten.native_layer_norm.default, x, list(x.shape[2:]), None, None, 1e-5)
    check(aten.native_group_norm.default, x.contiguous(), v, v, x.shape[0], c, x[0, 0].numel(), 1, 1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(-3, 2), st.integers(1, 3))
def test_products_and_cat(sizes: list[int], dim: int, count: int) -> None:
    b, n, m = sizes
    check(aten.mm.default, torch.rand(b, n), torch.rand(m, n).t())
    check(aten.bmm.default, torch.rand(b, n, m), torch.rand(b, m, n))
    check(aten.addmm.default, torch.rand(m), torch.rand(b, n), torch.rand(n, m))
    check(aten.cat.default, [torch.rand(b, n, m)] * count, dim)
    check(aten.clone.default, torch.rand(b, n, m).transpose(0, 2))
    check(aten.clone.default, torch.rand(b, n, m).transpose(0, 2), memory_format=torch.contiguous_format)


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mm.default, ((2, 3), (4, 5))),
        (aten.bmm.default, ((2, 3, 4), (2, 5, 6))),
        (aten.addmm.default, ((9,), (2, 3), (3, 5))),
        (aten.add.Tensor, ((2, 3), (2, 4))),
        (aten.add_.Tensor, ((2, 3), (2, 4))),
    ],
)
def test_mistakes_are_left_to_pytorch(func: Any, args: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(RuntimeError):
        shortcuts.call(func, [torch.empty(shape, device="meta") for shape in args], {})


def test_in_place_operations_return_their_argument() -> None:
    x = torch.empty(2, 3, device="meta")
    assert shortcuts.call(aten.normal_.default, [x], {}) is x
    assert shortcuts.call(aten.clamp_.default, [x, 0, 1], {}) is x
    assert shortcuts.call(aten.mul_.Tensor, [x, x], {}) is x


def test_real_tensors_are_computed() -> None:
    assert torch.equal(shortcuts.call(aten.relu.default, [torch.tensor([-1.0, 2.0])], {}), torch.tensor([0.0, 2.0]))
    x = torch.zeros(2)
    shortcuts.call(aten.fill_.Scalar, [x, 3], {})
    assert x.tolist() == [3, 3]
