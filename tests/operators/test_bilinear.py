"""HMT's filter interpolation, and with the cyclic stack HMT's whole transform, against explicit index arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.errors import PlanError
from netgraft.operators.apply import apply_steps
from netgraft.operators.bilinear import Bilinear
from netgraft.plan import Step

kernels = st.integers(1, 3).flatmap(
    lambda axes: st.tuples(st.tuples(*[st.integers(1, 9)] * axes), st.tuples(*[st.integers(1, 9)] * axes))
)
leads = st.lists(st.integers(1, 4), max_size=2).map(tuple)
seeds = st.integers(0, 2**16)


def taps(position, source, target):
    """(index, share) of the two source taps that one target position mixes."""
    x = max((position + 0.5) * source / target - 0.5, 0.0)  # half-pixel centres; before the first centre: the edge
    low = min(math.floor(x), source - 1)
    return (low, 1 - (x - low)), (min(low + 1, source - 1), x - low)


def interpolated(weight, size):
    """Every output element as the weighted sum of its 2, 4 or 8 corners, in float64."""
    axes = len(size)
    lead, kernel = weight.shape[:-axes], weight.shape[-axes:]
    out = np.zeros((*lead, *size))
    for position in itertools.product(*map(range, size)):
        for corner in itertools.product(*(taps(p, n, m) for p, n, m in zip(position, kernel, size, strict=True))):
            share = math.prod(share for _, share in corner)
            out[(..., *position)] += share * weight[(..., *(index for index, _ in corner))]
    return out


def randn(seed, shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(lead=leads, kernel=kernels, seed=seeds)
def test_agrees_with_index_arithmetic(lead, kernel, seed):
    source, target = kernel
    weight = randn(seed, (*lead, *source))
    wanted = interpolated(weight.numpy(), target)
    assert np.allclose(Bilinear(target)(weight).numpy(), wanted, rtol=0, atol=1e-12)
    assert np.allclose(Bilinear(target)(weight.float()).numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str)
@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(kernel=kernels, seed=seeds)
def test_small_types_are_computed_in_float32_and_rounded_once(kernel, seed, dtype):
    source, target = kernel
    weight = randn(seed, (2, *source), dtype)
    result = Bilinear(target)(weight)
    assert result.dtype == dtype
    wanted = weight.float() if source == target else Bilinear(target)(weight.float())
    assert torch.equal(result.float(), wanted.to(dtype).float())


def test_by_hand():
    row = torch.tensor([0.0, 4.0])
    assert Bilinear((4,))(row).tolist() == [0.0, 1.0, 3.0, 4.0]
    assert Bilinear((1,))(row).tolist() == [2.0]
    assert Bilinear((1, 1))(torch.arange(9.0).reshape(3, 3)).tolist() == [[4.0]]  # the centre tap
    assert Bilinear((5, 5))(torch.full((1, 1), 7.0)).unique().tolist() == [7.0]


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(kernel=kernels)
def test_a_constant_kernel_stays_the_same_constant(kernel):
    source, target = kernel
    assert torch.equal(Bilinear(target)(torch.full((2, *source), 0.1)), torch.full((2, *target), 0.1))


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(lead=leads, kernel=kernels, seed=seeds)
def test_agrees_with_pytorch(lead, kernel, seed):
    source, target = kernel
    weight = randn(seed, (*lead, *source), torch.float32)
    mode = ("linear", "bilinear", "trilinear")[len(source) - 1]
    batch = weight.reshape(1, -1, *source)
    wanted = torch.nn.functional.interpolate(batch, target, mode=mode, align_corners=False)
    assert torch.allclose(Bilinear(target)(weight), wanted.reshape(*lead, *target), rtol=0, atol=1e-5)


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(source=st.tuples(*[st.integers(1, 7)] * 4), target=st.tuples(*[st.integers(1, 7)] * 4), seed=seeds)
def test_the_whole_transform_on_convolution_kernels(source, target, seed):
    """HMT 2.3.2: [n_s, c_s, h_s, w_s] -> interpolate -> cyclic stack -> [n_t, c_t, h_t, w_t]."""
    weight = randn(seed, source)
    n, c, h, w = target
    steps = [
        Step("bilinear", {"size": [h, w]}),
        Step("cyclic", {"dim": 0, "size": n}),
        Step("cyclic", {"dim": 1, "size": c}),
    ]
    result = apply_steps(weight, steps)
    resized = interpolated(weight.numpy(), (h, w))
    assert tuple(result.shape) == target
    for i, j in itertools.product(range(n), range(c)):
        wanted = resized[i % source[0], j % source[1]]
        assert np.allclose(result[i, j].numpy(), wanted, rtol=0, atol=1e-12)
    other_order = apply_steps(weight, [*steps[1:], steps[0]])
    assert torch.allclose(result, other_order, rtol=0, atol=1e-12)


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(source=st.tuples(*[st.integers(1, 5)] * 4), target=st.tuples(*[st.integers(1, 5)] * 4), seed=seeds)
def test_the_whole_transform_on_a_flattened_linear_layer(source, target, seed):
    """A linear layer [n, C*H*W] behind a flattened feature map is a convolution kernel [n, C, H, W] laid flat."""
    n, c, h, w = target
    weight = randn(seed, (source[0], math.prod(source[1:])))
    steps = [
        Step("unflatten", {"dim": 1, "shape": list(source[1:])}),
        Step("bilinear", {"size": [h, w]}),
        Step("cyclic", {"dim": 0, "size": n}),
        Step("cyclic", {"dim": 1, "size": c}),
        Step("flatten", {"dim": 1, "ndim": 3}),
    ]
    result = apply_steps(weight, steps)
    resized = interpolated(weight.numpy().reshape(source), (h, w))
    wanted = resized[np.ix_(np.arange(n) % source[0], np.arange(c) % source[1])]
    assert tuple(result.shape) == (n, c * h * w)
    assert np.allclose(result.numpy(), wanted.reshape(n, -1), rtol=0, atol=1e-12)


def test_what_cannot_be_interpolated():
    with pytest.raises(PlanError, match="axes"):
        Bilinear((3, 3))(torch.ones(3))
    with pytest.raises(PlanError, match="empty"):
        Bilinear((3, 3))(torch.ones(2, 0, 3))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(PlanError, match=str(dtype)):
            Bilinear((3, 3))(torch.ones(2, 2, dtype=dtype))
    assert Bilinear((3, 3))(torch.ones(0, 2, 2, dtype=torch.float16)).shape == (0, 3, 3)
