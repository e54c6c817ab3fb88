"""Ridge regression against numpy's least squares, against explicit decompositions, against brute force."""

import math

import numpy as np
import pytest
import torch

from netgraft.passes.refitting import moments
from netgraft.passes.refitting.moments import (
    RIDGE,
    best_number,
    errors_of,
    gathered,
    ridge_regression,
    with_constant,
    with_spread,
)
from netgraft.passes.refitting.regression import Fit, best_filters, rank_one


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_batches(x, y, *, intercept=True):
    """The rows in three batches, the first of them a small one."""
    cuts = [len(x) // 5, len(x) // 2]
    return gathered(zip(x.tensor_split(cuts), y.tensor_split(cuts), strict=True), intercept=intercept)


def fit(x, y, *, intercept, centre=None, ridge=RIDGE):
    return ridge_regression(in_batches(x, y, intercept=intercept), centre=centre, ridge=ridge)


def problem(rows=60, features=7, outputs=3):
    x = drawn(rows, features) + torch.arange(features)
    y = x @ drawn(features, outputs, seed=1) + drawn(rows, outputs, seed=2) + 5
    return x, y


def by_lstsq(x, y, *, intercept, ridge=0.1, centre=None):
    """Weights and bias from numpy's least squares, the penalty as rows of their own, which want the centre."""
    x, y = x.double().numpy(), y.double().numpy()
    if intercept:
        mean_x, mean_y = x.mean(0), y.mean(0)
        a, b = x - mean_x, y - mean_y
    else:
        a, b = x, y
    rho = ridge * np.square(a).sum(0).mean()
    rows = np.concatenate([a, math.sqrt(rho) * np.eye(a.shape[1])])
    centre = np.zeros((b.shape[1], a.shape[1])) if centre is None else centre.double().numpy()
    wanted = np.concatenate([b, math.sqrt(rho) * centre.T])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    bias = mean_y - weight @ mean_x if intercept else np.zeros(b.shape[1])
    rest = b - a @ weight.T
    return weight, bias, 1 - np.square(rest).sum() / np.square(b).sum()


def check(solution, expected, x, y, tolerance=2e-4):
    weight, bias, r2 = expected
    np.testing.assert_allclose(solution.weight, weight, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(solution.bias, bias, rtol=tolerance, atol=tolerance * 10)
    assert solution.r2(x, y) == pytest.approx(r2, abs=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rows", [60, 5])
@pytest.mark.parametrize("centred", [True, False])
def test_ridge_regression(intercept, rows, centred):
    x, y = problem(rows)
    centre = drawn(3, 7, seed=5) if centred else None
    check(fit(x, y, intercept=intercept, centre=centre), by_lstsq(x, y, intercept=intercept, centre=centre), x, y)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_weights_that_give_what_is_wanted_are_a_fixed_point(intercept, dual, monkeypatch):
    """However few the rows: what these do not tell stays as it was."""
    if dual:
        monkeypatch.setattr(moments, "MOST_FEATURES", 5)
    x, weight = drawn(4, 20), drawn(3, 20, seed=1)
    y = x @ weight.T + (2 if intercept else 0)
    found = fit(x, y, intercept=intercept, centre=weight)
    torch.testing.assert_close(found.weight, weight, rtol=1e-5, atol=1e-5)
    fresh = drawn(50, 20, seed=2)
    assert found.r2(fresh, fresh @ weight.T + (2 if intercept else 0)) > 0.9999
    assert fit(x, y, intercept=intercept).r2(fresh, fresh @ weight.T + (2 if intercept else 0)) < 0.5


def test_inputs_that_vary_little_about_a_large_mean():
    """In single precision the difference of two such squares is noise, and their matrix not positive definite."""
    x = 300 + 1e-3 * drawn(400, 40)
    y = drawn(400, 3, seed=1)
    assert fit(x, y, intercept=True).weight.isfinite().all()


@pytest.mark.parametrize("intercept", [True, False])
def test_chunks_add_up(intercept, monkeypatch):
    x, y = problem()
    whole = fit(x, y, intercept=intercept)
    monkeypatch.setattr(moments, "CHUNK", 7)
    check(fit(x, y, intercept=intercept), (whole.weight, whole.bias, whole.r2(x, y)), x, y, 1e-4)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("rows", "features"), [(30, 50), (12, 30)])
@pytest.mark.parametrize("centred", [True, False])
def test_the_dual_form_is_the_primal(intercept, rows, features, centred, monkeypatch):
    x, y = problem(rows, features)
    monkeypatch.setattr(moments, "MOST_FEATURES", rows)
    centre = drawn(3, features, seed=5) if centred else None
    solution = fit(x, y, intercept=intercept, centre=centre)
    check(solution, by_lstsq(x, y, intercept=intercept, centre=centre), x, y, 1e-3)


@pytest.mark.parametrize("intercept", [True, False])
def test_many_features_are_fitted_on_as_many_rows(intercept, monkeypatch):
    x, y = problem(64, 20)
    monkeypatch.setattr(moments, "MOST_FEATURES", 16)
    check(fit(x, y, intercept=intercept), by_lstsq(x[::4], y[::4], intercept=intercept), x[::4], y[::4], 1e-3)


def test_without_penalty_what_is_linear_is_found():
    x, weight = drawn(50, 6), drawn(4, 6, seed=1)
    y = x @ weight.T + 2
    solution = fit(x, y, intercept=True, ridge=1e-9)
    torch.testing.assert_close(solution.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solution.bias, torch.full((4,), 2.0), rtol=1e-4, atol=1e-4)
    assert solution.r2(x, y) == pytest.approx(1)


@pytest.mark.parametrize("dual", [False, True])
def test_constants_give_a_constant(dual, monkeypatch):
    if dual:
        monkeypatch.setattr(moments, "MOST_FEATURES", 3)
    x, y = torch.ones(12, 4), drawn(12, 2)
    solution = fit(x, y, intercept=True)
    assert not solution.weight.any()
    torch.testing.assert_close(solution.bias, y[::4].mean(0) if dual else y.mean(0))
    x, y = (x[::4], y[::4]) if dual else (x, y)
    assert solution.r2(x, y) == pytest.approx(0, abs=1e-6)
    nothing = fit(drawn(12, 4), torch.zeros(12, 2), intercept=True)
    assert not nothing.weight.any()
    assert nothing.r2(drawn(12, 4), torch.zeros(12, 2)) == 0


def test_on_other_rows_a_map_can_be_worse_than_a_constant():
    x, y = problem(40)
    solution = Fit(drawn(3, 7, seed=8), torch.zeros(3))
    left, whole = ((x @ solution.weight.T - y).square().sum(), (y - y.mean(0)).square().sum())
    assert solution.r2(x, y) == pytest.approx(float(1 - left / whole), rel=1e-4)
    assert solution.r2(x, y) < 0


@pytest.mark.parametrize("intercept", [True, False])
def test_one_number_for_all_weights(intercept):
    """The best of many that are tried, over two pieces together; none that turns the sign."""
    pieces = [(*problem(60), drawn(3, 7, seed=5)), (drawn(40, 4), drawn(40, 2, seed=1), drawn(2, 4, seed=6))]
    pieces = [(x, y + 0.5 * x @ w.T, w) for x, y, w in pieces]

    def left(number):
        return sum(with_constant(rows, number * w).left(x, y) for rows, x, y, w in known)

    known = [(in_batches(x, y, intercept=intercept), x, y, w) for x, y, w in pieces]
    found = best_number([(rows, w) for rows, _, _, w in known])
    assert found > 0
    assert left(found) == pytest.approx(min(left(found + step) for step in np.linspace(-0.5, 0.5, 101)), rel=1e-6)
    assert best_number([(rows, -w) for rows, _, _, w in known]) == 0


# ---------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_sums_know_what_the_rows_know(intercept, wide, monkeypatch):
    """Variances, products, and the errors of any map: those of all rows at once."""
    if wide:
        monkeypatch.setattr(moments, "MOST_FEATURES", 6)
        monkeypatch.setattr(
            moments.FewRows, "rows", property(lambda self: [torch.cat(p) for p in zip(*self._parts, strict=True)])
        )
    x, y = problem(50)
    other = Fit(drawn(3, 7, seed=8), drawn(3, seed=9), intercept)
    found = in_batches(x, y, intercept=intercept)
    assert isinstance(found, moments.FewRows) == wide
    x, y = x.double(), y.double()
    given = x @ other.weight.double().T
    torch.testing.assert_close(found.mean_x.double(), x.mean(0))
    torch.testing.assert_close(found.mean_y.double(), y.mean(0))
    torch.testing.assert_close(found.variance_y.double(), y.var(0, correction=0), rtol=1e-5, atol=0)
    variance = found.variance_given(other.weight).double()
    torch.testing.assert_close(variance, given.var(0, correction=0), rtol=1e-5, atol=0)
    left = (given + other.bias - y).square().sum()
    about = (given - given.mean(0), y - y.mean(0)) if intercept else (given, y)
    pieces = zip(x.float().split(20), y.float().split(20), strict=True)
    rests, whole = errors_of([other, Fit(0 * other.weight, 0 * other.bias)], pieces, intercept=intercept)
    assert rests == pytest.approx([float(left), float(y.square().sum())], rel=1e-5)
    assert whole == pytest.approx(float(about[1].square().sum()), rel=1e-5)
    products = float(about[0].square().sum()), float((about[0] * about[1]).sum())
    assert found.products(other.weight) == pytest.approx(products, rel=1e-5)


# ------------------------------------------------------------------------------------------------------ with_spread


def test_each_output_gets_the_spread_that_is_wanted_and_keeps_its_mean():
    x, y = problem(400)
    y = y + 4 * drawn(400, 3, seed=4)
    plain = fit(x, y, intercept=True)
    spread = with_spread(plain, in_batches(x, y))
    before, after = (x @ s.weight.T + s.bias for s in (plain, spread))
    assert (before.std(0) < 0.97 * y.std(0)).all()
    torch.testing.assert_close(after.std(0), y.std(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-3, atol=1e-3)


def test_at_most_so_many_times_and_never_down():
    x = drawn(100, 2)
    solution = Fit(torch.tensor([[1.0, 0], [0, 1.0]]), torch.zeros(2))
    wanted = torch.stack([100 * x[:, 0], 0.1 * x[:, 1]], 1)
    torch.testing.assert_close(
        with_spread(solution, in_batches(x, wanted), most=3).weight, torch.tensor([[3.0, 0], [0, 1.0]])
    )


# ---------------------------------------------------------------------------------------------------------- filters


def test_rank_one_is_the_first_singular_vector():
    weight = drawn(5, 4, 9)
    filters = rank_one(weight)
    assert filters.shape == (4, 9)
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(4))
    assert (filters.sum(1) >= 0).all()
    for channel in range(4):
        u, s, v = torch.linalg.svd(weight[:, channel])
        nearest = s[0] * torch.outer(u[:, 0], v[0])
        found = torch.outer(weight[:, channel] @ filters[channel], filters[channel])
        torch.testing.assert_close(found, nearest, rtol=1e-4, atol=1e-5)


def explained(x, y, filters, ridge=0.1):
    """|C' v|^2 / (v' (G + rho) v) for one channel, with centred x [rows, taps] and y."""
    x, y = x - x.mean(0), y - y.mean(0)
    gram, cross = x.T @ x / len(x), x.T @ y / len(x)
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram))
    return ((filters @ cross).square().sum(-1) / ((filters @ gram) * filters).sum(-1)).squeeze()


