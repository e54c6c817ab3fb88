"""Penalties of the distance from the start: values by NumPy, gradients by finite differences, groups by autograd."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs import train, training, with_source, write_nets
from support.updates import EXACT, STILL, array, first_update, moved
from torch import nn

from netgraft.finetune.engine.gradients import Gradients
from netgraft.finetune.methods.group_lasso_sp import GroupLassoSP
from netgraft.finetune.toolbox.starting_point import split
from netgraft.finetune.toolbox.terms import group_penalty, l1_penalty, l2_penalty

SHAPES = [(3, 2, 2, 2), (4, 3), (5,), ()]


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def l2(away, scale):
    return sum(0.35 * ((s * d) ** 2).sum() for d, s in zip(away, scale, strict=True))


def l1(away, scale):  # noqa: ARG001
    return sum(0.7 * np.abs(d).sum() for d in away)


def group(away, scale):  # noqa: ARG001
    rows = [d.reshape(len(d), -1) if d.ndim else d.reshape(1, 1) for d in away]
    return sum(0.7 * np.sqrt(r.shape[1]) * np.linalg.norm(r, axis=1).sum() for r in rows)


def differences(formula, away, scale, step=1e-6):
    """Central differences of ``formula`` by every number."""
    found = []
    for d in away:
        flat, slopes = d.reshape(-1), np.empty(d.size)
        for i, value in enumerate(flat.copy()):
            sides = []
            for moved_to in (value + step, value - step):
                flat[i] = moved_to
                sides.append(formula(away, scale))
            flat[i] = value
            slopes[i] = (sides[0] - sides[1]) / (2 * step)
        found.append(slopes.reshape(d.shape))
    return found


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("formula", [l2, l1, group])
def test_values_and_gradients(formula, last):
    """In float64, with memory in either order, and memory for the result that has something else in it."""
    weights, start, scale = drawn(1), drawn(2), [s.abs() for s in drawn(3)]
    if last:
        weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    out = [torch.full_like(w, 9.0) for w in weights]
    if formula is l2:
        penalty = l2_penalty(weights, 0.7, start, scale=scale, out=out)
    else:
        penalty = {l1: l1_penalty, group: group_penalty}[formula](weights, 0.7, start, out=out)
    away = [np.array(array(w) - array(s), order="C") for w, s in zip(weights, start, strict=True)]
    scales = [array(s) for s in scale]
    assert float(penalty.value) == pytest.approx(formula(away, scales), rel=1e-12)
    for gradient, slope in zip(penalty.gradients, differences(formula, away, scales), strict=True):
        np.testing.assert_allclose(array(gradient), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", [l1_penalty, group_penalty])
def test_at_the_start_there_is_no_pull(penalty):
    """The subgradient is 0 where nothing has moved, and is nowhere else changed by it."""
    weights, start = drawn(1), drawn(2)
    weights[0][1] = start[0][1]
    found = penalty(weights, 0.7, start)
    assert found.gradients[0][1].eq(0).all()
    assert found.gradients[0][0].ne(0).all()
    still = penalty(start, 0.7, start)
    assert float(still.value) == 0
    assert all(g.eq(0).all() for g in still.gradients)


@pytest.mark.parametrize("penalty", [l1_penalty, l2_penalty, group_penalty])
def test_of_no_weights(penalty):
    assert float(penalty([], 1.0).value) == 0


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (4, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
    "linear": (nn.Linear(4, 6), (4,)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_group_is_what_an_output_channel_depends_on(kind, folder):
    """Which weights that are, autograd says."""
    layer, shape = LAYERS[kind]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    each = [torch.autograd.grad(out[:, c].square().sum(), layer.weight, retain_graph=True)[0] != 0 for c in range(6)]
    assert torch.stack(each).sum(0).eq(1).all()
    running = training(with_source(folder, method="group-lasso-sp"))
    running.run.target_module = layer
    start = torch.zeros_like(layer.weight)
    pull = GroupLassoSP(alpha=0.3).pull(running.run, {}, {"weight": layer.weight}, [start])
    weight = array(layer.weight)
    lengths = [np.sqrt(int(mask.sum())) * np.linalg.norm(weight[mask.numpy()]) for mask in each]
    assert float(pull().value) == pytest.approx(0.3 * sum(lengths), **EXACT)
    (gradient,) = pull().gradients
    for mask in each:
        piece = array(gradient)[mask.numpy()]
        assert np.linalg.norm(piece) == pytest.approx(0.3 * np.sqrt(piece.size), **EXACT)


def omega_l1(p, start, fisher):  # noqa: ARG001
    return 0.3 * (p - start).abs().sum()


def omega_group(p, start, fisher):  # noqa: ARG001
    away = (p - start).flatten(1) if p.dim() > 1 else (p - start)[:, None]
    return 0.3 * away.shape[1] ** 0.5 * away.square().sum(1).sqrt().sum()


def omega_fisher(p, start, fisher):
    return 0.15 * (fisher * (p - start).square()).sum()


@pytest.mark.parametrize("scope", ["weights", "all"])
@pytest.mark.parametrize(
    ("method", "omega"), [("l1-sp", omega_l1), ("group-lasso-sp", omega_group), ("l2-sp-fisher", omega_fisher)]
)
def test_methods_and_their_gradients(folder, method, omega, scope):
    """Away from the start, against autograd on the paper's formula with the start read from the file."""
    running = training(with_source(folder, method=method, set={"alpha": 0.3, "beta": 0.7, "scope": scope}, **STILL))
    running.prepare()
    moved(running)
    start = safetensors.torch.load_file(folder / "init.safetensors")
    named = dict(running.run.target_module.named_parameters())
    chosen = {n: p for n, p in named.items() if scope == "all" or p.ndim > 1}
    old = [n for n in chosen if not n.startswith("head.")]
    fisher = dict.fromkeys(old)
    if method == "l2-sp-fisher":
        fisher = dict(zip(old, running.parts["fisher"].module, strict=True))
    terms = [omega(p, start[n], fisher[n]) if n in old else 0.35 * p.square().sum() for n, p in chosen.items()]
    expected = torch.autograd.grad(sum(terms), list(chosen.values()))
    update = first_update(running)
    assert sum(float(p.value) for p in update.penalties.values()) == pytest.approx(float(sum(terms).detach()), rel=1e-6)
    assert not any(g.requires_grad for p in update.penalties.values() for g in p.gradients)
    Gradients(running.processes, running.prepared.rule)(replace(update, losses={}), list(named.values()))
    for name, parameter in named.items():
        assert (parameter.grad is not None) == (name in chosen)
    for parameter, gradient in zip(chosen.values(), expected, strict=True):
        assert gradient.norm() > 0
        assert (parameter.grad - gradient).norm() <= 1e-6 * gradient.norm()


def test_split(folder):
    running = training(with_source(folder, method="l1-sp"))
    old, new = split(running.run)
    assert set(new) == {"head.weight", "head.bias"}
    assert set(old) | set(new) == {name for name, _ in running.run.target_module.named_parameters()}
    old, new = split(running.run, "weights")
    assert set(old) == {"stem.weight", "body.weight", "last.weight"}
    assert set(new) == {"head.weight"}
    running.run.target_module.body.weight.requires_grad_(False)
    assert "body.weight" not in split(running.run).old


@pytest.mark.parametrize("method", ["l1-sp", "group-lasso-sp"])
def test_strong_ones_hold_nearer_to_the_start(method, folder):
    start = safetensors.torch.load_file(folder / "init.safetensors")
    away = []
    for alpha in (0.0, 0.02):
        chosen = with_source(folder, method=method, set={"alpha": alpha}, out=str(folder / str(alpha)))
        _, weights = train(chosen)
        away.append(float((weights["body.weight"] - start["body.weight"]).norm()))
    assert away[1] < 0.7 * away[0]
