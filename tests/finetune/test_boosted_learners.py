"""Boosted learners against the papers' algorithms written as loops over single images."""

import math

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from netgraft.errors import UsageError
from netgraft.finetune.baselines.expboost_r2 import ExpBoostR2
from netgraft.finetune.baselines.task_tradaboost import TaskTrAdaBoost
from netgraft.finetune.baselines.tradaboost import TrAdaBoostVote
from netgraft.finetune.baselines.tradaboost_r2 import TwoStageTrAdaBoostR2
from netgraft.finetune.toolbox.boosting_regression import (
    adaboost_r2,
    adjusted_errors,
    share_factor,
    weighted_median,
)

TREE = DecisionTreeRegressor(max_depth=2, random_state=0)
STUMP = DecisionTreeClassifier(max_depth=1, random_state=0)
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def curve(random, count, bend):
    x = random.uniform(-2, 2, size=(count, 2))
    return x, np.sin(bend * x[:, 0]) + x[:, 1] + 0.1 * random.normal(size=count)


@pytest.fixture
def numbers():
    """A source, a target that bends otherwise, and more of it to predict."""
    random = np.random.default_rng(0)
    return [*curve(random, 60, 1.0), *curve(random, 15, 1.6), curve(random, 40, 1.6)[0]]


def classes_of(random, count, turn):
    x = random.normal(size=(count, 2))
    return x, np.where(x @ [math.cos(turn), math.sin(turn)] + 0.3 * random.normal(size=count) > 0, "yes", "no")


@pytest.fixture
def answers():
    """Two sources whose classes are turned by other angles, the target, and more of it."""
    random = np.random.default_rng(1)
    return [classes_of(random, count, turn) for count, turn in ((80, 0.9), (70, -0.4), (20, 0.3), (60, 0.3))]


# ------------------------------------------------------------------------------------------------------ pure functions


def looped_errors(predicted, y):
    errors = [abs(a - b) for a, b in zip(predicted, y, strict=True)]
    return [e / max(errors) for e in errors]


def looped_median(predictions, votes):
    """Of one image: the first prediction, from the smallest on, at which half of the votes are reached."""
    so_far = 0.0
    for prediction, vote in sorted(zip(predictions, votes, strict=True)):
        so_far += vote
        if so_far >= sum(votes) / 2:
            return prediction
    raise AssertionError


def test_errors_and_median():
    random = np.random.default_rng(2)
    predicted, y = random.normal(size=(2, 30))
    np.testing.assert_allclose(adjusted_errors(predicted, y), looped_errors(predicted, y), **CLOSE)
    assert not adjusted_errors(y, y).any()
    for rounds in (1, 4, 7):
        predictions, votes = random.normal(size=(rounds, 30)), random.random(rounds)
        expected = [looped_median(column, votes) for column in predictions.T]
        np.testing.assert_allclose(weighted_median(predictions, votes), expected, **CLOSE)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_factor_for_a_share(share):
    random = np.random.default_rng(3)
    source, target, errors = random.random(40), random.random(10), random.uniform(0.05, 1, 40)

    def excess(beta):
        return target.sum() / (target.sum() + sum(w * beta**e for w, e in zip(source, errors, strict=True))) - share

    expected = scipy.optimize.brentq(excess, 1e-300, 1, xtol=1e-300, rtol=1e-12, maxiter=5000)
    np.testing.assert_allclose(share_factor(source, target, errors, share), expected, **CLOSE)


def test_factor_for_a_share_that_is_out_of_reach():
    one = np.ones(4)
    assert share_factor(one, one, one, 0.4) == 1.0  # it has more already
    assert share_factor(one, one, np.array([0, 1, 1, 1.0]), 0.9) == 0.0  # an image without error keeps its weight
    assert share_factor(one, one, np.array([0.5, 1, 1, 1.0]), 1.0) == 0.0


