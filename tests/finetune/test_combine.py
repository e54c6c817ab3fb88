"""DTNH's identities, against an independent dense computation (Algorithm 1, Eqs. 6-7)."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.combine import Vector, dtnh, find_rule, total
from netgraft.finetune.settings import DtnhScope, TrainingSettings

SIZE = 12
SCOPES = get_args(DtnhScope)


def vectors(seed, obtuse=None):
    """Two vectors of the wanted angle."""
    generator = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    if obtuse is not None and (g @ r < 0) != obtuse:
        r = -r
    return g, r


def grads(**named):
    """What the engine gives to a rule: the sum over each group."""

    def ask(*groups):
        sums = [sum((named[name] for name in group), torch.zeros(SIZE).double()) for group in groups]
        return tuple(Vector(vector.split([5, SIZE - 5])) for vector in sums)

    return ask


def whole(combined):
    return torch.cat(combined.direction.pieces)


def decomposed(g, r):
    """Algorithm 1 by orthogonal projection with a dense matrix."""
    if not (g @ r < 0 and g.norm() > 0):
        return g + r
    unit = (g / g.norm())[:, None]
    return g + (torch.eye(len(g), dtype=g.dtype) - unit @ unit.T) @ r


def run(g, r):
    return dtnh(("task", "sp"), grads(task=g.clone(), sp=r.clone()))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_direction_is_that_of_algorithm_1(seed, scale):
    g, r = vectors(seed)
    r = r * scale
    torch.testing.assert_close(whole(run(g, r)), decomposed(g, r), rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_in_conflict_the_task_falls_as_without_a_regulariser(seed):
    g, r = vectors(seed, obtuse=True)
    assert float(whole(run(g, r)) @ g) == pytest.approx(float(g @ g), rel=1e-10)
    assert run(g, r).telemetry["obtuse"] == 1


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_without_conflict_it_is_vanilla(seed):
    g, r = vectors(seed, obtuse=False)
    assert torch.equal(whole(run(g, r)), g + r)
    assert run(g, r).telemetry["obtuse"] == 0


def test_no_gradient_of_the_task():
    _, r = vectors(0)
    combined = run(torch.zeros_like(r), r)
    assert torch.equal(whole(combined), r)
    assert all(value.isfinite() for value in combined.telemetry.values())


def test_common_scale_of_the_losses():
    g, r = vectors(3, obtuse=True)
    torch.testing.assert_close(whole(run(5 * g, 5 * r)), 5 * whole(run(g, r)))


@pytest.mark.parametrize("names", [("task",), ("sp",), ("sp", "fm")])
def test_without_a_task_or_a_regulariser_it_is_total(names):
    named = dict(zip(("task", "sp", "fm"), torch.randn(3, SIZE).double(), strict=True))
    assert torch.equal(whole(dtnh(names, grads(**named))), whole(total(names, grads(**named))))


def test_all_regularisers_are_projected_together():
    g, r = vectors(1, obtuse=True)
    parts = {"task": g, "sp": 0.25 * r, "fm": 0.75 * r}
    torch.testing.assert_close(whole(dtnh(("task", "sp", "fm"), grads(**parts))), decomposed(g, r))


TASK_ONLY, REG_ONLY, BOTH = 1, 2, 3
"""Which of the two losses reaches a tensor."""


def reached(reach, seed):
    """A gradient of each loss, tensor by tensor, None where it does not reach; one tensor in conflict, one not."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i, kind in enumerate(reach):
        g, r = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        r = r * 2 if (g @ r < 0) == (i % 2 == 0) else -2 * r
        pairs.append((g if kind & TASK_ONLY else None, r if kind & REG_ONLY else None))
    return [g for g, _ in pairs], [r for _, r in pairs]


def scoped(gs, rs, scope):
    def copies(pieces):
        return Vector(None if piece is None else piece.clone() for piece in pieces)

    return find_rule("dtnh", scope)(("task", "sp"), lambda *_: (copies(gs), copies(rs)))


def by_projection(gs, rs, scope):
    """Every scope by a dense projection of what it takes for a vector."""
    both = [g is not None and r is not None for g, r in zip(gs, rs, strict=True)]
    if scope == "per-tensor":
        return [decomposed(g, r) if i else filled(g) + filled(r) for g, r, i in zip(gs, rs, both, strict=True)]
    inside = [scope == "all" or each for each in both]
    if not any(inside):
        return [filled(a) + filled(b) for a, b in zip(gs, rs, strict=True)]
    g, r = (torch.cat([filled(p) for p, i in zip(v, inside, strict=True) if i]) for v in (gs, rs))
    projected = iter(decomposed(g, r).split(3))
    return [next(projected) if i else filled(a) + filled(b) for a, b, i in zip(gs, rs, inside, strict=True)]


