"""Discrepancies of distributions: against loops over pairs, their expectations, their cost, and whole trainings."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from support.runs import settings, train, training, with_source, write_nets
from support.two_domains import flops, fresh, sides
from support.two_processes import SAME, distance, weights
from support.two_processes import launch as launch_runs

from netgraft.errors import UsageError
from netgraft.finetune.toolbox import mmd

ESTIMATORS = ["linear", "unbiased", "biased"]
GAUSSIANS = [1 / 8, 1 / 4, 1 / 2, 1, 2]


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def launch(folder, file, world, worker):
    """Run the script in so many gloo processes, as torchrun starts them."""
    (folder / "kernels.py").write_text(worker)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in more.items() if world > 1}
        started.append(subprocess.Popen([sys.executable, "kernels.py", str(file)], cwd=folder, env=env))
    assert [process.wait(timeout=600) for process in started] == [0] * world


def draw(*shapes, seed=0, shift=3.0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(shift * i, 1 + i, shape)) for i, shape in enumerate(shapes)]


def slow(kernel, s, t, estimator):
    """The estimators as they are written in the papers, pair by pair; ``kernel`` takes two images' numbers."""
    n, m = len(s), len(t)
    if estimator == "linear":
        h = []
        for i in range(0, min(n, m) - 1, 2):
            h.append(kernel(s[i], s[i + 1]) + kernel(t[i], t[i + 1]) - kernel(s[i], t[i + 1]) - kernel(s[i + 1], t[i]))
        return sum(h) / len(h)
    skip = estimator == "unbiased"
    ss = sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j or not skip)
    tt = sum(kernel(a, b) for i, a in enumerate(t) for j, b in enumerate(t) if i != j or not skip)
    st = sum(kernel(a, b) for a in s for b in t)
    return ss / (n * (n - skip)) + tt / (m * (m - skip)) - 2 * st / (n * m)


def width(s, t):
    both = np.concatenate([s, t])
    return cdist(both, both, "sqeuclidean").mean()


