"""The cosine transform against SciPy's."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from netgraft.operators.dct import Dct

SHAPES = [((6, 5), (9, 3)), ((4, 6, 3, 3), (7, 6, 5, 1)), ((8,), (3,)), ((3, 1), (5, 2)), ((2, 9), (2, 4))]


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def truth(weight, size, constant=True):
    """Orthonormal frequencies of SciPy, the corner that both shapes have, and back."""
    frequencies = dctn(weight.numpy(), norm="ortho")
    padded = np.zeros(size)
    corner = tuple(slice(0, min(pair)) for pair in zip(weight.shape, size, strict=True))
    padded[corner] = frequencies[corner]
    return idctn(padded, norm="ortho") * (np.sqrt(np.prod(size) / np.prod(weight.shape)) if constant else 1)


@pytest.mark.parametrize("keep", ["constant", "energy"])
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_it_is_scipys(before, after, keep):
    weight = drawn(before)
    found = Dct(after, keep)(weight)
    np.testing.assert_allclose(found.numpy(), truth(weight, after, keep == "constant"), rtol=0, atol=1e-12)


def test_what_the_scale_keeps():
    assert torch.allclose(Dct((9, 3))(torch.full((6, 5), 0.7)), torch.full((9, 3), 0.7), rtol=0, atol=1e-6)
    weight = drawn((6, 5))
    assert Dct((9, 8), "energy")(weight).square().sum().item() == pytest.approx(weight.square().sum().item(), rel=1e-12)
    back = Dct((6, 5))(Dct((9, 8))(weight))
    assert torch.allclose(back, weight, rtol=0, atol=1e-12)


def test_a_variance_stays_above_the_smallest():
    variance = torch.tensor([1.0, 1.0, 1.0, 30.0, 0.01, 0.01])
    assert Dct((13,))(variance).min() < 0
    assert Dct((13,), floor=True)(variance).min() == variance.min()
