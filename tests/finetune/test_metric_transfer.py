"""MTLF against its objective pair by pair, against optima found by scipy, and against what must not matter to it."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.neighbors import KNeighborsClassifier

from netgraft.errors import UsageError
from netgraft.finetune.baselines._density_ratio import relative_ratio
from netgraft.finetune.baselines.mtlf import MetricTransfer

CLOSE = {"rtol": 1e-6, "atol": 1e-8}


@pytest.fixture
def domains():
    """Features of three classes, and the same ones moved; the source has more images."""
    random = np.random.default_rng(0)
    centres = 2 * random.normal(size=(3, 4))
    labels = np.arange(20) % 3, np.arange(11) % 3
    source, target = (centres[y] + random.normal(size=(len(y), 4)) for y in labels)
    return source, labels[0], target + 0.5, labels[1]


def objective(metric, w, start, x, y, *, beta, lam):
    """The card's equation, pair by pair, in units of the mean squared distance; ``w`` are all images' weights."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    unit = np.mean([np.sum((x[i] - x[j]) ** 2) for i, j in pairs])
    apart = {True: [], False: []}
    for i, j in pairs:
        apart[bool(y[i] == y[j])].append(w[i] * w[j] * np.sum((metric @ (x[i] - x[j])) ** 2) / unit)
    cost = np.mean((w[: len(start)] - start) ** 2)
    return np.trace(metric.T @ metric) + lam * cost + beta * (np.mean(apart[True]) - np.mean(apart[False]))


def unit_of(x):
    return np.sqrt(np.mean([np.sum((x[i] - x[j]) ** 2) for i in range(len(x)) for j in range(i)]))


