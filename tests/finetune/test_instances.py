"""Weights of single images: the updates against loops, the classifier against scikit-learn, and what trains by them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from support.runs import Quiet, training, with_source, write_nets
from support.updates import STILL, array, first_update, number

from netgraft.errors import UsageError
from netgraft.finetune.engine.explain import explain
from netgraft.finetune.engine.loader import Loader, Views
from netgraft.finetune.toolbox.boosting import HIGHEST_ERROR, reweighted, source_factor
from netgraft.finetune.toolbox.density_ratio import density_ratio, fit_logistic
from netgraft.finetune.toolbox.domains import FEATURES, listening, pooled

EXACT = {"rtol": 1e-6, "atol": 1e-12}
PRECISELY = {"solver": "newton-cholesky", "tol": 1e-13, "max_iter": 1000}


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def looped(source, target, source_wrong, target_wrong, rounds):
    """One round of Fig. 1 of Dai et al., image by image."""
    error = sum(w * m for w, m in zip(target, target_wrong, strict=True)) / sum(target)
    beta_t = min(error, 0.49) / (1 - min(error, 0.49))
    beta = 1 / (1 + math.sqrt(2 * math.log(len(source)) / rounds))
    new = [w * beta**m for w, m in zip(source, source_wrong, strict=True)]
    new += [w * beta_t ** (-m) if m else w for w, m in zip(target, target_wrong, strict=True)]
    return np.array(new) / sum(new), error


# ------------------------------------------------------------------------------------------------------------- updates


@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("made", [np.asarray, torch.from_numpy])
def test_one_round_of_boosting(made, wrong):
    """Weights, for errors of 0, below and above one half; of arrays and of tensors."""
    random = np.random.default_rng(0)
    source, target = random.random(30), random.random(12)
    mistakes = (random.random(30) < 0.4).astype(float), (np.arange(12) < 12 * wrong).astype(float)
    new = reweighted(*map(made, (source, target, *mistakes)), source_factor(30, 7))
    expected, error = looped(source, target, *mistakes, rounds=7)
    np.testing.assert_allclose(np.concatenate([new.source, new.target]), expected, **EXACT)
    np.testing.assert_allclose(float(new.error), error, **EXACT)
    assert float(new.factor) <= HIGHEST_ERROR / (1 - HIGHEST_ERROR) + 1e-12
    assert (error == 0) == (wrong == 0)
    assert (error > 0.5) == (wrong > 0.5)


def domains(random, count=60):
    return random.normal(size=(count, 3)), random.normal(size=(2 * count, 3)) * [1, 2, 0.5] + [0.5, -1, 0]


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_logistic_classifier(penalty):
    random = np.random.default_rng(1)
    source, target = domains(random)
    x, y = np.concatenate([source, target]), np.arange(180) >= 60
    weights, bias = fit_logistic(torch.from_numpy(x), torch.from_numpy(y), penalty)
    theirs = LogisticRegression(C=1 / penalty, **PRECISELY).fit(x, y)
    np.testing.assert_allclose(weights, theirs.coef_[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(float(bias), theirs.intercept_[0], rtol=1e-6, atol=1e-9)
    p = 1 / (1 + np.exp(-(x @ weights.numpy() + float(bias))))  # the gradient, which is 0 at the only minimum
    assert np.abs(x.T @ (p - y) + penalty * weights.numpy()).max() < 1e-6
    assert abs((p - y).sum()) < 1e-6


def test_logistic_classifier_of_what_can_be_told_apart():
    """Far from the minimum a whole step of Newton's would go too far."""
    x = torch.tensor([[-40.0, 3.0], [-30.0, 1.0], [25.0, 2.0], [50.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([False, False, True, True])
    weights, bias = fit_logistic(x, y, 1e-4)
    p = torch.sigmoid(x @ weights + bias) - y.double()
    assert float((x.T @ p + 1e-4 * weights).abs().max()) < 1e-8
    with pytest.raises(UsageError, match="penalty"):
        fit_logistic(x, y, 0.0)


@pytest.mark.parametrize("most", [1.5, 1e9])
def test_density_ratio(most):
    random = np.random.default_rng(2)
    source, target = domains(random)
    both = np.concatenate([source, target])
    both = (both - both.mean(0)) / both.std(0)
    theirs = LogisticRegression(C=0.5, **PRECISELY).fit(both, np.arange(180) >= 60)
    expected = []
    for row in both[:60]:
        p_source, p_target = theirs.predict_proba(row[None])[0]
        expected.append(min(p_target / p_source * 60 / 120, most))
    found = density_ratio(torch.from_numpy(source), torch.from_numpy(target), penalty=2.0, most=most)
    np.testing.assert_allclose(found, np.array(expected) / np.mean(expected), rtol=1e-6)
    assert (max(expected) == most) == (most == 1.5)


def test_ratio_is_that_of_the_densities():
    """Of two normal distributions of variance 1 around 0 and 1 it is exp(x - 1/2), whatever the numbers of images."""
    random = np.random.default_rng(3)
    source, target = (
        torch.from_numpy(random.normal(size=(40000, 1))),
        torch.from_numpy(random.normal(1, size=(9000, 1))),
    )
    found = density_ratio(source, target, most=1e9)
    expected = torch.exp(source[:, 0] - 0.5)
    assert float((found / expected).log().abs().max()) < 0.25
    constant = torch.cat([source, torch.ones_like(source)], 1), torch.cat([target, torch.ones_like(target)], 1)
    torch.testing.assert_close(density_ratio(*constant, most=1e9), found)


# --------------------------------------------------------------------------------------------------------- every image


def test_every_image_once(folder):
    running = training(with_source(folder, method="tradaboost"))
    others = running.prepared.loader.others
    assert running.run.sizes == {"target": 80, **{name: len(views) for name, views in others.items()}}
    assert set(others) == {"source", "unlabelled"}
    whole = running.prepared.loader.target
    shares = [list(Loader(whole, 16, rank, 3).every_image("target", 0)) for rank in range(3)]
    ids = torch.cat([batch.ids for share in shares for batch in share])
    assert sorted(ids.tolist()) == list(range(80))
    for batch in running.run.every_image("target"):
        assert torch.equal(batch.x, whole.pixels.batch(batch.ids.tolist()))
        assert batch.y.tolist() == [whole.pictures.labels[i] for i in batch.ids.tolist()]
    assert all((batch.y == -1).all() for batch in running.run.every_image("unlabelled"))
    with pytest.raises(UsageError, match="sauce"):
        next(running.run.every_image("sauce"))


def test_every_image_as_the_epoch_shows_it(folder):
    running = training(with_source(folder, method="tradaboost", aug=True, views=2))
    views = running.prepared.loader.target
    assert isinstance(views, Views)
    for epoch, view in ((1, 1), (2, 0)):
        running.run.epoch = epoch
        batch = next(running.run.every_image("target"))
        assert batch.view == view
        assert torch.equal(batch.x, views.images(batch.ids.tolist(), view))


def test_weighted_task_loss(folder):
    running = training(with_source(folder, method="tradaboost", smoothing=0.1))
    batch = next(running.prepared.loader.epoch(0))
    seen = running.run.target(batch)
    weights = torch.rand(16)
    losses = [F.cross_entropy(z[None], y[None], label_smoothing=0.1) for z, y in zip(seen.logits, batch.y, strict=True)]
    expected = sum(float(w) * number(loss) for w, loss in zip(weights, losses, strict=True)) / 16
    assert number(running.run.task(seen, batch, weights)) == pytest.approx(expected, rel=1e-6)
    assert number(running.run.task(seen, batch, torch.ones(16))) == pytest.approx(
        number(running.run.task(seen, batch)), rel=1e-6
    )


# ------------------------------------------------------------------------------------------------------------- methods


def of_each(running, batch):
    """The network's cross-entropy for each image."""
    with torch.no_grad():
        return array(F.cross_entropy(running.run.target_module.eval()(batch.x), batch.y, reduction="none"))


@pytest.mark.parametrize("share", [None, 0.5])
def test_tradaboost_loss(folder, share):
    """Both losses together are the sum over all images of p_i l_i, as far as the batch tells."""
    running = training(with_source(folder, method="tradaboost", set={"target_share": share}, **STILL))
    random = np.random.default_rng(4)
    sizes, p = running.run.sizes, {}
    parts = running.parts["images"].module
    first = {name: array(parts[name].weights) for name in ("source", "target")}
    whole = share or sizes["target"] / (sizes["target"] + sizes["source"])
    np.testing.assert_allclose(first["target"], whole / sizes["target"], rtol=1e-6)
    np.testing.assert_allclose(first["source"], (1 - whole) / sizes["source"], rtol=1e-6)
    for name in first:
        p[name] = random.random(sizes[name]).astype("float32")
        parts[name].set(torch.from_numpy(p[name]))
    losses = first_update(running).losses
    batch = next(running.prepared.loader.epoch(0))
    target, source = of_each(running, batch), of_each(running, batch.source)
    assert number(losses["task"]) == pytest.approx(target.mean(), rel=1e-6)
    expected = 0.0
    for loss, image in zip(target, batch.ids.tolist(), strict=True):
        expected += sizes["target"] * p["target"][image] * loss / 16
    for loss, image in zip(source, batch.source.ids.tolist(), strict=True):
        expected += sizes["source"] * p["source"][image] * loss / 16
    assert number(losses["task"]) + number(losses["boosting"]) == pytest.approx(expected, rel=1e-6)


class AfterEpochs(Quiet):
    """The weights of the images, and which the network takes wrongly, after each epoch."""

    def __init__(self):
        self.seen = []

    def epoch(self, record):
        run, loader = self.running.run, self.running.prepared.loader
        found = {"record": record}
        for name, views in (("target", loader.target), ("source", loader.others["source"])):
            labels = torch.tensor(views.pictures.labels)
            with torch.no_grad():
                logits = run.target_module.eval()(views.pixels.batch(range(len(views))))
            wrong = (logits.argmax(1) != labels).double().numpy()
            found[name] = array(self.running.parts["images"].module[name].weights), wrong
        self.seen.append(found)


def boosted(folder, **options):
    running = training(with_source(folder, method="tradaboost", epochs=4, set=options))
    running.watch = watch = AfterEpochs()
    watch.running = running
    (folder / "run").mkdir()
    running.all()
    return watch.seen


def test_tradaboost_rounds(folder):
    """Every round against loops over the images; the last one is not followed by another, so nothing is weighed."""
    seen = boosted(folder)
    sizes = len(seen[0]["source"][0]), len(seen[0]["target"][0])
    weights = np.full(sizes[0], 1 / sum(sizes)), np.full(sizes[1], 1 / sum(sizes))
    for after in seen[:3]:
        expected, error = looped(*weights, after["source"][1], after["target"][1], rounds=4)
        found = np.concatenate([after["source"][0], after["target"][0]])
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        assert after["record"]["train_round_error"] == pytest.approx(error, rel=1e-5)
        weights = after["source"][0], after["target"][0]
    assert np.array_equal(seen[3]["source"][0], seen[2]["source"][0])
    assert "train_round_error" not in seen[3]["record"]


def test_tradaboost_rounds_of_several_epochs(folder):
    seen = boosted(folder, round_epochs=2)
    assert np.ptp(seen[0]["source"][0]) == 0
    sizes = len(seen[0]["source"][0]), len(seen[0]["target"][0])
    weights = np.full(sizes[0], 1 / sum(sizes)), np.full(sizes[1], 1 / sum(sizes))
    expected, _ = looped(*weights, seen[1]["source"][1], seen[1]["target"][1], rounds=2)
    np.testing.assert_allclose(np.concatenate([seen[1]["source"][0], seen[1]["target"][0]]), expected, rtol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        ("tradaboost", {"round_epochs": 0}),
        ("tradaboost", {"target_share": 1.0}),
        ("instance-weighting", {"most": 0.0}),
        ("instance-weighting", {"penalty": 0.0}),
        ("instance-weighting", {"refit_epochs": -1}),
    ],
)
def test_options_that_make_no_sense(folder, options):
    name, chosen = options
    with pytest.raises(UsageError, match=next(iter(chosen))):
        training(with_source(folder, method=name, set=chosen))


def features(running, views):
    found = []
    for images in torch.arange(len(views)).split(100):
        with torch.no_grad(), listening(running.run.target_module.eval(), "head") as heard:
            running.run.target_module(views.pixels.batch(images.tolist()))
        found.append(pooled(heard[FEATURES]))
    return torch.cat(found)


@pytest.mark.parametrize("unlabelled", [None, "netgraft:digits"])
@pytest.mark.parametrize("options", [{}, {"penalty": 50.0}, {"most": 1.1}, {"weight": 0.3}])
def test_instance_weighting(folder, options, unlabelled):
    """The ratio by scikit-learn's classifier, and the loss image by image."""
    chosen = with_source(folder, method="instance-weighting", set=options, unlabelled=unlabelled, **STILL)
    running = training(chosen)
    loader = running.prepared.loader
    domain = loader.others["unlabelled"] if unlabelled else loader.target
    source, target = (array(features(running, views)) for views in (loader.others["source"], domain))
    both = np.concatenate([source, target])
    deviation = both.std(0)
    both = (both - both.mean(0)) / np.where(deviation > 1e-12, deviation, 1)
    classes = np.arange(len(both)) >= len(source)
    theirs = LogisticRegression(C=1 / options.get("penalty", 1.0), **PRECISELY).fit(both, classes)
    ratio = np.exp(theirs.decision_function(both[: len(source)])) * len(source) / len(target)
    ratio = np.minimum(ratio, options.get("most", 10.0))
    running.prepare()
    found = array(running.parts["images"].module.weights)
    np.testing.assert_allclose(found, ratio / ratio.mean(), rtol=1e-4)  # features are float32
    losses = first_update(running).losses
    batch = next(loader.epoch(0))
    assert number(losses["task"]) == pytest.approx(of_each(running, batch).mean(), rel=1e-6)
    weighted = found[batch.source.ids.numpy()] * of_each(running, batch.source)
    assert number(losses["instances"]) == pytest.approx(options.get("weight", 1.0) * weighted.mean(), rel=1e-6)


def test_instance_weighting_again(folder):
    weights = {}
    for every in (0, 1):
        running = training(with_source(folder, method="instance-weighting", set={"refit_epochs": every}))
        (folder / "run").mkdir(exist_ok=True)
        running.prepare()
        first = array(running.parts["images"].module.weights)
        running.resumed = True  # prepared already
        result = running.all()
        weights[every] = first, array(running.parts["images"].module.weights)
        assert result.history[0]["train_images_that_count"] == pytest.approx(first.sum() ** 2 / (first**2).sum())
    assert np.array_equal(*weights[0])
    assert not np.allclose(*weights[1])


def test_instance_weighting_again_every_other_epoch(folder):
    """Before the first epoch and after the second, not after the last."""
    running = training(with_source(folder, method="instance-weighting", epochs=4, set={"refit_epochs": 2}))
    seen = []

    class Weights(Quiet):
        def epoch(self, record):  # noqa: ARG002
            seen.append(array(running.parts["images"].module.weights))

    running.watch = Weights()
    (folder / "run").mkdir()
    running.all()
    assert [not np.array_equal(one, other) for one, other in pairwise(seen)] == [True, False, False]


def test_a_step_costs_as_much_whatever_follows_the_epoch(folder):
    """Two passes forwards and backwards; what a round or a classifier looks at besides is said apart."""
    for name, words in (("tradaboost", "after an epoch's last step"), ("instance-weighting", "before the first step")):
        cost = explain(with_source(folder, method=name, unlabelled=None))
        assert 5.4 < cost.step < 6
        assert any(words in remark for remark in cost.remarks)
    plain = explain(with_source(folder, method="plain"))
    assert not plain.remarks or not any("works" in remark for remark in plain.remarks)
