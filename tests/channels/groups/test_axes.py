"""Laws of axis structures: whatever is unified, split or put together, permutations stay permutations."""

import itertools
import random
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.channels.groups.axes import (
    Concat,
    Fixed,
    Product,
    Var,
    because,
    fix,
    normal,
    positions,
    reasons,
    run,
    source_size,
    split_concat,
    split_product,
    unify,
    variables,
)

laws = settings(deadline=None, derandomize=True, database=None, max_examples=300)
seeds = st.integers(0, 2**16)
SIZES = [1, 2, 3, 4, 6, 8, 12, 24]


@st.composite
def axes(draw, size=None, depth=2, pool=None):
    """A tree of ``size`` positions; runs may occur in several places."""
    size = draw(st.sampled_from(SIZES)) if size is None else size
    pool = {} if pool is None else pool
    kind = draw(st.sampled_from(["var", "var", "fixed", *(["product", "concat"] if depth and size > 1 else [])]))
    if kind == "fixed":
        return Fixed(size)
    if kind == "var":
        if size in pool and draw(st.booleans()):
            return pool[size]
        return pool.setdefault(size, run(size))
    if kind == "product":
        outer = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        return Product(tuple(draw(axes(n, depth - 1, pool)) for n in (outer, size // outer)))
    sizes = draw(cut(size))
    return Concat(tuple(draw(axes(n, depth - 1, pool)) for n in sizes))


@st.composite
def cut(draw, size):
    """Positive numbers that add up to ``size``."""
    ends = sorted(draw(st.sets(st.integers(1, size - 1), max_size=3))) if size > 1 else []
    return [end - start for start, end in zip([0, *ends], [*ends, size], strict=True)]


@st.composite
def factors(draw, size):
    """Numbers whose product is ``size``."""
    found = []
    while size > 1 and len(found) < 3:
        found.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= found[-1]
    return [*found, size]


class Order:
    """One random permutation for every run."""

    def __init__(self, seed):
        self.random, self.known = random.Random(seed), {}

    def __call__(self, var):
        assert var.bound is None
        if id(var) not in self.known:
            order = list(range(var.size))
            self.random.shuffle(order)
            self.known[id(var)] = (var, order)
        return self.known[id(var)][1]


def identity(var):
    return range(var.size)


@laws
@given(axes())
def test_positions_of_nothing_moved(axis):
    assert positions(axis, identity) == list(range(axis.size))


@laws
@given(axes(), seeds)
def test_positions_are_a_permutation(axis, seed):
    assert sorted(positions(axis, Order(seed))) == list(range(axis.size))


@laws
@given(axes(), seeds)
def test_a_normal_axis_is_the_same_axis(axis, seed):
    order = Order(seed)
    same = normal(axis)
    assert same.size == axis.size
    assert positions(same, order) == positions(axis, order)
    assert normal(same) == same
    if isinstance(same, (Product, Concat)):
        assert len(same.parts) > 1
        assert not any(isinstance(part, type(same)) for part in same.parts)


@laws
@given(st.data(), seeds)
def test_unified_axes_move_alike(data, seed):
    size = data.draw(st.sampled_from(SIZES))
    pool = {}
    one, other = data.draw(axes(size, pool=pool)), data.draw(axes(size, pool=pool))
    result, order = unify(one, other), Order(seed)
    assert one.size == other.size == result.size == size
    assert positions(one, order) == positions(other, order) == positions(result, order)
    assert sorted(positions(one, order)) == list(range(size))


@laws
@given(st.data(), seeds)
def test_many_unifications_hold_at_once(data, seed):
    """What was made equal stays equal, whatever is unified, split or fixed later."""
    size = data.draw(st.sampled_from(SIZES[1:]))
    pool, trees = {}, []
    for _ in range(data.draw(st.integers(2, 5))):
        trees.append(data.draw(axes(size, pool=pool)))
    pairs = [(a, b) for a, b in itertools.pairwise(trees) if data.draw(st.booleans())]
    for a, b in pairs:
        unify(a, b)
    parts = split_product(trees[0], data.draw(factors(size)))
    pieces = split_concat(trees[-1], data.draw(cut(size)))
    order = Order(seed)
    for a, b in pairs:
        assert positions(a, order) == positions(b, order)
    assert positions(Product(tuple(parts)), order) == positions(trees[0], order)
    assert positions(Concat(tuple(pieces)), order) == positions(trees[-1], order)


@laws
@given(st.data(), seeds)
def test_factors_of_an_axis(data, seed):
    axis = data.draw(axes())
    sizes = data.draw(factors(axis.size))
    parts, order = split_product(axis, sizes), Order(seed)
    assert [part.size for part in parts] == sizes
    assert prod(sizes) == axis.size
    assert positions(Product(tuple(parts)), order) == positions(axis, order)


@laws
@given(st.data(), seeds)
def test_pieces_of_an_axis(data, seed):
    axis = data.draw(axes())
    sizes = data.draw(cut(axis.size))
    parts, order = split_concat(axis, sizes), Order(seed)
    assert [part.size for part in parts] == sizes
    assert positions(Concat(tuple(parts)), order) == positions(axis, order)


@laws
@given(axes(), st.integers(2, 3), seeds)
def test_positions_and_sizes_of_copied_channels(axis, times, seed):
    """With every run ``times`` as long, each source position is read, and the identity's order is kept in each copy."""
    wide = Order(seed)
    index = positions(axis, lambda var: [c for c in wide(var) for _ in range(times)])
    assert source_size(axis, lambda var: var.size) == axis.size
    assert source_size(axis, lambda var: var.size * times) == len(index)
    assert set(index) == set(range(axis.size))


@laws
@given(axes())
def test_a_fixed_axis_has_no_run_left(axis):
    runs = list(variables(axis))
    assert fix(axis).size == axis.size
    assert not list(variables(axis))
    assert all(isinstance(normal(var), Fixed) for var in runs)


def test_axes_of_different_lengths_are_fixed():
    one, other = Var(4), Var(6)
    unify(one, other)
    assert normal(one) == Fixed(4)
    assert normal(other) == Fixed(6)


def test_structures_without_a_common_one_are_fixed():
    two, three = Product((Var(2), Var(3))), Product((Var(3), Var(2)))
    unify(two, three)
    assert normal(two) == normal(three) == Fixed(6)


def test_a_run_twice_in_a_row_and_each_channel_twice():
    """Both of a run at once: then no channel may move."""
    run_ = Var(2)
    whole = unify(Concat((run_, run_)), Product((run_, Fixed(2))))
    assert positions(whole, Order(3)) == list(range(4))


def test_heads_of_a_fused_projection():
    """Rows of q, k and v, seen as three times heads times head dim, share one run of heads and one of dims."""
    q, k, v = (Var(6) for _ in range(3))
    three, heads, dims = split_product(Concat((q, k, v)), [3, 2, 3])
    assert (three, heads.size, dims.size) == (Fixed(3), 2, 3)
    assert normal(q) == normal(k) == normal(v) == Product((heads, dims))


def test_the_older_run_gives_its_name():
    older, newer = Var(3), Var(3)
    assert unify(newer, older) is older
    assert normal(newer) is older


def test_a_fixed_run_remembers_why():
    var = Var(2)
    token = because.set("here")
    try:
        fix(var)
        axis = Concat((Fixed(1), var))
    finally:
        because.reset(token)
    assert set(reasons(axis)) == {"here"}
    assert normal(axis) == Fixed(3)
    assert Fixed(3, "one reason") == Fixed(3, "another")
    assert list(reasons(unify(Var(3), Fixed(3, "given")))) == ["given"]


@pytest.mark.parametrize("size", [0, 1])
def test_a_run_of_one_is_no_run(size):
    assert run(size) == Fixed(size)
