"""Kernel operators on real convolutions: what stays exact, what keeps the sum or the energy, and patch embeddings."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.patch_embed import resample_patch_embed

from netgraft.errors import PlanError
from netgraft.operators._taps import cubic, dual, linear
from netgraft.operators.bicubic import Bicubic
from netgraft.operators.bilinear import Bilinear
from netgraft.operators.bilinear_gain import BilinearGain
from netgraft.operators.centre import Centre
from netgraft.operators.pi_resize import PiResize
from netgraft.operators.tap_sum import TapSum

laws = settings(deadline=None, derandomize=True, database=None, max_examples=60)
seeds = st.integers(0, 2**16)
sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))
wide = st.tuples(st.integers(1, 8), st.integers(2, 8))  # PyTorch's antialiased resize fails on images one pixel wide
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def randn(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("antialias", [False, True])
@laws
@given(source=wide, target=wide, seed=seeds)
def test_bicubic_agrees_with_pytorch(source, target, seed, antialias):
    weight = randn(seed, (3, 2, *source))
    wanted = F.interpolate(weight, target, mode="bicubic", align_corners=False, antialias=antialias)
    assert torch.allclose(Bicubic(target, antialias)(weight), wanted, rtol=0, atol=1e-6)


@laws
@given(axes=st.integers(1, 3), k=st.integers(1, 4), more=st.integers(0, 2), dilation=st.integers(1, 2), seed=seeds)
def test_zero_padding_is_exact(axes, k, more, dilation, seed):
    """OPERATORS D4 (i): with padding enlarged by dilation * (k_t - k_s) / 2, for every parity and dilation."""
    size, x = (k + 2 * more,) * axes, randn(seed, (1, 4, *(9,) * axes))
    weight = randn(seed + 1, (6, 2, *(k,) * axes))
    grown = Centre(size)(weight)
    here = CONV[axes](x, weight, padding=dilation * 2, dilation=dilation, groups=2)
    there = CONV[axes](x, grown, padding=dilation * (2 + more), dilation=dilation, groups=2)
    assert torch.allclose(here, there, rtol=0, atol=1e-13)
    assert torch.equal(Centre((k,) * axes)(grown), weight)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@laws
@given(k=st.integers(1, 6), size=st.integers(1, 6), seed=seeds)
def test_zero_padding_is_exact_between_parities_where_padding_is_same(k, size, seed):
    low, high = sorted((k, size))
    x, weight = randn(seed, (1, 2, 12)), randn(seed + 1, (3, 2, low))
    here, there = (F.conv1d(x, w, padding="same") for w in (weight, Centre((high,))(weight)))
    assert torch.allclose(here, there, rtol=0, atol=1e-13)
    assert torch.equal(Centre((low,))(Centre((high,))(weight)), weight)


def test_centre_by_hand():
    row = torch.tensor([1, 2, 3])
    assert Centre((5,))(row).tolist() == [0, 1, 2, 3, 0]
    assert Centre((4,))(row).tolist() == [1, 2, 3, 0]
    assert Centre((5,))(torch.tensor([1, 2, 3, 4])).tolist() == [0, 1, 2, 3, 4]
    assert Centre((2,))(row).tolist() == [2, 3]
    assert Centre((1,))(row).tolist() == [2]
    mixed = Centre((5, 1))(torch.arange(9).reshape(3, 3))  # pads one axis, crops the other
    assert mixed.flatten().tolist() == [0, 1, 4, 7, 0]


@laws
@given(source=sizes, target=sizes, seed=seeds)
def test_gains_are_kept_for_every_kernel(source, target, seed):
    weight = randn(seed, (3, 2, *source))
    same_sum, same_energy = (BilinearGain(target, preserve)(weight) for preserve in ("sum", "energy"))
    assert torch.allclose(same_sum.sum((2, 3)), weight.sum((2, 3)), rtol=0, atol=1e-12)
    energy = same_energy.square().sum((2, 3))
    assert torch.allclose(energy, weight.square().sum((2, 3)), rtol=1e-12, atol=0)
    constant = BilinearGain(target)(torch.ones(1, 1, *source, dtype=torch.float64))
    area = source[0] * source[1] / (target[0] * target[1])
    assert torch.allclose(constant, torch.full_like(constant, area), rtol=1e-12, atol=0)


def test_a_kernel_interpolated_to_zeros_stays_zero():
    weight = torch.ones(2, 1, 3, 3)
    weight[0, 0, 1, 1] = 0
    result = BilinearGain((1, 1), "energy")(weight)  # one tap: the centre
    assert result.isfinite().all()
    assert result.flatten().tolist() == [0, 3]


@pytest.mark.parametrize(("size", "raw_gain"), [((5, 5), 25 / 9), ((7, 7), 49 / 9)])
def test_plain_interpolation_amplifies_and_the_corrected_one_does_not(size, raw_gain):
    """OPERATORS D4 (iii): on smooth inputs relative errors of 1.75 and 4.28 raw, 0.22 and 0.41 corrected."""
    assert Bilinear(size)(torch.ones(3, 3)).sum().item() / 9 == pytest.approx(raw_gain)
    weight, x = randn(0, (16, 8, 3, 3)), F.interpolate(randn(1, (4, 8, 5, 5)), 40, mode="bicubic")
    wanted, margin = F.conv2d(x, weight)[..., 4:-4, 4:-4], 4 - (size[0] - 3) // 2

    def error(kernel):
        result = F.conv2d(x, kernel)[..., margin:-margin, margin:-margin]
        return ((result - wanted).norm() / wanted.norm()).item()

    assert error(Bilinear(size)(weight)) > 1.4
    assert error(BilinearGain(size)(weight)) < 0.41
    assert error(Centre(size)(weight)) < 1e-14


@laws
@given(source=sizes, seed=seeds)
def test_one_tap_answers_constant_inputs_as_the_kernel_did(source, seed):
    weight, colour = randn(seed, (3, 2, *source)), randn(seed + 1, (1, 2, 1, 1))
    point = TapSum()(weight)
    assert point.shape == (3, 2, 1, 1)
    wanted = F.conv2d(colour.expand(1, 2, *source), weight)
    assert torch.allclose(F.conv2d(colour, point), wanted, rtol=0, atol=1e-12)
    assert torch.allclose(BilinearGain((1, 1))(weight), point, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@laws
@given(source=wide, target=wide, antialias=st.booleans(), seed=seeds)
def test_pi_resize_answers_enlarged_patches_exactly_and_shrunk_ones_best(
    source, target, antialias, seed, interpolation
):
    weight, patches = randn(seed, (3, 2, *source)), randn(seed + 1, (5, 2, *source))
    resized = F.interpolate(patches, target, mode=interpolation, align_corners=False, antialias=antialias)
    result = PiResize(target, interpolation, antialias)(weight)
    if all(new >= old for old, new in zip(source, target, strict=True)):
        here, there = F.conv2d(patches, weight), F.conv2d(resized, result)
        assert ((here - there).norm() / here.norm()).item() < 1e-5  # PyTorch's own resize has float32 weights
    basis = torch.eye(source[0] * source[1], dtype=torch.float64).reshape(-1, 1, *source)
    matrix = F.interpolate(basis, target, mode=interpolation, align_corners=False, antialias=antialias).flatten(1)
    wanted = weight.flatten(2) @ torch.linalg.pinv(matrix, rtol=1e-6).T
    assert torch.allclose(result.flatten(2), wanted, rtol=0, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize(("source", "target"), [((16, 16), (32, 32)), ((16, 16), (14, 14)), ((4, 6), (8, 6))])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pi_resize_agrees_with_timm(source, target, interpolation):
    weight = randn(3, (4, 3, *source)).float()
    wanted = resample_patch_embed(weight, list(target), interpolation)
    result = PiResize(target, interpolation)(weight)
    assert torch.allclose(result, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("build", [linear, cubic])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_dual_is_the_pseudo_inverse(build, antialias):
    for source in (*range(1, 17), 24, 32):
        for target in (*range(1, 17), 24, 32):
            matrix = build(source, target, antialias)
            assert sum(map(sum, matrix)) == pytest.approx(target)
            wanted = torch.linalg.pinv(torch.tensor(matrix, dtype=torch.float64).T)
            result = torch.tensor(dual(matrix), dtype=torch.float64)
            assert torch.allclose(result, wanted, rtol=0, atol=1e-9 * wanted.abs().max().item()), (source, target)


@pytest.mark.parametrize(
    "operator", [Bicubic((3, 3)), BilinearGain((3, 3)), Centre((3, 3)), PiResize((3, 3)), TapSum()]
)
def test_what_has_no_kernel_to_resize(operator):
    with pytest.raises(PlanError, match="axes"):
        operator(torch.ones(3))
    with pytest.raises(PlanError, match="empty"):
        operator(torch.ones(2, 0, 3))