def looped_boosting(learn, x, y, weights, rounds, frozen):
    """AdaBoost.R2', image by image; learners with their votes."""
    weights = [w / sum(weights) for w in weights]
    found = []
    for _ in range(rounds):
        learner = learn(np.array(weights))
        errors = looped_errors(learner.predict(x), y)
        error = sum(w * e for w, e in zip(weights, errors, strict=True))
        if error >= 0.5:
            return found or [(learner, 1.0)]
        beta = error / (1 - error)
        found.append((learner, math.log(1 / beta)))
        new = [w if i < frozen else w * beta ** (1 - e) for i, (w, e) in enumerate(zip(weights, errors, strict=True))]
        before, after = sum(weights[frozen:]), sum(new[frozen:])
        weights = [w if i < frozen else w * before / after for i, w in enumerate(new)]
    return found


def predicted(found, x):
    columns = np.array([learner.predict(x) for learner, _ in found]).T
    return [looped_median(column, [vote for _, vote in found]) for column in columns]


def learner_of(x, y, base=TREE):
    return lambda weights: type(base)(**base.get_params()).fit(x, y, sample_weight=weights)


@pytest.mark.parametrize("frozen", [0, 60])
def test_adaboost_r2(numbers, frozen):
    x_s, y_s, x_t, y_t, more = numbers
    x, y = np.concatenate([x_s, x_t]), np.concatenate([y_s, y_t])
    start = np.random.default_rng(4).random(75)
    found = looped_boosting(learner_of(x, y), x, y, start, 6, frozen)
    model = adaboost_r2(learner_of(x, y), x, y, start, 6, frozen=frozen)
    assert len(found) > 3
    np.testing.assert_allclose(model.votes, [vote for _, vote in found], **CLOSE)
    np.testing.assert_allclose(model.predict(more), predicted(found, more), **CLOSE)


def test_adaboost_r2_ends():
    """With a learner that is never wrong, and with one that is wrong by one half on average."""
    x, y = np.arange(4.0)[:, None], np.array([0, 1, 5, 6.0])
    assert len(adaboost_r2(learner_of(x, y), x, y, np.ones(4), 5).votes) == 1
    y = np.array([1, -1, 1, -1.0])  # a constant prediction: each error is the largest
    flat = Ridge(1e9)
    assert adaboost_r2(learner_of(x, y, flat), x, y, np.ones(4), 5).votes == (1.0,)


# ----------------------------------------------------------------------------------------------------------- regression


def test_two_stage_tradaboost_r2(numbers):
    x_s, y_s, x_t, y_t, more = numbers
    n, m, steps, rounds, folds = 60, 15, 4, 3, 3
    model = TwoStageTrAdaBoostR2(TREE, steps, rounds, folds).fit(x_s, y_s, x_t, y_t)
    x, y = np.concatenate([x_s, x_t]), np.concatenate([y_s, y_t])
    weights = [1 / (n + m)] * (n + m)
    held_out = np.array_split(np.random.default_rng(0).permutation(m), folds)
    models, errors = [], []
    for step in range(steps):
        share = m / (n + m) + step / (steps - 1) * (1 - m / (n + m))
        assert model.shares_[step] == pytest.approx(share, rel=1e-6)
        assert sum(weights[n:]) == pytest.approx(share, rel=1e-6)
        models.append(looped_boosting(learner_of(x, y), x, y, weights, rounds, n))
        squares = []
        for fold in held_out:
            rest = [i for i in range(n + m) if i - n not in fold]
            part = looped_boosting(learner_of(x[rest], y[rest]), x[rest], y[rest], np.array(weights)[rest], rounds, n)
            squares += [(a - b) ** 2 for a, b in zip(predicted(part, x_t[fold]), y_t[fold], strict=True)]
        errors.append(sum(squares) / m)
        e = looped_errors(learner_of(x, y)(np.array(weights)).predict(x), y)
        wanted = m / (n + m) + (step + 1) / (steps - 1) * (1 - m / (n + m))
        if step + 2 < steps:
            beta = scipy.optimize.brentq(
                lambda b, w=weights, e=e, s=wanted: (
                    sum(w[n:]) / (sum(w[n:]) + sum(w[i] * b ** e[i] for i in range(n))) - s
                ),
                1e-30,
                1,
                xtol=1e-15,
            )
        else:
            beta = 0.0  # the last step is the target's alone
        weights = [w * beta ** e[i] if i < n else w for i, w in enumerate(weights)]
        weights = [w / sum(weights) for w in weights]
    np.testing.assert_allclose(model.errors_, errors, **CLOSE)
    assert model.step_ == int(np.argmin(errors))
    np.testing.assert_allclose(model.predict(more), predicted(models[model.step_], more), **CLOSE)


