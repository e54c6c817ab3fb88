"""HMT's cyclic stack against Python's own modular indexing."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.errors import PlanError
from netgraft.operators.cyclic import Cyclic

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def numbered(shape, dtype=torch.float32):
    return torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)


def reference(weight, dim, size):
    """Element by element: the target's index, modulo the source's length on one axis."""
    nested, axis = weight.tolist(), dim % weight.ndim
    target = [*weight.shape[:axis], size, *weight.shape[axis + 1 :]]
    out = np.empty(target, dtype=object)
    for index in itertools.product(*map(range, target)):
        value = nested
        for d, i in enumerate(index):
            value = value[i % weight.shape[axis] if d == axis else i]
        out[index] = value
    return out.tolist()


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(shape=shapes, size=st.integers(1, 20), dtype=st.sampled_from(DTYPES), data=st.data())
def test_agrees_with_modular_indexing(shape, size, dtype, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    weight = numbered(shape, dtype)
    result = Cyclic(dim, size)(weight)
    assert result.dtype == dtype
    assert result.tolist() == reference(weight, dim, size)


def test_figure_4b():
    """A 3-channel source filter gives the first five channels of the repeated stack."""
    source = torch.tensor([10, 20, 30])
    assert Cyclic(0, 5)(source).tolist() == [10, 20, 30, 10, 20]
    assert Cyclic(0, 2)(source).tolist() == [10, 20]
    assert Cyclic(0, 7)(source).tolist() == [10, 20, 30, 10, 20, 30, 10]


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(source=st.tuples(*[st.integers(1, 9)] * 2), target=st.tuples(*[st.integers(1, 20)] * 2))
def test_both_channel_axes_in_either_order(source, target):
    weight = numbered((*source, 3, 3))
    rows_first = Cyclic(1, target[1])(Cyclic(0, target[0])(weight))
    columns_first = Cyclic(0, target[0])(Cyclic(1, target[1])(weight))
    rows, columns = np.arange(target[0]) % source[0], np.arange(target[1]) % source[1]
    assert torch.equal(rows_first, columns_first)
    assert np.array_equal(rows_first.numpy(), weight.numpy()[np.ix_(rows, columns)])


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(length=st.integers(1, 12), size=st.integers(1, 40))
def test_going_up_and_back_down_returns_the_source(length, size):
    weight = numbered((length, 2))
    if size >= length:
        assert torch.equal(Cyclic(0, length)(Cyclic(0, size)(weight)), weight)


def test_empty_axes():
    assert Cyclic(0, 0)(torch.ones(3, 2)).shape == (0, 2)
    assert Cyclic(0, 0)(torch.ones(0, 2)).shape == (0, 2)
    with pytest.raises(PlanError, match="empty"):
        Cyclic(0, 3)(torch.ones(0, 2))