def filled(piece):
    return torch.zeros(3, dtype=torch.float64) if piece is None else piece


REACHES = [(BOTH, BOTH, TASK_ONLY), (BOTH, TASK_ONLY, REG_ONLY, BOTH, BOTH), (TASK_ONLY, REG_ONLY), (BOTH, 0, BOTH)]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reach", REACHES)
def test_scopes(scope, reach):
    seen = set()
    for seed in range(12):
        gs, rs = reached(reach, seed)
        combined = scoped(gs, rs, scope)
        expected = by_projection(gs, rs, scope)
        for piece, right, kind in zip(combined.direction.pieces, expected, reach, strict=True):
            assert (piece is None) == (kind == 0)
            torch.testing.assert_close(filled(piece), right, rtol=1e-10, atol=1e-10)
        g, r, d = (torch.cat([filled(p) for p in pieces]) for pieces in (gs, rs, combined.direction.pieces))
        conflict = float(combined.telemetry["obtuse"])
        seen.add(conflict)
        if scope == "per-tensor":
            assert float(d @ g) >= float(g @ g) - 1e-9
        elif conflict:
            assert float(d @ g) == pytest.approx(float(g @ g), rel=1e-10)
        told = {name: float(value) for name, value in combined.telemetry.items()}
        assert told["angle1"] == pytest.approx(angle(d, g), abs=1e-4)
        assert told["angle2"] == pytest.approx(angle(d, r), abs=1e-4)
        assert told["angle3"] == pytest.approx(angle(g + r, g), abs=1e-4)
        assert told["angle4"] == pytest.approx(angle(g + r, r), abs=1e-4)
    assert (max(seen) > 0) == (BOTH in reach)


def test_what_each_scope_does_to_a_new_classifier():
    """In conflict: stepped longer, by 1 - <g, r> / |g|^2, with all; left to the task alone with the others."""
    g, r = torch.tensor([1.0, 0.0]).double(), torch.tensor([-3.0, 1.0]).double()
    head = torch.tensor([2.0]).double()
    found = {scope: scoped([g, head], [r, None], scope).direction.pieces[1] for scope in SCOPES}
    assert found["all"].tolist() == [pytest.approx(2 * (1 + 3 / 5))]
    assert found["shared"].tolist() == found["per-tensor"].tolist() == [2]


def angle(a, b):
    return math.degrees(math.acos(float(a @ b / (a.norm() * b.norm()))))


@pytest.mark.parametrize("obtuse", [False, True])
def test_angles_of_figures_4_and_5(obtuse):
    g, r = vectors(5, obtuse=obtuse)
    combined = run(g, r)
    d = decomposed(g, r)
    told = {name: float(value) for name, value in combined.telemetry.items()}
    assert told["cosine"] == pytest.approx(float(torch.cosine_similarity(g, r, 0)))
    assert told["angle1"] == pytest.approx(angle(d, g))
    assert told["angle2"] == pytest.approx(angle(d, r))
    assert told["angle3"] == pytest.approx(angle(g + r, g))
    assert told["angle4"] == pytest.approx(angle(g + r, r))
    if obtuse:
        assert told["angle1"] < told["angle3"]  # what Figure 4 shows


def test_rules_by_name():
    assert find_rule("dtnh") is dtnh
    with pytest.raises(UnknownName, match="dthn"):
        find_rule("dthn")
    with pytest.raises(UsageError, match=r"Only the rule dtnh[^$]*--combine dtnh"):
        find_rule("total", "shared")
    with pytest.raises(UnknownName, match="--dtnh-scope"):
        TrainingSettings("net", "data", "out", dtnh_scope="per_tensor")


def test_a_vector_may_lack_pieces():
    """None is 0 in products and sums, and stays None where both lack it."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    one, other = Vector([a.clone(), None, None]), Vector([b.clone(), b.clone(), None])
    assert float(one @ other) == 11
    assert [p if p is None else p.tolist() for p in one.add_(other, torch.tensor(2.0)).pieces] == [
        [7, 10],
        [6, 8],
        None,
    ]
    assert float(Vector([None]) @ Vector([None])) == 0


def test_inner_product_of_channels_last():
    a, b = torch.randn(2, 4, 3, 5, 5)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (a, b)]
    torch.testing.assert_close(Vector([last[0]]) @ Vector([last[1]]), (a * b).sum())