def test_expboost_r2(numbers):
    x_s, y_s, x_t, y_t, more = numbers
    sources = [(x_s[:30], y_s[:30]), (x_s[30:], y_s[30:] + 0.5)]
    stump, names = DecisionTreeRegressor(max_depth=1, random_state=0), []
    experts = [learner_of(x, y, stump)(None) for x, y in sources]

    def best(weights):
        learners = [learner_of(x_t, y_t, stump)(weights), *experts]
        each = [
            sum(w * e for w, e in zip(weights, looped_errors(one.predict(x_t), y_t), strict=True)) for one in learners
        ]
        names.append(int(np.argmin(each)))
        return learners[names[-1]]

    found = looped_boosting(best, x_t, y_t, np.ones(15), 6, 0)
    model = ExpBoostR2(stump, 6).fit(sources, x_t, y_t)
    assert 0 in names
    assert set(names) != {0}  # an expert was taken too
    np.testing.assert_allclose(model.model_.votes, [vote for _, vote in found], **CLOSE)
    np.testing.assert_allclose(model.predict(more), predicted(found, more), **CLOSE)


# ------------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("rounds", [5, 8])
def test_tradaboost_votes(answers, rounds):
    """Against the paper's product over rounds, for two classes as 0 and 1."""
    (x_s, y_s), _, (x_t, y_t), (more, _) = answers
    n, m = len(x_s), len(x_t)
    model = TrAdaBoostVote(STUMP, rounds).fit(x_s, y_s, x_t, y_t)
    x, c = np.concatenate([x_s, x_t]), [int(y == "yes") for y in (*y_s, *y_t)]
    weights = [1.0] * (n + m)
    beta = 1 / (1 + math.sqrt(2 * math.log(n) / rounds))
    betas, learners = [], []
    for _ in range(rounds):
        p = np.array(weights) / sum(weights)
        learner = learner_of(x, np.array(c), STUMP)(p)
        h = learner.predict(x)
        error = sum(weights[i] * abs(h[i] - c[i]) for i in range(n, n + m)) / sum(weights[n:])
        beta_t = min(error, 0.49) / (1 - min(error, 0.49))
        for i in range(n + m):
            wrong = abs(int(h[i]) - c[i])
            weights[i] *= beta**wrong if i < n else (beta_t**-wrong if wrong else 1)
        betas.append(beta_t)
        learners.append(learner)
    np.testing.assert_allclose(model.weights_, np.array(weights) / sum(weights), **CLOSE)
    assert min(betas) > 0
    late = range(math.ceil(rounds / 2) - 1, rounds)
    expected = []
    for row in more:
        product = math.prod(betas[t] ** -float(learners[t].predict(row[None])[0]) for t in late)
        expected.append("yes" if product >= math.prod(betas[t] ** -0.5 for t in late) else "no")
    assert model.predict(more).tolist() == expected
    assert len(set(expected)) == 2


def test_tradaboost_votes_of_three_classes(answers):
    (x_s, _), _, (x_t, _), (more, _) = answers
    y_s, y_t = (np.digitize(x[:, 0], [-0.5, 0.5]) for x in (x_s, x_t))
    tree = DecisionTreeClassifier(max_depth=2, random_state=0)
    right = TrAdaBoostVote(tree, 4).fit(x_s, y_s, x_t, y_t).predict(more) == np.digitize(more[:, 0], [-0.5, 0.5])
    assert right.mean() > 0.9