def test_best_filters_beat_all_others():
    """Two taps: every direction can be tried."""
    channels = 3
    x, y = drawn(40, 2 * channels), drawn(40, 4, seed=1)
    y = y + x[:, :1] - 0.5 * x[:, 3:4]
    found = best_filters(x, y, channels)
    assert found.shape == (channels, 2)
    angles = torch.arange(0, math.pi, 1e-3)
    everything = torch.stack([angles.cos(), angles.sin()], 1)
    for channel in range(channels):
        mine = x[:, 2 * channel : 2 * channel + 2]
        best = max(float(explained(mine, y, direction)) for direction in everything)
        assert float(explained(mine, y, found[channel])) == pytest.approx(best, rel=1e-5)
        assert found[channel].sum() >= 0
    torch.testing.assert_close(found.norm(dim=1), torch.ones(channels))


def test_the_filter_that_made_it_is_the_best():
    taps = torch.nn.functional.normalize(drawn(2, 5).abs(), dim=1)
    x = drawn(4000, 10)
    responses = torch.stack([x[:, :5] @ taps[0], x[:, 5:] @ taps[1]], 1)
    found = best_filters(x, responses @ drawn(2, 6, seed=3), 2)
    torch.testing.assert_close(found, taps, rtol=0, atol=0.05)
