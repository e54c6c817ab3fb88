"""Weights of kernels: the programme against SciPy's solvers, its statistics against loops, and DAN with them."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from scipy.spatial.distance import cdist
from support.runs import Killed, Killer, other_folder, same, train, training, with_source, write_nets
from support.two_domains import fresh, sides

from netgraft.errors import UsageError
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.kernel_weights import KernelStatistics, KernelWeights, best_weights, statistics


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def some(seed, kernels=5, quads=12):
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(kernels, quads)) * rng.uniform(0.01, 0.3, (kernels, 1))
    return rng.normal(0.05, 0.1, kernels), h @ h.T / quads


@pytest.mark.parametrize("seed", range(12))
def test_programme(seed):
    """Against SLSQP on the programme as it is written, and against least squares without negative numbers."""
    d, spread = some(seed)
    assert (d > 0).any()
    matrix = spread + 1e-3 * np.eye(5)
    found = best_weights(KernelStatistics(torch.from_numpy(d), torch.from_numpy(spread))).numpy()
    assert found.mean() == pytest.approx(1, abs=1e-12)
    beta = found / (d @ found)
    assert beta.min() >= 0
    root = np.linalg.cholesky(matrix)
    theirs, _ = nnls(root.T, np.linalg.solve(root, d))
    np.testing.assert_allclose(beta, theirs / (d @ theirs), atol=1e-6 * beta.max())
    start = np.where(d > 0, 1.0, 0.0)
    solved = minimize(
        lambda b: b @ matrix @ b,
        start / (d @ start),
        jac=lambda b: 2 * matrix @ b,
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda b: d @ b - 1, "jac": lambda _: d},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert beta @ matrix @ beta == pytest.approx(solved.fun, rel=1e-6)
    np.testing.assert_allclose(beta, solved.x, atol=1e-4 * beta.max())


def test_some_solutions_lie_on_the_border():
    """Or the sign would not matter."""
    signs = []
    for seed in range(12):
        d, spread = some(seed)
        free = np.linalg.solve(spread + 1e-3 * np.eye(5), d)
        signs.append(bool((free < 0).any()))
    assert any(signs)


def test_without_any_distance_all_weigh_the_same():
    d, spread = some(0)
    found = best_weights(KernelStatistics(torch.from_numpy(-np.abs(d)), torch.from_numpy(spread)))
    assert torch.equal(found, torch.ones(5, dtype=torch.float64))


def test_statistics():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(11, 3)), rng.normal(1, 2, (13, 3))
    both = np.concatenate([s, t])
    mean = cdist(both, both, "sqeuclidean").mean()
    h = []
    for factor in mmd.FACTORS:
        k = lambda a, b, f=factor: np.exp(-((a - b) ** 2).sum() / (2 * f * mean))  # noqa: E731
        pairs = [(s[i], s[i + 1], t[i], t[i + 1]) for i in range(0, 10, 2)]
        h.append([k(a, b) + k(c, d) - k(a, d) - k(b, c) for a, b, c, d in pairs])
    h = np.array(h)
    found = statistics(torch.from_numpy(s), torch.from_numpy(t))
    np.testing.assert_allclose(found.mean.numpy(), h.mean(1), atol=1e-12)
    spread = sum(np.outer(h[:, i] - h[:, i + 1], h[:, i] - h[:, i + 1]) for i in (0, 2)) / 2
    np.testing.assert_allclose(found.spread.numpy(), spread, atol=1e-12)
    for estimator in ("linear", "unbiased"):
        whole = mmd.mmd([torch.from_numpy(s)], [torch.from_numpy(t)], [mmd.gaussians(weights=torch.ones(5))], estimator)
        plain = mmd.mmd([torch.from_numpy(s)], [torch.from_numpy(t)], [mmd.gaussians()], estimator)
        assert float(whole) == float(plain)
    assert float(mmd.mmd([torch.from_numpy(s)], [torch.from_numpy(t)], [mmd.gaussians()], "linear")) == pytest.approx(
        h.sum(0).mean(), abs=1e-12
    )
    with pytest.raises(UsageError, match="four images"):
        statistics(torch.zeros(3, 2), torch.zeros(3, 2))


def test_sums_of_an_epoch():
    weights, each = KernelWeights(1), [some(seed) for seed in range(3)]
    for d, spread in each:
        weights.add([KernelStatistics(torch.from_numpy(d), torch.from_numpy(spread))])
    weights.solve()
    d, spread = (torch.from_numpy(np.mean([one[i] for one in each], 0)) for i in (0, 1))
    torch.testing.assert_close(weights.each[0], best_weights(KernelStatistics(d, spread)).float())
    assert not any(float(sums.sum()) for sums in (weights.means, weights.spreads, weights.batches))


# ------------------------------------------------------------------------------------------------------------------ dan


@pytest.mark.parametrize("estimator", ["linear", "unbiased"])
def test_loss_with_weights_of_the_batch(folder, estimator):
    """The sum over kernels of weight times the MMD under this kernel alone; weights are constants."""
    running, batch = fresh(folder, method="dan", set={"kernels": "batch", "estimator": estimator, "epsilon": 0.01})
    update = next(running.prepared.method.epoch(running.run, [batch], running.parts))
    seen, _, _ = sides(folder)
    expected = 0.0
    for name in ("features", "logits"):
        s, t = seen.source[name], seen.target[name]
        weights = best_weights(statistics(s, t), 0.01)
        alone = [mmd.mmd([s], [t], [mmd.gaussians([factor])], estimator) for factor in mmd.FACTORS]
        assert weights.std() > 0.1
        expected = expected + sum(float(w) * value for w, value in zip(weights, alone, strict=True))
    torch.testing.assert_close(update.losses["mmd"], expected, atol=2e-6, rtol=0)
    assert update.parts == ("target",)
    wrt = running.run.target_module.last.weight
    (gradient,) = torch.autograd.grad(update.losses["mmd"], wrt)
    assert gradient.abs().max() > 0


def test_weights_of_an_epoch_serve_the_next(folder):
    """1 in the first; then by the means over its batches. Killed within an epoch it goes on with the same sums."""
    chosen = with_source(folder, method="dan", set={"kernels": "epoch", "epsilon": 0.01}, recovery_interval=2, lam=0.1)
    running = training(other_folder(chosen, "by hand"))
    seen = []
    module = running.parts["kernels"].module
    add, solve = module.add, module.solve
    module.add = lambda found: (seen.append((module.each.clone(), found)), add(found))
    module.solve = lambda epsilon: (solve(epsilon), seen.append(module.each.clone()))
    (folder / "by hand").mkdir()
    running.all()
    assert all(torch.equal(used, torch.ones(2, 5)) for used, _ in seen[:5])
    for layer in (0, 1):
        mean, spread = (torch.stack([found[layer][i] for _, found in seen[:5]]).mean(0) for i in (0, 1))
        torch.testing.assert_close(seen[5][layer], best_weights(KernelStatistics(mean, spread), 0.01).float())
    assert all(torch.equal(used, seen[5]) for used, _ in seen[6:11])
    _, whole = train(other_folder(chosen, "whole"))
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(3))
    result, resumed = train(killed, resume=True)
    assert result.resumed
    assert same(whole, resumed)
