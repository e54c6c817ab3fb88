"""L2T-GAN's sets of layers: which pair is matched, judged and compared, and the kernels of the comparison."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from support.runs import training, with_source, write_nets
from torch.nn.functional import interpolate

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.bilevel.layer_sets import LOGITS, compared, layers_of, numbers_of

PAIRS = (
    FeaturePair("s1", "a", (4, 6, 6), (3, 8, 8)),
    FeaturePair("s1", "b", (4, 6, 6), (3, 8, 8)),
    FeaturePair("s2", "b", (4, 6, 6), (3, 8, 8)),
    FeaturePair("s3", "c", (9, 6), (9, 2)),
    FeaturePair("s4", "d", (8,), (3,)),
)


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@pytest.mark.parametrize(
    ("text", "layers", "numbers"),
    [
        ("all", "abcd", (0, 1, 2, 3, 4)),
        ("general", "ab", (0, 1, 2)),
        ("middle", "c", (3,)),
        ("fc", "d", (4,)),
        ("middle,general", "cab", (0, 1, 2, 3)),
        (" b , d", "bd", (1, 2, 4)),
    ],
)
def test_sets(text, layers, numbers):
    assert layers_of(PAIRS, text, "gan_layers") == tuple(layers)
    assert numbers_of(PAIRS, text, "gan_layers") == numbers


def test_refusals():
    assert layers_of(PAIRS, "fc", "mmd_layers", more=[LOGITS]) == ("d", LOGITS)
    with pytest.raises(UsageError, match="not paired") as raised:
        numbers_of(PAIRS, "a,e", "gan_layers")
    assert "gan_layers: e" in str(raised.value)
    for pairs, text in ((PAIRS[:4], "fc"), (PAIRS, ","), (PAIRS[:1], "middle")):
        with pytest.raises(UsageError, match="no layer"):
            numbers_of(pairs, text, "match_layers")
    with pytest.raises(UsageError, match="equal widths"):
        compared(PAIRS, ["d"], {"s4": torch.zeros(2, 8)}, {"d": torch.zeros(2, 3)}, through_target=False)


def first(folder, **options):
    """A run, its first batch and update."""
    running = training(with_source(folder, method="l2t-gan", set=options, target_arg={"drop": 0.0}))
    set_train_mode(running.parts, bn="train")
    batch = to_device(next(running.prepared.loader.epoch(0)), running.run.device)
    running.run.begin(batch)
    updates = running.prepared.method.epoch(running.run, iter([batch]), running.parts)
    return running, batch, next(updates), updates


def test_each_loss_in_its_layers(folder):
    """Adversaries in the first pair, matching in the last: each loss by hand, and which layers its gradient reaches."""
    running, batch, update, updates = first(folder, gan_layers="general", match_layers="middle", beta=2.0, lam=0.3)
    run, parts = running.run, {name: part.module for name, part in running.parts.items()}
    low, high = {p.target for p in run.pairs[:-1]}, run.pairs[-1].target
    assert len(run.pairs) > 1
    assert len(parts["discriminators"].each) == len(low) == (len(run.pairs) + 1) // 2 if len(run.pairs) > 2 else 1
    assert len(parts["weights"].channels) == len(run.pairs) - len(low)
    there, here = run.source(batch).at, run.target(batch).at
    adapted = parts["adapters"](here)
    expected = 0.0
    for pair, one in zip(run.pairs, adapted, strict=True):
        if pair.target not in low:
            goal = interpolate(there[pair.source], size=pair.target_shape[1:], mode="bilinear", align_corners=False)
            expected = expected + 2 * F.mse_loss(one, goal)
    torch.testing.assert_close(update.losses["fm"], expected, atol=1e-6, rtol=1e-5)
    parts["discriminators"].eval()
    judged = [one for pair, one in zip(run.pairs, adapted, strict=True) if pair.target in low]
    logits = [d(x) for d, x in zip(parts["discriminators"].each, judged, strict=True)]
    torch.testing.assert_close(update.losses["gan"], -0.3 * sum(F.logsigmoid(z).mean() for z in logits))
    maps = dict(zip(parts["adapters"].layers, parts["adapters"].maps, strict=True))
    for name, reached in (("gan", low), ("fm", {p.target for p in run.pairs} - low)):
        wrt = [maps[layer].weight for layer in maps]
        found = torch.autograd.grad(update.losses[name], wrt, retain_graph=True, allow_unused=True)
        assert {layer for layer, g in zip(maps, found, strict=True) if g is not None} == reached, name
    running.perform(update, 1.0)
    seen = [set(later.losses) for later in updates if running.perform(later, 1.0) is None]
    assert {"meta"} in seen  # the look-ahead takes the same sets
    assert high not in low


def test_layers_without_any_loss_have_no_adapter(folder):
    running, *_ = first(folder, gan_layers="general", match_layers="general")
    adapters = running.parts["adapters"].module
    assert set(adapters.layers) == {p.target for p in running.run.pairs[: (len(running.run.pairs) + 1) // 2]}
    whole, *_ = first(folder)
    assert set(whole.parts["adapters"].module.layers) == {p.target for p in whole.run.pairs}


def gaussians(s, t, estimator):
    both = np.concatenate([s, t])
    squared, n = cdist(both, both, "sqeuclidean"), len(s)
    k = sum(np.exp(-squared / (2 * f * squared.mean())) for f in (1 / 8, 1 / 4, 1 / 2, 1, 2))
    if estimator == "biased":
        return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()
    off = ~np.eye(n, dtype=bool)
    return k[:n, :n][off].mean() + k[n:, n:][off].mean() - 2 * k[:n, n:].mean()


@pytest.mark.parametrize("mode", ["paper", "ddc"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_kernels_and_layers_of_the_mmd(folder, mode, estimator):
    layers = "logits,middle" if mode == "ddc" else "fc"
    options = {"gamma": 0.7, "mmd_mode": mode, "mmd_kernel": "gaussians", "mmd_estimator": estimator}
    running, batch, update, _ = first(folder, mmd_layers=layers, **options)
    run = running.run
    there = run.source(batch.source) if mode == "paper" else run.target(batch.source)
    here = run.target(batch)
    each = [(there.logits, here.logits)]
    if mode == "ddc":
        middle = [p.target for p in run.pairs[(len(run.pairs) + 1) // 2 :]]
        each += [(there.at[name].mean((2, 3)), here.at[name].mean((2, 3))) for name in middle]
        assert middle
    expected = sum(gaussians(*(x.detach().double().numpy() for x in both), estimator) for both in each)
    assert float(update.losses["mmd"].detach()) == pytest.approx(0.7 * expected, abs=1e-5)
    assert torch.autograd.grad(update.losses["mmd"], run.target_module.head.weight)[0].abs().max() > 0


def test_unequal_widths_are_refused(folder):
    with pytest.raises(UsageError, match="equal widths"):
        first(folder, gamma=0.7, mmd_layers="general")


def test_unknown_layers_are_refused_before_training(folder):
    for option in ("gan_layers", "match_layers", "mmd_layers"):
        with pytest.raises(UsageError, match="not paired"):
            training(with_source(folder, method="l2t-gan", set={option: "nowhere"}))
