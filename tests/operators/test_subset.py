"""Entries by NumPy's indexing."""

import numpy as np
import pytest
import torch

from netgraft.operators.subset import Subset


def taken(length, size, **options):
    return Subset(0, size, **options)(torch.arange(length)).tolist()


@pytest.mark.parametrize(("length", "size"), [(12, 4), (12, 12), (384, 192), (9, 1), (10, 4), (7, 5), (768, 320)])
def test_evenly_spaced(length, size):
    whole = np.arange(size) * (length // size)
    rounded = np.round(np.linspace(0, length - 1, size)).astype(int)
    assert taken(length, size) == (whole if length % size == 0 else rounded).tolist()


def test_first_and_random():
    assert taken(9, 4, mode="consecutive") == [0, 1, 2, 3]
    one, other = (taken(50, 20, mode="random", seed=seed) for seed in (1, 2))
    assert one == sorted(set(one))
    assert len(one) == 20
    assert one != other
    assert Subset(1, 20, "random", 1)(torch.arange(50).expand(3, 50))[2].tolist() == one  # other axes, same entries
