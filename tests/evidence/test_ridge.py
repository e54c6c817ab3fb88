"""The probe's regression against dense solves, scikit-learn and brute force."""

import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from netgraft.evidence.ridge import GRID, fit_ridge

SHAPES = [(30, 8), (12, 40), (20, 20), (5, 3)]


def problem(n, p, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 9, p) + 4
    y = x[:, :1] * torch.arange(1.0, k + 1) + torch.randn(n, k, generator=generator, dtype=torch.float64)
    return x, y


def standardised(x):
    return (x - x.mean(0)) / x.std(0, correction=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 300.0])
def test_equals_a_dense_solve_and_scikit_learn(shape, penalty):
    x, y = problem(*shape)
    ridge = fit_ridge(x, y, [penalty])
    z = standardised(x)
    dense = torch.linalg.solve(z.T @ z + penalty * torch.eye(shape[1], dtype=z.dtype), z.T @ (y - y.mean(0)))
    torch.testing.assert_close(ridge.weight, dense, rtol=1e-7, atol=1e-9)
    theirs = Ridge(alpha=penalty).fit(z.numpy(), y.numpy())
    new = x + 1
    expected = torch.from_numpy(theirs.predict(((new - x.mean(0)) / x.std(0, correction=0)).numpy()))
    torch.testing.assert_close(ridge(new), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_left_out_errors_equal_brute_force(shape):
    """Leaving one out and fitting again, intercept included, on features standardised once."""
    x, y = problem(*shape)
    penalties = [1e-2, 1.0, 50.0]
    z = standardised(x).numpy()
    for penalty, found in zip(penalties, fit_ridge(x, y, penalties).errors, strict=True):
        squares = []
        for i in range(len(z)):
            rest = [j for j in range(len(z)) if j != i]
            model = Ridge(alpha=penalty).fit(z[rest], y.numpy()[rest])
            squares.append((model.predict(z[i : i + 1])[0] - y.numpy()[i]) ** 2)
        assert found == pytest.approx(sum(map(sum, squares)) / y.numel(), rel=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_chooses_the_penalty_of_scikit_learn(shape):
    x, y = problem(*shape)
    penalties = [10.0**i for i in range(-4, 5)]
    theirs = RidgeCV(alphas=penalties).fit(standardised(x).numpy(), y.numpy())
    ours = fit_ridge(x, y, penalties)
    assert ours.penalty == theirs.alpha_
    torch.testing.assert_close(ours.weight.T, torch.from_numpy(theirs.coef_), rtol=1e-6, atol=1e-8)


def test_both_gram_matrices_give_the_same():
    """One feature more than examples, or twice the examples: the same fit as the other way round."""
    x, y = problem(15, 14)
    padded = torch.cat([x, torch.full((15, 2), 3.0, dtype=x.dtype)], 1)  # constants carry nothing
    narrow, wide = fit_ridge(x, y), fit_ridge(padded, y)
    torch.testing.assert_close(wide.weight[:14], narrow.weight)
    assert wide.weight[14:].abs().max() == 0
    torch.testing.assert_close(wide.errors, narrow.errors)


def test_constant_features_and_new_scales():
    x, y = problem(20, 6)
    x[:, 2] = 1e6 + torch.arange(20) * 1e-4  # rounding of a constant
    ridge = fit_ridge(x, y)
    assert ridge.weight[2].abs().max() < 1e-20
    scaled = fit_ridge(x * torch.tensor([1, 10, 1, 0.1, 5, 1]) - 3, y)
    torch.testing.assert_close(scaled.weight, ridge.weight)
    assert len(ridge.errors) == len(GRID)
    nothing = fit_ridge(torch.ones(8, 3), y[:8])
    torch.testing.assert_close(nothing(torch.zeros(1, 3)), y[:8].mean(0, keepdim=True))
