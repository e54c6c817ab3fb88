"""Intervals hold what they promise."""

import pytest
import torch

from netgraft.score.interval import paired_difference, wilson


def test_wilson_against_known_values():
    """Newcombe 1998, table I, Wilson without continuity correction."""
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1), abs=5e-5)


def test_wilson_covers():
    for share in (0.1, 0.5, 0.93):
        right = torch.binomial(torch.full((4000,), 200.0), torch.tensor(share), torch.Generator().manual_seed(0))
        covered = [low <= share <= high for low, high in (wilson(int(r), 200) for r in right)]
        assert 0.935 < sum(covered) / len(covered) < 0.965


def simulated(generator, gain, spread, total=300, seeds=3):
    """One network and S others, right or wrong with correlated chances; the seeds' accuracies vary by ``spread``."""
    ease = torch.rand(total, generator=generator)
    levels = 0.5 + spread * torch.randn(seeds, 1, generator=generator)
    others = torch.rand(seeds, total, generator=generator) < levels + (ease - 0.5) * 0.6
    right = torch.rand(total, generator=generator) < 0.5 + gain + (ease - 0.5) * 0.6
    return right, others


@pytest.mark.parametrize(("gain", "spread"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.05)])
def test_differences_cover(gain, spread):
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(300):
        low, high = paired_difference(*simulated(generator, gain, spread), draws=400)[1]
        covered += low <= gain <= high
    assert 0.9 <= covered / 300 <= 0.99


def test_pairing_and_chance():
    generator = torch.Generator().manual_seed(2)
    right, others = simulated(generator, 0.0, 0.0)
    same, interval = paired_difference(right, right.repeat(3, 1))
    assert (same, *interval) == (0, 0, 0)
    first = paired_difference(right, others)
    assert first == paired_difference(right, others)
    assert first != paired_difference(right, others, seed=1)
    assert first[0] == pytest.approx(float(right.double().mean() - others.double().mean()))
    one = paired_difference(right, others[:1])  # a single seed says nothing of how seeds vary
    assert one[1].low < one[0] < one[1].high
