"""Names of operations: each is one that PyTorch has, no two sets are the same, and what a set says holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.architecture import operations

SETS = {name: frozenset(value) for name, value in vars(operations).items() if name.isupper()}
NOT_ATEN = {"getitem"}  # Python's own, between an operation with several results and what reads one of them


def known(name: str) -> bool:
    places = (torch, F, Tensor, torch.ops.aten)
    return name in NOT_ATEN or any(hasattr(place, name) or hasattr(place, f"{name}_") for place in places)


@pytest.mark.parametrize("name", SETS)
def test_every_name_is_an_operation(name: str) -> None:
    assert SETS[name]
    assert [op for op in SETS[name] if not known(op)] == []


def test_no_two_sets_are_the_same() -> None:
    assert len(set(SETS.values())) == len(SETS)


def applied(name: str, x: Tensor) -> Tensor | None:
    """The first result of an operation that needs no argument besides a tensor; None for one that does."""
    function = getattr(torch.ops.aten, name, None)
    try:
        found = function(x) if function is not None else getattr(torch, name)(x)
    except Exception:  # other arguments are needed, or other types
        return None
    return found[0] if isinstance(found, (tuple, list)) else found


def test_the_laws_below_do_run_operations() -> None:
    """They skip operations that need more arguments; these need none."""
    assert all(applied(name, torch.rand(4)) is not None for name in ("relu", "sigmoid", "alias", "clone", "gelu"))


@pytest.mark.parametrize("name", sorted(operations.MOVES))
def test_what_moves_numbers_leaves_zeros(name: str) -> None:
    found = applied(name, torch.zeros(2, 3, 4, 4))
    assert found is None or not found.any()


@pytest.mark.parametrize("name", sorted(operations.BOUNDS))
def test_what_bounds_keeps_large_numbers_small(name: str) -> None:
    found = applied(name, torch.linspace(-1e4, 1e4, 101))
    assert found is None or found.abs().max() <= 1


@pytest.mark.parametrize("name", sorted(operations.ELEMENTWISE | operations.KEEPS_CHANNELS))
def test_what_works_number_by_number_does_not_look_at_neighbours(name: str) -> None:
    x, order = torch.linspace(0.1, 0.9, 12), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    by_chance = "dropout" in name or name == "bernoulli"
    found, again = (None, None) if by_chance else (applied(name, x), applied(name, x[order]))
    assert found is None or (again is not None and torch.allclose(found[order], again))
