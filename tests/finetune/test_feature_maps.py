"""TCA, SA and JGSA against eigenproblems solved by other routes, and against what must not matter to them."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from netgraft.errors import UsageError
from netgraft.finetune.baselines.jgsa import JointAlignment
from netgraft.finetune.baselines.sa import SubspaceAlignment
from netgraft.finetune.baselines.tca import TransferComponents

CLOSE = {"rtol": 1e-6, "atol": 1e-8}


@pytest.fixture
def domains():
    """Features of three classes, and the same ones scaled, turned and moved."""
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(3, 5))
    labels = np.arange(45) % 3, np.arange(30) % 3
    source, target = (centres[y] + random.normal(size=(len(y), 5)) for y in labels)
    turn = scipy.linalg.expm(0.3 * (a := random.normal(size=(5, 5))) - 0.3 * a.T)
    return source, target @ turn * [1, 1.5, 0.7, 1, 1] + 1, *labels


def gram(x):
    return x @ x.T


# ----------------------------------------------------------------------------------------------------------------- tca


@pytest.mark.parametrize("gamma", [None, 0.1])
@pytest.mark.parametrize(("kernel", "mu"), [("linear", 1.0), ("gaussian", 0.3)])
def test_tca_is_the_eigenproblem(domains, kernel, mu, gamma):
    source, target, *_ = domains
    n_s, n_t = len(source), len(target)
    x = np.concatenate([source, target])
    squares = [[((a - b) ** 2).sum() for b in x] for a in x]
    width = gamma or 1 / np.mean(squares)
    k = gram(x) if kernel == "linear" else np.exp(-width * np.array(squares))
    big = np.empty((n_s + n_t, n_s + n_t))
    for i in range(n_s + n_t):
        for j in range(n_s + n_t):
            one, other = i < n_s, j < n_s
            big[i, j] = 1 / n_s**2 if one and other else -1 / (n_s * n_t) if one or other else 1 / n_t**2
    centre = np.eye(n_s + n_t) - 1 / (n_s + n_t)
    cost, gain = k @ big @ k + mu * np.eye(n_s + n_t), k @ centre @ k
    values, vectors = scipy.linalg.eigh(gain, cost)
    model = TransferComponents(4, kernel, gamma, mu).fit(source, target)
    w = model.components_
    np.testing.assert_allclose(w.T @ gain @ w, np.eye(4), **CLOSE)
    np.testing.assert_allclose(np.diag(w.T @ cost @ w), 1 / values[::-1][:4], **CLOSE)
    scaled = vectors[:, ::-1][:, :4] / np.sqrt(values[::-1][:4])
    np.testing.assert_allclose(np.abs(k @ w), np.abs(k @ scaled), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.transform(x), k @ w, **CLOSE)


def test_tca_sees_only_inner_products(domains):
    source, target, *_ = domains
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    found = TransferComponents(3).fit(source, target).transform(target)
    np.testing.assert_allclose(
        TransferComponents(3).fit(source @ turn, target @ turn).transform(target @ turn), found, **CLOSE
    )
    order = np.random.default_rng(2).permutation(len(source))
    np.testing.assert_allclose(
        np.abs(TransferComponents(3).fit(source[order], target).transform(target)), np.abs(found), **CLOSE
    )


def test_tca_brings_the_means_together(domains):
    """By as much as mu lets it: relative to the scatter in the new space, which is 1."""
    source, target, *_ = domains

    def apart(mu):
        model = TransferComponents(2, mu=mu).fit(source, target)
        return np.linalg.norm(model.transform(source).mean(0) - model.transform(target).mean(0))

    assert apart(1e-3) < 0.2 * apart(1e6)


# ------------------------------------------------------------------------------------------------------------------ sa


@pytest.mark.parametrize("standardise", [True, False])
def test_sa_is_the_best_alignment(domains, standardise):
    source, target, *_ = domains
    scaled = [(x - x.mean(0)) / (x.std(0) if standardise else 1) for x in (source, target)]
    p_s, p_t = (PCA(3).fit(x).components_.T for x in scaled)
    m = np.linalg.lstsq(p_s, p_t, rcond=None)[0]
    model = SubspaceAlignment(3, standardise=standardise).fit(source, target)
    np.testing.assert_allclose(np.abs(model.transform(source, "source")), np.abs(scaled[0] @ p_s @ m), **CLOSE)
    np.testing.assert_allclose(np.abs(model.transform(target, "target")), np.abs(scaled[1] @ p_t), **CLOSE)
    similar = model.transform(source, "source") @ model.transform(target, "target").T  # free of all signs
    np.testing.assert_allclose(similar, scaled[0] @ p_s @ m @ (scaled[1] @ p_t).T, **CLOSE)


def test_sa_undoes_a_turn_within_the_subspace(domains):
    """Domains with the same principal subspace are compared as if there were no alignment to do."""
    source, *_ = domains
    model = SubspaceAlignment(5, standardise=False).fit(source, source + 3)
    np.testing.assert_allclose(model.transform(source, "source"), model.transform(source + 3, "target"), **CLOSE)


# ---------------------------------------------------------------------------------------------------------------- jgsa


def jgsa_matrices(source, y, target, guessed, lam, mu, beta):
    """Both matrices of the quotient, by the paper's L matrices over images."""
    n_s, n_t, d = len(source), len(target), source.shape[1]
    whole = np.zeros((n_s + n_t, 2 * d))  # images below each other, each domain in columns of its own
    whole[:n_s, :d], whole[n_s:, d:] = source, target
    big = np.zeros((n_s + n_t, n_s + n_t))
    for c in [None, 0, 1, 2]:
        i_s = [i for i in range(n_s) if c is None or y[i] == c]
        i_t = [n_s + i for i in range(n_t) if c is None or guessed[i] == c]
        for i in i_s + i_t:
            for j in i_s + i_t:
                if i_t:
                    sizes = [len(i_s) if index < n_s else -len(i_t) for index in (i, j)]
                    big[i, j] += 1 / (sizes[0] * sizes[1])
    low = whole.T @ big @ whole
    one = np.eye(d)
    low += lam * np.block([[one, -one], [-one, one]]) + mu * scipy.linalg.block_diag(0 * one, one)
    high = np.zeros((2 * d, 2 * d))
    high[d:, d:] = mu * n_t * np.cov(target.T, bias=True)
    for c in range(3):
        rows = source[y == c]
        low[:d, :d] += beta * len(rows) * np.cov(rows.T, bias=True)
        away = (rows.mean(0) - source.mean(0))[:, None]
        high[:d, :d] += beta * len(rows) * away @ away.T
    return high, low