# ----------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [(6, 6), (7, 5)])
def test_multi_kernel(estimator, sizes):
    s, t = draw((sizes[0], 4), (sizes[1], 4))
    mean = width(s.numpy(), t.numpy())

    def kernel(a, b):
        return sum(np.exp(-((a - b) ** 2).sum() / (2 * factor * mean)) for factor in GAUSSIANS)

    found = mmd.mmd([s], [t], [mmd.gaussians()], estimator)
    assert float(found) == pytest.approx(slow(kernel, s.numpy(), t.numpy(), estimator), abs=1e-9)
    single = mmd.mmd([s.float()], [t.float()], [mmd.gaussians()], estimator)
    assert float(single) == pytest.approx(float(found), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_joint(estimator):
    """Pairs of (features, probabilities): the product of both kernels."""
    fs, ft, ls, lt = draw((6, 4), (6, 4), (6, 3), (6, 3), shift=0.5)
    ps, pt = ls.softmax(1), lt.softmax(1)
    mean = width(fs.numpy(), ft.numpy())

    def kernel(a, b):
        (f, p), (g, q) = a, b
        one = sum(np.exp(-np.sum((f - g) ** 2) / (2 * factor * mean)) for factor in GAUSSIANS)
        return one * np.exp(-np.sum((p - q) ** 2) / (2 * 0.92**2))

    s, t = (list(zip(f.numpy(), p.numpy(), strict=True)) for f, p in ((fs, ps), (ft, pt)))
    found = mmd.mmd([fs, ps], [ft, pt], [mmd.gaussians(), mmd.gaussian(0.92)], estimator)
    assert float(found) == pytest.approx(slow(kernel, s, t, estimator), abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [(6, 6), (7, 5)])
def test_linear_kernel(estimator, sizes):
    s, t = draw((sizes[0], 4), (sizes[1], 4))
    found = mmd.linear_mmd(s, t, estimator)
    assert float(found) == pytest.approx(slow(np.dot, s.numpy(), t.numpy(), estimator), abs=1e-9)
    if estimator == "biased":
        torch.testing.assert_close(found, (s.mean(0) - t.mean(0)).norm() ** 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_takes_widths_as_constants(estimator):
    s, t = (x.requires_grad_() for x in draw((6, 4), (6, 4)))
    mean = width(s.detach().numpy(), t.detach().numpy())

    def kernel(a, b):
        return sum(torch.exp(-((a - b) ** 2).sum() / (2 * factor * mean)) for factor in GAUSSIANS)

    mine = torch.autograd.grad(mmd.mmd([s], [t], [mmd.gaussians()], estimator), (s, t))
    theirs = torch.autograd.grad(slow(kernel, s, t, estimator), (s, t))
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


def test_far_from_the_origin_in_single_precision():
    """Squared distances by products would cancel: the samples' middle is subtracted."""
    s, t = draw((32, 8), (32, 8), shift=1.0)
    near = mmd.mmd([s], [t], [mmd.gaussians()])
    far = mmd.mmd([(s + 1000).float()], [(t + 1000).float()], [mmd.gaussians()])
    assert float(far) == pytest.approx(float(near), abs=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("which", ["kernels", "linear"])
def test_equal_distributions_have_none_in_expectation(estimator, which):
    rng = np.random.default_rng(0)
    call = mmd.linear_mmd if which == "linear" else lambda s, t, e: mmd.mmd([s], [t], [mmd.gaussian(2.0)], e)
    draws = [call(*torch.from_numpy(rng.normal(size=(2, 10, 3))), estimator) for _ in range(1500)]
    values = torch.stack(draws)
    error = float(values.std()) / len(values) ** 0.5
    if estimator == "biased":
        assert values.min() >= 0
        assert float(values.mean()) > 20 * error
    else:
        assert abs(float(values.mean())) < 3 * error
        assert (values < 0).double().mean() > 0.25


@pytest.mark.parametrize("flush", [False, True])
def test_one_sample_twice_and_constants(flush):
    """Also where the processor takes subnormal numbers for 0, as some libraries make it do."""
    torch.set_flush_denormal(flush)
    try:
        check_one_sample_twice_and_constants()
    finally:
        torch.set_flush_denormal(False)


def check_one_sample_twice_and_constants():
    (s,) = draw((9, 4))
    assert abs(float(mmd.mmd([s], [s.clone()], [mmd.gaussians()], "biased"))) < 1e-12
    assert float(mmd.linear_mmd(s, s.clone())) == 0
    same = torch.ones(4, 3, requires_grad=True)
    found = mmd.mmd([same], [torch.ones(4, 3)], [mmd.gaussians()])
    (gradient,) = torch.autograd.grad(found, same)
    assert float(found.detach()) == 0
    assert gradient.abs().max() == 0


def test_other_distributions_are_far():
    """Means apart, and with equal means variances apart, which DDC's linear kernel does not see."""
    rng = np.random.default_rng(0)
    s, moved, wide = (torch.from_numpy(rng.normal(m, d, (400, 3))) for m, d in ((0, 1), (1, 1), (0, 2)))
    for other in (moved, wide):
        assert mmd.mmd([s], [other], [mmd.gaussians()]) > 0.1
    assert mmd.linear_mmd(s, moved, "unbiased") > 2
    assert abs(mmd.linear_mmd(s, wide, "unbiased")) < 0.1


@pytest.mark.parametrize("estimator", ["linear", "unbiased"])
def test_one_image_is_too_few(estimator):
    s, t = draw((1, 3), (1, 3))
    for call in (lambda: mmd.linear_mmd(s, t, estimator), lambda: mmd.mmd([s], [t], [mmd.gaussians()], estimator)):
        with pytest.raises(UsageError, match="two images"):
            call()


# ---------------------------------------------------------------------------------------------------------- the methods


def first_losses(folder, method, set_=None, **more):
    running, batch = fresh(folder, method=method, set=set_ or {}, **more)
    update = next(running.prepared.method.epoch(running.run, [batch], running.parts))
    found, _, _ = sides(folder, **more)
    return update.losses, found


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("method", ["ddc", "dan", "jan"])
def test_losses_of_the_first_batch(method, estimator, folder):
    losses, seen = first_losses(folder, method, {"estimator": estimator, "weight": 2.0})
    (fs, ls), (ft, lt) = ([side[n].detach().double() for n in ("features", "logits")] for side in seen[:2])

    def gaussians(s, t):
        mean = width(s.numpy(), t.numpy())
        return lambda a, b: sum(np.exp(-((a - b) ** 2).sum() / (2 * factor * mean)) for factor in GAUSSIANS)

    if method == "ddc":
        expected = slow(np.dot, fs.numpy(), ft.numpy(), estimator)
    elif method == "dan":
        expected = sum(slow(gaussians(s, t), s.numpy(), t.numpy(), estimator) for s, t in ((fs, ft), (ls, lt)))
    else:
        features = gaussians(fs, ft)
        s, t = (list(zip(f.numpy(), p.softmax(1).numpy(), strict=True)) for f, p in ((fs, ls), (ft, lt)))
        expected = slow(
            lambda a, b: features(a[0], b[0]) * np.exp(-((a[1] - b[1]) ** 2).sum() / (2 * 0.92**2)), s, t, estimator
        )
    assert float(losses["mmd"].detach()) == pytest.approx(2 * expected, abs=2e-6)
    torch.testing.assert_close(losses["task"], seen.task)


@pytest.mark.parametrize("estimator", ["linear", "unbiased"])
def test_adversarial_kernels(folder, estimator):
    """JAN-A: theta ascends what the network descends; at first both are those of JAN."""
    options = {"adversarial": True, "estimator": estimator, "weight": 2.0}
    plain, _ = first_losses(folder, "jan", {"estimator": estimator, "weight": 2.0})
    running, batch = fresh(folder, method="jan", set=options)
    theta = running.parts["theta"].module
    first = next(running.prepared.method.epoch(running.run, [batch], running.parts)).losses
    torch.testing.assert_close(first["mmd"], plain["mmd"], atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in theta.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    running.run.begin(batch)
    update = next(running.prepared.method.epoch(running.run, [batch], running.parts))
    assert update.parts == ("target", "theta")
    net = running.run.target_module
    seen, _, run = sides(folder)
    read = [[(side[n] if n == "features" else side[n].softmax(1)) for n in ("features", "logits")] for side in seen[:2]]
    (fs, ps), (ft, pt) = ([x @ layer.weight.T + layer.bias for x, layer in zip(r, theta, strict=True)] for r in read)
    told = 2 * mmd.mmd([fs, ps], [ft, pt], [mmd.gaussians(), mmd.gaussian(0.92)], estimator)
    torch.testing.assert_close(update.losses["mmd"], told, atol=1e-6, rtol=0)
    mine = torch.autograd.grad(update.losses["mmd"], [net.last.weight, *theta.parameters()])
    theirs = torch.autograd.grad(told, [run.target_module.last.weight, *theta.parameters()])
    assert all(float(g.abs().max()) > 0 for g in (theirs[0], theirs[1], theirs[3]))
    torch.testing.assert_close(mine[0], theirs[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine[1:], [-g for g in theirs[1:]], atol=1e-6, rtol=1e-4)


def test_rate_of_theta(folder):
    running, _ = fresh(folder, method="jan", set={"adversarial": True, "theta_rate": 0.3}, lr=0.02)
    assert running.run.optimizer("theta").param_groups[0]["lr"] == pytest.approx(0.006)
    assert running.run.optimizer("target").param_groups[0]["lr"] == pytest.approx(0.02)


def test_weight_grows(folder):
    losses, _ = first_losses(folder, "dan", {"steepness": 10.0})
    assert float(losses["mmd"].detach()) == 0


WORKER = """
import sys
import torch
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.engine.processes import Processes

processes = Processes("cpu")
x, y, w = torch.load(sys.argv[1], weights_only=True)
low, high = processes.rank * 8, processes.rank * 8 + 8 if processes.world > 1 else 16
w.requires_grad_()
found = {}
for estimator in ("linear", "unbiased", "biased"):
    s, t = mmd.gather(processes.gather, [(x[low:high] @ w).tanh(), (y[low:high] @ w).tanh()])
    for name, loss in (
        ("kernels", mmd.mmd([s], [t], [mmd.gaussians()], estimator)),
        ("joint", mmd.mmd([s, s.softmax(1)], [t, t.softmax(1)], [mmd.gaussians(), mmd.gaussian(0.92)], estimator)),
        ("linear", mmd.linear_mmd(s, t, estimator)),
    ):
        gradient = torch.autograd.grad(loss, w, retain_graph=True)
        found[f"{name} {estimator}"] = torch.cat([loss.detach().reshape(1), *processes.mean(gradient)[0]])
torch.save(found, f"{sys.argv[1]}.{processes.world}.{processes.rank}")
if processes.world > 1:
    torch.distributed.destroy_process_group()
"""


def test_kernels_are_of_the_batches_of_all_processes(tmp_path):
    """Losses and averaged gradients in two gloo processes of eight images each, and in one of sixteen."""
    rng = np.random.default_rng(0)
    file = tmp_path / "data.pt"
    torch.save([torch.from_numpy(rng.normal(size=shape)) for shape in ((16, 5), (16, 5), (5, 4))], file)
    launch(tmp_path, file, 2, worker=WORKER)
    launch(tmp_path, file, 1, worker=WORKER)
    one, *two = (torch.load(f"{file}.{end}", weights_only=True) for end in ("1.0", "2.0", "2.1"))
    assert len(one) == 9
    for name, expected in one.items():
        for found in two:
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)  # averaged in single precision


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """How far two processes are from one after two batches."""
    folder = write_nets(tmp_path_factory.mktemp("two"))
    runs = {
        f"{method} {bn}": {"method": method, "bn": bn} for method in ("ddc", "dan", "jan") for bn in ("eval", "sync")
    }
    runs = {name: SAME | {"lr": 2e-4, "epochs": 1, "samples_per_class": 4} | given for name, given in runs.items()}
    launch_runs(folder, {name: given | {"batch_size": 8} for name, given in runs.items()})
    ones = {n: train(with_source(folder, out=f"{folder}/one", batch_size=16, **g), force=True) for n, g in runs.items()}
    return {name: distance(one, weights(folder, name)) for name, (_, one) in ones.items()}


@pytest.mark.parametrize("bn", ["eval", "sync"])
@pytest.mark.parametrize("method", ["ddc", "dan", "jan"])
def test_two_processes_train_as_one(method, bn, trained):
    """A few steps: from random weights the gradients of MK-MMD are so large that rounding soon shows."""
    assert trained[f"{method} {bn}"] <= 1e-6


@pytest.mark.parametrize("method", ["ddc", "dan", "jan"])
def test_cost_is_that_of_both_batches(method, folder):
    """Two domains, two times plain training: 6 F; the kernels in linear time cost no product of matrices."""
    plain = flops(folder, "plain")
    assert flops(folder, method) == 2 * plain
    if method != "ddc":
        assert flops(folder, method, {"estimator": "unbiased"}) < 2.1 * plain


def test_settings_without_source_data_are_refused(folder):
    with pytest.raises(UsageError, match="--source-data"):
        training(settings(folder, method="dan"))
