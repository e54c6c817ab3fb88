"""The residual transfer network's losses, against the formulas written down a second time."""

import numpy as np
import pytest
import torch
from support.runs import write_nets
from support.two_domains import fresh

from netgraft.finetune.protocol import TARGET


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def first_update(folder, options=None):
    running, batch = fresh(folder, method="rtn", set=options or {})
    residual = running.parts["residual"].module
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    sides = running.prepared.method.sides(running.run, batch, ("features", "logits"))
    update = next(iter(running.prepared.method.epoch(running.run, [batch], running.parts)))
    arrays = [{k: v.detach().double().numpy() for k, v in side.items()} for side in (sides.source, sides.target)]
    return update, batch, arrays, {k: v.detach().double().numpy() for k, v in residual.state_dict().items()}


def log_softmax(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_the_task_is_that_of_the_classifier_with_its_residual(folder):
    update, batch, (source, _), weights = first_update(folder)
    hidden = np.maximum(source["logits"] @ weights["inner.weight"].T + weights["inner.bias"], 0)
    logits = source["logits"] + hidden @ weights["outer.weight"].T + weights["outer.bias"]
    expected = -log_softmax(logits)[np.arange(len(logits)), batch.source.y.numpy()].mean()
    assert update.losses["task"].item() == pytest.approx(expected, abs=1e-5)


def test_the_entropy_is_of_the_target_s_own_predictions(folder):
    update, _, (_, target), _ = first_update(folder, {"entropy": 0.7})
    log_p = log_softmax(target["logits"])
    assert update.losses["entropy"].item() == pytest.approx(0.7 * -(np.exp(log_p) * log_p).sum(1).mean(), abs=1e-5)


def test_the_discrepancy_is_of_features_times_logits(folder):
    update, _, sides, _ = first_update(folder, {"weight": 2.0, "estimator": "biased"})
    fused = [np.stack([np.outer(f, g).ravel() for f, g in zip(s["features"], s["logits"], strict=True)]) for s in sides]
    both = np.concatenate(fused)
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    kernel = sum(np.exp(-squared / (2 * factor * squared.mean())) for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2))
    n = len(fused[0])
    expected = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    assert update.losses["mmd"].item() == pytest.approx(2 * expected, rel=1e-4)


def test_both_classifiers_are_one_at_first_and_both_learn(folder):
    running, batch = fresh(folder, method="rtn")
    residual = running.parts["residual"].module
    x = torch.randn(4, running.run.classes)
    assert torch.equal(residual(x), x)
    update = next(iter(running.prepared.method.epoch(running.run, [batch], running.parts)))
    assert update.parts == (TARGET, "residual")
    running.perform(update, 1.0)
    assert not torch.equal(residual(x), x)