@pytest.mark.parametrize("options", [{}, {"lam": 0.2, "mu": 3.0, "beta": 0.5}])
def test_jgsa_is_the_eigenproblem_of_its_labels(domains, options):
    """Every round: the nearest neighbour's labels, and the eigenvectors that follow from them."""
    source, target, y, _ = domains
    given = {"lam": 1.0, "mu": 1.0, "beta": 0.1} | options
    guessed = KNeighborsClassifier(1).fit(source, y).predict(target)
    for rounds in (1, 2, 3):
        high, low = jgsa_matrices(source, y, target, guessed, **given)
        values, vectors = scipy.linalg.eigh(high, low)
        a, b = np.split(vectors[:, ::-1][:, :3], 2)
        model = JointAlignment(3, rounds, **given).fit(source, target, y)
        found = model.transform(source, "source"), model.transform(target, "target")
        np.testing.assert_allclose(found[0] @ found[1].T, source @ a @ (target @ b).T, rtol=1e-5, atol=1e-7)
        both = np.concatenate([model.maps_["source"], model.maps_["target"]])
        np.testing.assert_allclose(both.T @ high @ both, np.diag(values[::-1][:3]), **CLOSE)
        guessed = KNeighborsClassifier(1).fit(source @ a, y).predict(target @ b)
        assert np.array_equal(model.labels_, guessed)


def test_jgsa_does_without_a_class_that_no_target_image_has(domains):
    source, target, y, of_target = domains
    some = target[of_target == 0]
    model = JointAlignment(2, 3).fit(source, some, y)
    assert np.isfinite(model.transform(some, "target")).all()


# --------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, t, _: TransferComponents(9).fit(s, t), "at most 5"),
        (lambda s, t, _: SubspaceAlignment(6).fit(s, t), "at most 5"),
        (lambda s, t, y: JointAlignment(11).fit(s, t, y), "at most"),
        (lambda s, t, _: TransferComponents(0).fit(s, t), "dimensions is at least 1"),
        (lambda s, t, _: TransferComponents(mu=0.0).fit(s, t), "mu is above 0"),
        (lambda s, t, _: TransferComponents(2, "gaussian", gamma=-1.0).fit(s, t), "gamma is above 0"),
        (lambda s, t, _: SubspaceAlignment(2).fit(s, t[:, :3]), "same features"),
        (lambda s, t, _: SubspaceAlignment(2).fit(s, t * np.nan), "not all finite"),
        (lambda s, t, _: SubspaceAlignment(2).fit(s[0], t), "table"),
        (lambda s, t, y: JointAlignment(2).fit(s, t, y[:4]), "one label for each row"),
        (lambda s, t, y: JointAlignment(2).fit(s, t, 0 * y), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(domains, call, words):
    source, target, y, _ = domains
    with pytest.raises(UsageError) as caught:
        call(source, target, y)
    assert words in str(caught.value)
