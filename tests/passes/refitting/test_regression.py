"""Ridge regression against numpy's least squares, against explicit decompositions, against brute force."""

import math

import numpy as np
import pytest
import torch

from netgraft.passes.refitting import regression
from netgraft.passes.refitting.regression import Fit, best_filters, fit, rank_one, with_spread


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(rows=60, features=7, outputs=3):
    x = drawn(rows, features) + torch.arange(features)
    y = x @ drawn(features, outputs, seed=1) + drawn(rows, outputs, seed=2) + 5
    return x, y


def by_lstsq(x, y, *, intercept, ridge=0.1):
    """Weights and bias from numpy's least squares, the penalty as rows of their own."""
    x, y = x.double().numpy(), y.double().numpy()
    if intercept:
        mean_x, mean_y = x.mean(0), y.mean(0)
        a, b = x - mean_x, y - mean_y
    else:
        a, b = x, y
    rho = ridge * np.square(a).sum(0).mean()
    rows = np.concatenate([a, math.sqrt(rho) * np.eye(a.shape[1])])
    wanted = np.concatenate([b, np.zeros((a.shape[1], b.shape[1]))])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    bias = mean_y - weight @ mean_x if intercept else np.zeros(b.shape[1])
    rest = b - a @ weight.T
    return weight, bias, 1 - np.square(rest).sum() / np.square(b).sum()


def check(solution, expected, tolerance=2e-4):
    weight, bias, r2 = expected
    np.testing.assert_allclose(solution.weight, weight, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(solution.bias, bias, rtol=tolerance, atol=tolerance * 10)
    assert solution.r2 == pytest.approx(r2, abs=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rows", [60, 5])
def test_ridge_regression(intercept, rows):
    x, y = problem(rows)
    check(fit(x, y, intercept=intercept), by_lstsq(x, y, intercept=intercept))


@pytest.mark.parametrize("intercept", [True, False])
def test_chunks_add_up(intercept, monkeypatch):
    x, y = problem()
    whole = fit(x, y, intercept=intercept)
    monkeypatch.setattr(regression, "CHUNK", 7)
    check(fit(x, y, intercept=intercept), (whole.weight, whole.bias, whole.r2), 1e-4)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("rows", "features"), [(30, 50), (60, 7)])
def test_the_dual_form_is_the_primal(intercept, rows, features):
    x, y = problem(rows, features)
    check(regression._fit_dual(x, y, intercept=intercept), by_lstsq(x, y, intercept=intercept), 1e-3)


@pytest.mark.parametrize("intercept", [True, False])
def test_many_features_are_fitted_on_as_many_rows(intercept, monkeypatch):
    x, y = problem(64, 20)
    monkeypatch.setattr(regression, "MOST_FEATURES", 16)
    check(fit(x, y, intercept=intercept), by_lstsq(x[::4], y[::4], intercept=intercept), 1e-3)


def test_without_penalty_what_is_linear_is_found():
    x, weight = drawn(50, 6), drawn(4, 6, seed=1)
    normal = regression.Normal(6, 4, torch.device("cpu"))
    normal.add(x, x @ weight.T + 2)
    solution = normal.solve(intercept=True, ridge=1e-9)
    torch.testing.assert_close(solution.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solution.bias, torch.full((4,), 2.0), rtol=1e-4, atol=1e-4)
    assert solution.r2 == pytest.approx(1)


@pytest.mark.parametrize("dual", [False, True])
def test_constants_give_a_constant(dual, monkeypatch):
    if dual:
        monkeypatch.setattr(regression, "MOST_FEATURES", 3)
    x, y = torch.ones(12, 4), drawn(12, 2)
    solution = fit(x, y, intercept=True)
    assert not solution.weight.any()
    torch.testing.assert_close(solution.bias, y[::4].mean(0) if dual else y.mean(0))
    assert solution.r2 == pytest.approx(0, abs=1e-6)
    nothing = fit(drawn(12, 4), torch.zeros(12, 2), intercept=True)
    assert not nothing.weight.any()
    assert nothing.r2 == 0


# ------------------------------------------------------------------------------------------------------ with_spread


def test_each_output_gets_the_spread_that_is_wanted_and_keeps_its_mean():
    x, y = problem(400)
    y = y + 4 * drawn(400, 3, seed=4)
    plain = fit(x, y, intercept=True)
    spread = with_spread(plain, x, y)
    before, after = (x @ s.weight.T + s.bias for s in (plain, spread))
    assert (before.std(0) < 0.97 * y.std(0)).all()
    torch.testing.assert_close(after.std(0), y.std(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-3, atol=1e-3)
    assert spread.r2 == plain.r2


def test_at_most_so_many_times_and_never_down():
    x = drawn(100, 2)
    solution = Fit(torch.tensor([[1.0, 0], [0, 1.0]]), torch.zeros(2), 0.5)
    wanted = torch.stack([100 * x[:, 0], 0.1 * x[:, 1]], 1)
    torch.testing.assert_close(with_spread(solution, x, wanted, most=3).weight, torch.tensor([[3.0, 0], [0, 1.0]]))


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