def central(function, at, step=1e-4):
    """The gradient by differences; exact for the quadratic forms here."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


def test_a_round_descends_the_objective(domains):
    """A step of A along its gradient, then one of w along its own, with the mean of the weights kept."""
    source, y_s, target, y_t = domains
    x, y, n = np.concatenate([source, target]), np.concatenate([y_s, y_t]), len(source)
    start = np.random.default_rng(1).uniform(0.5, 1.5, n)
    start /= start.mean()
    given = {"beta": 3.0, "lam": 2.0}
    model = MetricTransfer(**given, rounds=1, metric_rate=0.03, weight_rate=0.02)
    model.fit(source, y_s, target, y_t, weights=5 * start)
    w, one = np.concatenate([start, np.ones(len(target))]), np.eye(4)
    metric = one - 0.03 * central(lambda a: objective(a, w, start, x, y, **given), one)
    np.testing.assert_allclose(model.metric_ * unit_of(x), metric, **CLOSE)

    def of_weights(some):
        return objective(metric, np.concatenate([some, w[n:]]), start, x, y, **given)

    step = 0.02 * n * central(of_weights, start)
    np.testing.assert_allclose(model.weights_, start - step + step.mean(), **CLOSE)
    assert np.abs(step - step.mean()).max() > 1e-3


def test_the_second_round_goes_on_from_the_first(domains):
    """The pull to the start counts from there: it is 0 in the first round."""
    source, y_s, target, y_t = domains
    x, y, n = np.concatenate([source, target]), np.concatenate([y_s, y_t]), len(source)
    given = {"beta": 3.0, "lam": 2.0}
    rates = {"metric_rate": 0.03, "weight_rate": 0.02}
    once, twice = (
        MetricTransfer(**given, **rates, rounds=k).fit(source, y_s, target, y_t, weights=np.ones(n)) for k in (1, 2)
    )
    w, start, was = np.concatenate([once.weights_, np.ones(len(target))]), np.ones(n), once.metric_ * unit_of(x)
    metric = was - 0.03 * central(lambda a: objective(a, w, start, x, y, **given), was)
    np.testing.assert_allclose(twice.metric_ * unit_of(x), metric, **CLOSE)

    def of_weights(some):
        return objective(metric, np.concatenate([some, w[n:]]), start, x, y, **given)

    step = 0.02 * n * central(of_weights, once.weights_)
    np.testing.assert_allclose(twice.weights_, once.weights_ - step + step.mean(), **CLOSE)


def test_with_fixed_weights_the_metric_is_a_power(domains):
    source, y_s, target, y_t = domains
    x, y = np.concatenate([source, target]), np.concatenate([y_s, y_t])
    scatter = {True: [], False: []}
    for i in range(len(x)):
        for j in range(i):
            scatter[bool(y[i] == y[j])].append(np.outer(x[i] - x[j], x[i] - x[j]) / unit_of(x) ** 2)
    values, vectors = np.linalg.eigh(np.mean(scatter[True], axis=0) - np.mean(scatter[False], axis=0))
    model = MetricTransfer(beta=4.0, rounds=30, metric_rate=0.02, weight_rate=0.0)
    model.fit(source, y_s, target, y_t, weights=np.ones(len(source)))
    expected = vectors * (1 - 2 * 0.02 * (1 + 4.0 * values)) ** 30 @ vectors.T
    np.testing.assert_allclose(model.metric_ * unit_of(x), expected, **CLOSE)
    np.testing.assert_array_equal(model.weights_, 1)


@pytest.mark.parametrize("lam", [8.0, 3.0])
def test_with_a_fixed_metric_the_weights_find_their_optimum(domains, lam):
    """That of scipy under the same bounds; with the smaller lam some weights end at 0."""
    source, y_s, target, y_t = domains
    x, y, n = np.concatenate([source, target]), np.concatenate([y_s, y_t]), len(source)
    start = np.ones(n)

    def of_weights(some):
        return objective(np.eye(4), np.concatenate([some, np.ones(len(target))]), start, x, y, beta=5.0, lam=lam)

    bounds = {"type": "eq", "fun": lambda some: some.mean() - 1}
    best = scipy.optimize.minimize(
        of_weights, start, method="SLSQP", bounds=[(0, None)] * n, constraints=bounds, options={"ftol": 1e-13}
    )
    model = MetricTransfer(beta=5.0, lam=lam, rounds=3000, metric_rate=0.0, weight_rate=0.02)
    model.fit(source, y_s, target, y_t, weights=start)
    np.testing.assert_allclose(model.weights_, best.x, atol=1e-4)
    assert of_weights(model.weights_) <= best.fun + 1e-9
    assert (model.weights_ == 0).any() == (lam < 5)


def test_it_starts_from_the_density_ratio(domains):
    """RuLSIF as a ridge regression: both domains' kernels, each row by its share, and what the target asks for."""
    source, y_s, target, y_t = domains
    more = np.random.default_rng(3).normal(size=(9, 4))
    seen = np.concatenate([target, more])
    x = np.concatenate([source, seen])
    between = [np.sum((a - b) ** 2) for i, a in enumerate(x) for b in x[:i]]
    of_source, of_target = (
        np.exp([[-np.sum((a - c) ** 2) / (2 * np.median(between)) for c in seen] for a in rows])
        for rows in (source, seen)
    )
    shares = np.sqrt(0.5 / len(source)), np.sqrt(0.5 / len(seen))
    rows = np.concatenate([shares[0] * of_source, shares[1] * of_target, np.sqrt(0.2) * np.eye(len(seen))])
    wanted = np.concatenate(
        [np.zeros(len(source)), np.full(len(seen), 1 / (len(seen) * shares[1])), np.zeros(len(seen))]
    )
    ratio = np.maximum(of_source @ np.linalg.lstsq(rows, wanted, rcond=None)[0], 0)
    np.testing.assert_allclose(relative_ratio(source, seen, 0.2), ratio, **CLOSE)
    model = MetricTransfer(rounds=1, weight_rate=0.0, ridge=0.2).fit(source, y_s, target, y_t, unlabelled=more)
    np.testing.assert_allclose(model.weights_, ratio / ratio.mean(), **CLOSE)


