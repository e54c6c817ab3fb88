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


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("dims", [[2, 3], [-1], [0], [1, -1], []])
def test_reductions(x: Tensor, dims: list[int]) -> None:
    for keepdim in (False, True):
        check(aten.mean.dim, x, dims, keepdim, strides=x.is_contiguous())
        check(aten.sum.dim_IntList, x, dims, keepdim, strides=x.is_contiguous())


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.booleans(), st.integers(6, 9))
def test_pools(kernel: int, stride: int, padding: int, dilation: int, ceil: bool, side: int) -> None:
    for x in (torch.rand(2, 3, side, side + 1), LAST):
        flat = x.is_contiguous()
        if (x.shape[-1] - 1) // dilation + 1 >= kernel:
            check(
                aten.max_pool2d_with_indices.default, x, [kernel], [stride], [padding], [dilation], ceil, strides=flat
            )
        check(aten.avg_pool2d.default, x, [kernel, 2], [stride], [padding], ceil, strides=flat)
        check(aten.avg_pool2d.default, x, [kernel], strides=flat)


@pytest.mark.parametrize("x", [X, LAST], ids=["plain", "channels last"])
def test_sizes_that_are_given(x: Tensor) -> None:
    check(aten._adaptive_avg_pool2d.default, x, [3, 2])
    check(aten.upsample_nearest2d.default, x, [7, 8])
    check(aten.upsample_bilinear2d.default, x, [7, 8], False)
    check(aten.upsample_bicubic2d.default, x, [7, 8], True)
    check(aten.linalg_vector_norm.default, x, 2, [1, 2], True, strides=False)
    check(aten._unsafe_view.default, X, [2, 6, 20])
    for make in (torch.empty, torch.zeros, torch.ones):
        with shortcuts.Shortcuts():
            made = make(2, 3, device="meta"), make((2, 3), device="meta", dtype=torch.int64)
        assert [(t.shape, t.dtype) for t in made] == [((2, 3), torch.float32), ((2, 3), torch.int64)]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_convolutions(data: st.DataObject, rank: int, transposed: bool) -> None:
    def draw(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    groups, inp, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    x = torch.rand(2, inp * groups, *draw(7, 9))
    if rank == 2 and data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    kernel, stride = draw(1, 3), draw(1, 3)
    weight = torch.rand(*((inp * groups, out) if transposed else (out * groups, inp)), *kernel)
    bias = torch.rand(out * groups) if data.draw(st.booleans()) else None
    extra = [data.draw(st.integers(0, s - 1)) if transposed else 0 for s in stride]
    args = (x, weight, bias, stride, draw(0, 2), draw(1, 2), transposed, extra, groups)
    check(aten.convolution.default, *args, strides=x.is_contiguous())


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


@pytest.mark.parametrize(("channels", "side"), [(3, 8), (4, 2)])
def test_mistakes_in_convolutions_are_left_to_pytorch(channels: int, side: int) -> None:
    x, weight = torch.empty(1, channels, side, side, device="meta"), torch.empty(5, 4, 3, 3, device="meta")
    args = [x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1]
    with pytest.raises(RuntimeError):
        shortcuts.call(aten.convolution.default, args, {})


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
