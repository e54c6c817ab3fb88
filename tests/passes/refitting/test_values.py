"""Values of attention, against a brute-force search for the best ones and against what a network computes."""

import pytest
import torch

from netgraft.passes.refitting.values import best_values, seen_by_heads


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def most_of(rows):
    """All but each eighth row."""
    return torch.arange(len(rows)) % 8 > 0


def explained(parts, wanted):
    """R^2 of an ordinary regression."""
    x = torch.cat([torch.cat(parts, 1), torch.ones(len(wanted), 1)], 1).double()
    y = wanted.double()
    left = y - x @ torch.linalg.lstsq(x, y).solution
    return 1 - float(left.square().sum() / (y - y.mean(0)).square().sum())


def test_what_heads_see_is_what_an_attention_mixes():
    x, rows = drawn(3, 9, 8), torch.tensor([0, 4, 13, 26])
    looks = [(drawn(4, 8, seed=1 + h), drawn(4, 8, seed=5 + h)) for h in range(2)]
    found = seen_by_heads(x, looks, 0.5, rows, range(6))
    for (query, key), seen in zip(looks, found, strict=True):
        wanted = torch.nn.functional.scaled_dot_product_attention(x @ query.T, x @ key.T, x, scale=0.5)
        torch.testing.assert_close(seen, wanted.reshape(27, 8)[rows][:, :6])


def test_values_of_rank_as_wanted_lose_nothing():
    """Where the truth has two directions a head, two values each explain all of it."""
    seen = [drawn(4000, 12, seed=h) @ drawn(12, 12, seed=7 + h) for h in range(2)]
    wanted = sum(part @ drawn(12, 2, seed=20 + h) @ drawn(2, 10, seed=30 + h) for h, part in enumerate(seen))
    values, _ = best_values(seen, wanted, most_of(wanted), 2)
    read = [part @ value.T for part, value in zip(seen, values, strict=True)]
    assert explained(read, wanted) > 0.97
    random = [part @ drawn(2, 12, seed=40 + h).T for h, part in enumerate(seen)]
    assert explained(random, wanted) < 0.6
    for part in read:
        torch.testing.assert_close(part.var(0), torch.ones(2), rtol=0.02, atol=0)


def test_the_best_single_direction():
    """Of one head: no direction of many drawn ones explains more."""
    seen = [drawn(3000, 5) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1])]
    wanted = seen[0] @ drawn(5, 7, seed=1) + drawn(3000, 7, seed=2)
    values, r2 = best_values(seen, wanted, most_of(wanted), 1)
    best = explained([seen[0] @ values[0].T], wanted)
    assert r2 == pytest.approx(explained(seen, wanted), abs=0.02)
    tries = [explained([seen[0] @ direction[:, None]], wanted) for direction in drawn(300, 5, seed=3)]
    assert best > max(tries) - 0.01


def test_more_values_than_channels_are_zero():
    values, _ = best_values([drawn(100, 3)], drawn(100, 2, seed=1), torch.ones(100, dtype=torch.bool), 5)
    assert values[0].shape == (5, 3)
    assert values[0].isfinite().all()
    assert not values[0][3:].any()
