"""Index maps against plain lists."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.channels import index_map
from netgraft.channels.index_map import (
    blocks,
    check,
    copies,
    cyclic,
    identity,
    indices,
    multiplicity,
    runs,
    uniform,
)

laws = settings(deadline=None, derandomize=True, database=None, max_examples=100)
lengths = st.integers(1, 40)
maps = st.lists(st.integers(-1, 9), max_size=12)


@laws
@given(entries=maps)
def test_runs_and_indices_are_inverse_and_runs_are_shortest(entries):
    found = runs(entries)
    assert indices(found) == entries
    assert check(found) == found
    breaks = sum(b != (-1 if a == -1 else a + 1) for a, b in pairwise(entries))  # places where no run can go on
    assert len(found) == (breaks + 1 if entries else 0)


def test_runs_by_hand():
    assert runs([0, 1, 2, 0, 1]) == ((0, 3), (0, 2))
    assert runs([-1, -1, 0, 1, -1]) == ((-1, 2), (0, 2), (-1, 1))
    assert indices(((-1, 2), (4, 2))) == [-1, -1, 4, 5]
    assert cyclic(64, 96) == ((0, 64), (0, 32))
    assert cyclic(64, 128) == ((0, 64), (0, 64))
    assert cyclic(64, 16) == ((0, 16),)
    assert runs([]) == identity(0) == ()
    assert identity(3) == ((0, 3),)


@laws
@given(source=lengths, target=lengths)
def test_cyclic_and_uniform(source, target):
    assert indices(cyclic(source, target)) == [q % source for q in range(target)]
    chosen = indices(uniform(source, target))
    assert len(chosen) == target
    assert chosen == sorted(chosen)
    assert 0 <= min(chosen) <= max(chosen) < source
    if target > 1 and source % target:
        assert (chosen[0], chosen[-1]) == (0, source - 1)
    assert len(set(chosen)) == min(source, target)  # a selection repeats nothing, a widening loses nothing
    assert uniform(source, source) == cyclic(source, source) == identity(source)


def test_uniform_by_hand():
    assert indices(uniform(12, 4)) == [0, 3, 6, 9]  # Weight Selection: arange * step
    assert indices(uniform(10, 4)) == [0, 3, 6, 9]  # linspace(0, 9, 4)
    assert indices(uniform(3, 7)) == [0, 0, 1, 1, 1, 2, 2]
    assert indices(uniform(5, 1)) == [0]


@laws
@given(entries=maps)
def test_multiplicity_counts_and_copies_list(entries):
    assert multiplicity(runs(entries), 10) == [entries.count(j) for j in range(10)]
    assert copies(runs(entries), 10) == [[q for q, e in enumerate(entries) if e == j] for j in range(10)]


@laws
@given(outer=maps, inner=st.lists(st.integers(-1, 3), max_size=5))
def test_blocks(outer, inner):
    wanted = [-1 if -1 in (b, e) else 4 * b + e for b in outer for e in inner]
    assert indices(blocks(runs(outer), 4, runs(inner))) == wanted


def test_blocks_by_hand():
    heads = blocks(cyclic(3, 4), 64, identity(64))
    assert heads == ((0, 192), (0, 64))
    fused = ((0, 192), (0, 64), (192, 192), (192, 64), (384, 192), (384, 64))
    assert blocks(identity(3), 192, heads) == fused
    assert indices(blocks(cyclic(2, 3), 2, identity(2))) == [0, 1, 2, 3, 0, 1]  # channels of 1x2 positions, flattened


def test_what_is_no_map():
    for wrong in (((0, 0),), ((-2, 1),), ((3, -1),)):
        with pytest.raises(ValueError, match="run"):
            check(wrong)
    with pytest.raises(ValueError, match="run"):
        runs([0, -2])
    with pytest.raises(ValueError, match="entry 3 of 3"):
        multiplicity(((2, 2),), 3)
    with pytest.raises(ValueError, match="entry 4 of 4"):
        blocks(identity(2), 4, ((0, 5),))
    for build in (cyclic, uniform):
        for n_source, n_target in ((0, 3), (3, 0)):
            with pytest.raises(ValueError, match="positive"):
                build(n_source, n_target)


def test_index_maps_import_nothing_heavy():
    nodes = ast.walk(ast.parse(Path(index_map.__file__).read_bytes()))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc"}