def test_the_density_ratio_is_near_the_true_one():
    random = np.random.default_rng(0)
    source, target = random.normal(size=(800, 1)), random.normal(1, 1, size=(600, 1))
    density = [np.exp(-((source[:, 0] - mean) ** 2) / 2) for mean in (0, 1)]
    true = density[1] / (density[0] / 2 + density[1] / 2)
    assert np.abs(relative_ratio(source, target, 1e-3) - true).mean() < 0.1


def test_wrongly_labelled_source_images_lose_weight_and_noise_its_say():
    random = np.random.default_rng(0)

    def draw(n):
        y = np.arange(n) % 2
        return np.concatenate([3 * y[:, None] + random.normal(size=(n, 1)), 4 * random.normal(size=(n, 6))], 1), y

    (x_s, y_s), (x_t, y_t), (x, y) = draw(120), draw(20), draw(300)
    wrong = np.arange(120) % 6 == 0
    labels = np.where(wrong, 1 - y_s, y_s)
    model, kept = (MetricTransfer(weight_rate=rate).fit(x_s, labels, x_t, y_t, unlabelled=x) for rate in (0.01, 0.0))
    moved = model.weights_ - kept.weights_
    assert moved[wrong].mean() < moved[~wrong].mean() - 0.1
    learnt, plain = (MetricTransfer(metric_rate=rate).fit(x_s, y_s, x_t, y_t, unlabelled=x) for rate in (0.02, 0.0))
    assert (learnt.predict(x) == y).mean() > (plain.predict(x) == y).mean() + 0.1


def test_predictions_are_those_of_the_nearest_neighbour(domains):
    source, y_s, target, y_t = domains
    model = MetricTransfer().fit(source, y_s, target, y_t)
    known = KNeighborsClassifier(1).fit(model.transform(model.images_), model.labels_)
    x = np.random.default_rng(5).normal(size=(40, 4))
    np.testing.assert_array_equal(model.predict(x), known.predict(model.transform(x)))
    far = [[np.linalg.norm(model.metric_ @ (a - b)) for b in target] for a in source]
    one, other = model.transform(source), model.transform(target)
    np.testing.assert_allclose([[np.linalg.norm(a - b) for b in other] for a in one], far, **CLOSE)


def test_units_and_order_do_not_matter(domains):
    source, y_s, target, y_t = domains
    model = MetricTransfer().fit(source, y_s, target, y_t)
    scaled = MetricTransfer().fit(7 * source + 2, y_s, 7 * target + 2, y_t)
    np.testing.assert_allclose(scaled.weights_, model.weights_, **CLOSE)
    np.testing.assert_allclose(scaled.transform(7 * target + 2), model.transform(target), **CLOSE)
    order = np.random.default_rng(2).permutation(len(source))
    mixed = MetricTransfer().fit(source[order], y_s[order], target, y_t)
    np.testing.assert_allclose(mixed.weights_, model.weights_[order], **CLOSE)
    np.testing.assert_allclose(mixed.metric_, model.metric_, **CLOSE)


@pytest.mark.parametrize(
    ("options", "changes", "told"),
    [
        ({"rounds": 0}, {}, "rounds is at least 1"),
        ({"beta": -1.0}, {}, "beta is at least 0"),
        ({"ridge": 0.0}, {}, "ridge is above 0"),
        ({"metric_rate": 1e9}, {}, "smaller metric_rate"),
        ({}, {"weights": np.zeros(20)}, "not all of them 0"),
        ({}, {"weights": np.ones(3)}, "20 images"),
        ({}, {"unlabelled": np.ones((2, 3))}, "same features"),
        ({}, {"source_y": np.zeros(20), "target_y": np.zeros(11)}, "two classes"),
    ],
)
def test_what_is_refused(domains, options, changes, told):
    given = dict(zip(("source", "source_y", "target", "target_y"), domains, strict=True)) | changes
    with pytest.raises(UsageError) as error, np.errstate(over="ignore", invalid="ignore"):
        MetricTransfer(**options).fit(**given)
    assert told in str(error.value)
