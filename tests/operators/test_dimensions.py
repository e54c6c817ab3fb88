"""Groups, kernel axes, orientation and input channels, each on the layers that it turns into one another."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._manipulate import adapt_input_conv

from netgraft.errors import PlanError
from netgraft.operators.deflate import Deflate
from netgraft.operators.fill import Fill
from netgraft.operators.in_chans import InChans
from netgraft.operators.inflate import Inflate
from netgraft.operators.scale_part import ScalePart
from netgraft.operators.to_dense import ToDense
from netgraft.operators.to_grouped import ToGrouped
from netgraft.operators.transpose import Transpose

laws = settings(deadline=None, derandomize=True, database=None, max_examples=40)
seeds = st.integers(0, 2**16)
few = st.integers(1, 3)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@laws
@given(groups=st.integers(1, 4), rows=few, columns=few, seed=seeds)
def test_dense_does_what_grouped_does(groups, rows, columns, seed):
    x, weight = randn(seed, 2, groups * columns, 5, 5), randn(seed + 1, groups * rows, columns, 3, 3)
    dense = ToDense(groups)(weight)
    assert torch.allclose(F.conv2d(x, dense), F.conv2d(x, weight, groups=groups), rtol=0, atol=1e-12)
    assert torch.equal(ToGrouped(groups)(dense), weight)
    y, back = randn(seed + 2, 2, groups * rows, 4, 4), F.conv_transpose2d  # [in, out/g, *kernel], the same steps
    assert torch.allclose(back(y, dense), back(y, weight, groups=groups), rtol=0, atol=1e-12)


@laws
@given(length=st.integers(1, 5), seed=seeds)
def test_inflated_kernels_see_still_videos_as_images(length, seed):
    image, weight = randn(seed, 2, 3, 6, 6), randn(seed + 1, 4, 3, 3, 3)
    video, wanted = image[:, :, None].expand(-1, -1, length + 2, -1, -1), F.conv2d(image, weight)[:, :, None]
    inflated = Inflate(length)(weight)
    result = F.conv3d(video, inflated)
    assert torch.allclose(result, wanted.expand_as(result), rtol=0, atol=1e-12)
    assert torch.allclose(Deflate()(inflated), weight, rtol=1e-14, atol=0)
    slices = Inflate(length, mode="centre")(weight)
    assert torch.equal(Deflate()(slices), weight)
    moving = randn(seed + 2, 1, 3, 6, 5, 5)
    frames = torch.stack([F.conv2d(frame, weight) for frame in moving.unbind(2)], 2)
    centred = F.conv3d(F.pad(moving, (0, 0, 0, 0, (length - 1) // 2, length // 2)), slices)
    assert torch.allclose(centred, frames, rtol=0, atol=1e-12)


@laws
@given(dim=st.integers(2, 4), seed=seeds)
def test_deflated_kernels_see_what_is_constant_along_the_axis(dim, seed):
    weight, flat = randn(seed, 4, 3, 2, 3, 2), randn(seed + 1, 2, 3, 5, 5)
    result = F.conv3d(flat.unsqueeze(dim).expand(*(flat.shape[:dim]), weight.shape[dim], *flat.shape[dim:]), weight)
    assert torch.allclose(result.squeeze(dim), F.conv2d(flat, Deflate(dim)(weight)), rtol=0, atol=1e-12)


@laws
@given(k=st.integers(1, 4), dilation=st.integers(1, 2), padding=st.integers(0, 2), seed=seeds)
def test_a_flipped_transpose_turns_convolutions_into_transposed_ones(k, dilation, padding, seed):
    padding = min(padding, dilation * (k - 1))
    x, weight = randn(seed, 2, 3, 9, 9), randn(seed + 1, 4, 3, k, k)
    wanted = F.conv2d(x, weight, padding=padding, dilation=dilation)
    turned = Transpose(flip=True)(weight)
    result = F.conv_transpose2d(x, turned, padding=dilation * (k - 1) - padding, dilation=dilation)
    assert torch.allclose(result, wanted, rtol=0, atol=1e-12)
    assert torch.equal(Transpose(flip=True)(turned), weight)


def test_transpose_turns_a_linear_layer_round():
    x, weight = randn(0, 2, 3), randn(1, 3, 5)  # GPT-2's Conv1D: x @ weight
    assert torch.allclose(F.linear(x, Transpose()(weight)), x @ weight)
    assert torch.equal(Transpose(1, -2)(weight), weight.T)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7])
def test_input_channels_agree_with_timm(size):
    weight = randn(0, 4, 3, 5, 5).float()
    assert torch.allclose(InChans(size)(weight), adapt_input_conv(size, weight.clone()), rtol=1e-6, atol=1e-6)


@laws
@given(source=st.integers(1, 5), times=few, seed=seeds)
def test_input_channels_are_exact_for_copied_channels(source, times, seed):
    weight, grey, colours = randn(seed, 4, source, 3, 3), randn(seed + 1, 2, 1, 5, 5), randn(seed + 2, 2, source, 5, 5)
    wanted = F.conv2d(grey.expand(-1, source, -1, -1), weight)
    assert torch.allclose(F.conv2d(grey, InChans(1)(weight)), wanted, rtol=0, atol=1e-12)
    result = F.conv2d(colours.repeat(1, times, 1, 1), InChans(times * source)(weight))
    assert torch.allclose(result, F.conv2d(colours, weight), rtol=0, atol=1e-12)


def test_scale_part_and_fill_by_hand():
    weight = torch.arange(6.0).reshape(2, 3)
    assert ScalePart(1, 1, 2, 0.5)(weight).tolist() == [[0, 0.5, 1], [3, 2, 2.5]]
    assert Fill(0.25)(weight).unique().tolist() == [0.25]
    assert Fill(3)(torch.tensor(0)).item() == 3
    with pytest.raises(PlanError, match="int64"):
        Fill(0.5)(torch.tensor([1, 2]))
