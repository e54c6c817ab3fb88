"""Near-identities against NumPy's SVD, positions against a loop, impulses against the attention that they give."""

import math

import numpy as np
import pytest
import torch

from netgraft.operators.impulse import Impulse
from netgraft.operators.near_diagonal import NearDiagonal
from netgraft.operators.sincos import Sincos


def pair(width, rank, alpha, beta, seed=5):
    """Both halves as [width, rank]."""
    own = torch.zeros(rank, width, dtype=torch.float64)
    halves = [NearDiagonal(((0, rank),), half, alpha, beta, seed)(own) for half in ("left", "right")]
    return [half.numpy().T for half in halves]


def wanted(width, alpha, beta, seed=5):
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    return alpha * noise / math.sqrt(width) + beta * np.eye(width)


@pytest.mark.parametrize(("width", "rank"), [(32, 8), (48, 48), (20, 3)])
def test_the_error_is_what_eckart_and_young_say(width, rank):
    matrix = wanted(width, 0.7, 0.6)
    left, right = pair(width, rank, 0.7, 0.6)
    rest = np.linalg.svd(matrix, compute_uv=False)[rank:]
    assert np.linalg.norm(matrix - left @ right.T) == pytest.approx(np.linalg.norm(rest), abs=1e-10)
    np.testing.assert_allclose((left**2).sum(0), (right**2).sum(0), rtol=1e-10)  # split evenly


def test_alpha_and_beta():
    left, right = pair(64, 64, 0.4, -0.3)
    product = left @ right.T
    assert np.diag(product).mean() == pytest.approx(-0.3, abs=0.03)
    assert (product + 0.3 * np.eye(64)).std() == pytest.approx(0.4 / 8, rel=0.05)


def test_rows_lie_where_they_are_asked_for():
    own = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = NearDiagonal(((4, 2), (1, 1)), "left", 1.0, 0.5, 7)(own)
    plain = NearDiagonal(((0, 3),), "left", 1.0, 0.5, 7)(own[:3])
    assert torch.equal(found[[4, 5, 1]], plain)
    assert torch.equal(found[[0, 2, 3]], own[[0, 2, 3]])
    turned = NearDiagonal(((4, 2), (1, 1)), "left", 1.0, 0.5, 7, dim=1)(own.T)
    assert torch.equal(turned, found.T)


def test_positions():
    table = Sincos(3, prefix=1)(torch.ones(1, 10, 8))
    assert not table[0, 0].any()
    for y in range(3):
        for x in range(3):
            expected = [f(w * place) for place in (x, y) for f in (math.sin, math.cos) for w in (1.0, 1e-4)]
            assert table[0, 1 + 3 * y + x].tolist() == pytest.approx(expected, abs=1e-7)


def positions(side, width):
    tokens = Sincos(side)(torch.zeros(side**2, width, dtype=torch.float64)).numpy()
    centred = tokens - tokens.mean(1, keepdims=True)
    return centred / centred.std(1, keepdims=True)


def impulse(side, tap):
    """By a loop: the token that each reads, -1 outside."""
    places = [(y + tap[0], x + tap[1]) for y in range(side) for x in range(side)]
    return [y * side + x if 0 <= y < side and 0 <= x < side else -1 for y, x in places]


def halves(side, width, rank, tap, **options):
    own = torch.zeros(rank, width, dtype=torch.float64)
    return [Impulse(((0, rank),), half, side, tap, rank**-0.5, **options)(own).numpy() for half in ("query", "key")]


@pytest.mark.parametrize("tap", [(0, 0), (0, 1), (-1, 1), (1, 0)])
@pytest.mark.parametrize(("side", "width", "rank", "least"), [(14, 192, 64, 0.4), (8, 48, 16, 0.55), (4, 32, 8, 0.7)])
def test_every_token_reads_its_neighbour_most(side, width, rank, least, tap):
    tokens = positions(side, width)
    queries, keys = halves(side, width, rank, tap)
    logits = rank**-0.5 * (tokens @ queries.T) @ (tokens @ keys.T).T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    aims = impulse(side, tap)
    inside = [i for i, aim in enumerate(aims) if aim >= 0]
    assert [int(weights[i].argmax()) for i in inside] == [aims[i] for i in inside]
    assert np.mean([weights[i, aims[i]] for i in inside]) > least
    assert np.linalg.norm(queries, axis=1).min() > 0.01  # no row that cannot begin to learn
    assert abs(logits.mean(1)).max() < 0.1  # so that a token in front, with no key, draws no more than an average one
    above = np.mean([logits[i, aims[i]] - logits[i].mean() for i in inside])
    assert above == pytest.approx(10, abs=1e-9)


def test_no_other_logits_of_its_rank_are_nearer():
    """Least squares: on the directions that are read, the truncated SVD; moving the answer makes it worse."""
    side, width, rank, tap = 5, 32, 4, (0, 1)
    tokens = positions(side, width)
    queries, keys = halves(side, width, rank, tap)
    aims = impulse(side, tap)
    target = np.zeros((side**2, side**2))
    for i, aim in enumerate(aims):
        if aim >= 0:
            target[i, aim] = 1
    target -= target.mean(1, keepdims=True)
    read = basis(tokens)
    inner = read.T @ target @ read
    singular = np.linalg.svd(inner, compute_uv=False)
    logits = (tokens @ queries.T) @ (tokens @ keys.T).T
    found = read.T @ logits @ read
    found *= (found * inner).sum() / (found**2).sum()  # the scale is the sharpness
    assert np.linalg.norm(inner - found) == pytest.approx(np.linalg.norm(singular[rank:]), abs=1e-8)


def basis(tokens):
    left, values, _ = np.linalg.svd(tokens, full_matrices=False)
    return left[:, values > 0.03 * values[0]]


def test_options_count():
    sharp, blunt = (halves(6, 48, 8, (0, 1), sharpness=sharpness)[0] for sharpness in (12.0, 3.0))
    np.testing.assert_allclose(sharp, 2 * blunt, rtol=1e-10)
    assert not np.allclose(*(halves(6, 48, 8, (0, 1), centred=centred)[0] for centred in (True, False)))
    one, other = (halves(6, 48, 8, (0, 1), seed=seed) for seed in (0, 1))
    assert not np.allclose(one[0], other[0])
    np.testing.assert_allclose(one[0].T @ one[1], other[0].T @ other[1], atol=1e-9)  # the rotation cancels