@pytest.mark.parametrize("least", [0.0, 0.4])
def test_task_tradaboost(answers, least):
    *sources, (x_t, y_t), (more, _) = answers
    sources[1] = (sources[1][0], np.where(sources[1][1] == "yes", "no", "yes"))  # turned round, and still of use
    sign = {"no": -1, "yes": 1}
    candidates = []
    for x, labels in sources:
        y, weights = [sign[label] for label in labels], [1 / len(x)] * len(x)
        for _ in range(6):
            learner = learner_of(x, np.array(y), STUMP)(np.array(weights))
            h = learner.predict(x)
            error = sum(w for w, a, b in zip(weights, h, y, strict=True) if a != b)
            if error >= 0.5:
                break
            alpha = math.log((1 - error) / error) / 2
            candidates += [learner] if alpha > least else []
            weights = [w * math.exp(-alpha * a * b) for w, a, b in zip(weights, h, y, strict=True)]
            weights = [w / sum(weights) for w in weights]
    y, weights, score, turned = [sign[label] for label in y_t], [1 / len(x_t)] * len(x_t), np.zeros(len(more)), 0
    every = len(candidates)
    for _ in range(min(6, every)):
        options = []
        for number, learner in enumerate(candidates):
            for side in (1, -1):
                h = side * learner.predict(x_t)
                error = sum(w for w, a, b in zip(weights, h, y, strict=True) if a != b)
                options.append((round(error, 12), number, -side, h))
        error, number, side, h = min(options, key=lambda option: option[:3])
        alpha = math.log((1 - error) / error) / 2
        turned += side == 1
        score += alpha * -side * candidates.pop(number).predict(more)
        weights = [w * math.exp(-alpha * a * b) for w, a, b in zip(weights, h, y, strict=True)]
        weights = [w / sum(weights) for w in weights]
    model = TaskTrAdaBoost(STUMP, 6, least).fit(sources, x_t, y_t)
    assert len(model.candidates_) == every
    assert (every < 12) == (least > 0)
    assert turned
    np.testing.assert_allclose(model.decision_function(more), score, **CLOSE)
    assert model.predict(more).tolist() == ["yes" if s > 0 else "no" for s in score]


# --------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: TwoStageTrAdaBoostR2(TREE, steps=1).fit(x, y, x, y), "steps is at least 2"),
        (lambda x, y: TwoStageTrAdaBoostR2(TREE).fit(x, y, x[:3], y[:3]), "images_of_the_target is at least 5"),
        (lambda x, y: TwoStageTrAdaBoostR2(TREE).fit(x, y, x[:, :1], y), "same features"),
        (lambda x, y: ExpBoostR2(TREE).fit([], x, y), "sources is at least 1"),
        (lambda x, y: ExpBoostR2(TREE).fit([(x, y[:4])], x, y), "one label for each row"),
        (lambda x, y: ExpBoostR2("tree").fit([(x, y)], x, y), "fit(x, y, sample_weight)"),
        (lambda x, y: TrAdaBoostVote(STUMP, 0).fit(x, y > 0, x, y > 0), "rounds is at least 1"),
        (lambda x, y: TaskTrAdaBoost(STUMP).fit([(x, y > 0)], x, np.digitize(y, [0, 1])), "same two classes"),
        (lambda x, y: TaskTrAdaBoost(STUMP).fit([(x, y > 9)], x, y > 9), "same two classes"),
        (lambda x, y: TaskTrAdaBoost(STUMP, 5, 40.0).fit([(x, y > 0)], x, y > 0), "No source gives a candidate"),
    ],
)
def test_what_does_not_fit_is_refused(numbers, call, words):
    with pytest.raises(UsageError) as caught:
        call(*numbers[:2])
    assert words in str(caught.value)


def test_the_base_stays_as_it_is(numbers):
    x_s, y_s, x_t, y_t, _ = numbers
    base = DecisionTreeRegressor(max_depth=2, random_state=0)
    ExpBoostR2(base, 2).fit([(x_s, y_s)], x_t, y_t)
    assert not hasattr(base, "tree_")
