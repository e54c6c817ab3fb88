"""Widening, sharing and folding on real forward passes: random small networks, widened operator by operator."""

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.channels.index_map import blocks, copies, identity, indices, runs
from netgraft.operators.fold import Fold
from netgraft.operators.gather import Gather
from netgraft.operators.share import Share

laws = settings(deadline=None, derandomize=True, database=None, max_examples=60)
seeds = st.integers(0, 2**16)
KINDS = ["conv", "residual", "depthwise", "grouped", "se", "concat", "pool"]


class Pair:
    """A network and its widened copy, built layer by layer: ``forward(0, x)`` runs the source, ``(1, x)`` the target.

    The map of the current activation's channels is ``index``, and every weight is stored as (source, target).
    """

    def __init__(self, seed, share_seed=None):
        self.random, self.share_seed = random.Random(seed), share_seed
        self.generator = torch.Generator().manual_seed(seed)
        self.channels, self.index = 3, identity(3)
        self.weights, self.steps, self.rows = [], [], []  # rows: (weight, index map of its axis 0)

    def weight(self, shape, out=None, columns=None, spread=None):
        source = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        source = source.abs() + 0.1 if spread == "positive" else source
        target = source if out is None else Gather(0, out)(source)
        seed = None if self.share_seed is None else self.share_seed + len(self.weights)
        target = target if columns is None else Share(1, columns, seed)(target)
        self.weights.append((source, target.clone()))
        if columns is not None:
            self.rows.append((len(self.weights) - 1, out))
        return len(self.weights) - 1

    def onto(self, n):
        """A map that reads each of n entries at least once, in any order."""
        read = [*range(n), *(self.random.randrange(n) for _ in range(self.random.randrange(n + 2)))]
        self.random.shuffle(read)
        return runs(read)

    def block(self, n, out, columns, fan_in, groups=(1, 1)):
        """Convolution, batch norm with running statistics, SiLU."""
        kernel = self.weight((n, fan_in, 3, 3), out, columns)
        bias, gamma, beta, mean = (self.weight((n,), out) for _ in range(4))
        variance = self.weight((n,), out, spread="positive")

        def run(side, x):
            w = [pair[side] for pair in self.weights]
            x = F.conv2d(x, w[kernel], w[bias], padding=1, groups=groups[side])
            return F.silu(F.batch_norm(x, w[mean], w[variance], w[gamma], w[beta]))

        return run

    def add(self, kind):
        c, index = self.channels, self.index
        if kind == "conv":
            self.channels, self.index = self.random.randint(1, 5), None
            self.index = self.onto(self.channels)
            self.steps.append(self.block(self.channels, self.index, index, c))
        elif kind == "residual":
            branch = self.block(c, index, index, c)
            self.steps.append(lambda side, x: x + branch(side, x))
        elif kind == "depthwise":
            self.steps.append(self.block(c, index, None, 1, (c, len(indices(index)))))
        elif kind == "grouped":  # groups map to groups, and columns inside a group to columns of that group
            groups, n = self.random.randint(1, 3), self.random.randint(1, 3)
            outer, inner, out = self.onto(groups), self.onto(2), self.onto(n)
            self.steps.append(self.block(groups * 2, blocks(outer, 2, inner), index, c))
            self.channels, self.index = groups * n, blocks(outer, n, out)
            counts = (groups, len(indices(outer)))
            self.steps.append(self.block(self.channels, self.index, inner, 2, counts))
        elif kind == "se":
            hidden = self.onto(2)
            reduce, expand = self.weight((2, c), hidden, index), self.weight((c, 2), index, hidden)

            def gate(side, x):
                squeezed = F.silu(F.linear(x.mean((2, 3)), self.weights[reduce][side]))
                return x * F.linear(squeezed, self.weights[expand][side]).sigmoid()[:, :, None, None]

            self.steps.append(gate)
        elif kind == "concat":
            n = self.random.randint(1, 3)
            out = self.onto(n)
            branch = self.block(n, out, index, c)
            self.channels, self.index = c + n, runs([*indices(index), *(c + i for i in indices(out))])
            self.steps.append(lambda side, x: torch.cat([x, branch(side, x)], 1))
        else:
            self.steps.append(lambda _, x: F.max_pool2d(x, 3, stride=1, padding=1))

    def close(self, size):
        """A linear layer over the flattened features; its rows, the outputs, are not widened."""
        flattened = blocks(self.index, size * size, identity(size * size))
        head = self.weight((2, self.channels * size * size), None, flattened)
        self.steps.append(lambda side, x: F.linear(x.flatten(1), self.weights[head][side]))

    def forward(self, side, x):
        for step in self.steps:
            x = step(side, x)
        return x

    def image(self, size=4):
        return torch.randn((2, 3, size, size), generator=self.generator, dtype=torch.float64)


def built(kinds, seed, share_seed=None):
    pair = Pair(seed, share_seed)
    for kind in kinds:
        pair.add(kind)
    pair.close(4)
    return pair


def relative_error(result, wanted):
    return ((result - wanted).norm() / wanted.norm()).item()


@laws
@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), seed=seeds, share=st.none() | st.just(7))
def test_widening_is_exact(kinds, seed, share):
    pair = built(["conv", *kinds], seed, share)
    image = pair.image()
    assert relative_error(pair.forward(1, image), pair.forward(0, image)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_really_widened(kind):
    pair = built(["conv", kind, "conv"], 5)
    assert any(len(indices(out)) > len(source) for (source, _), (_, out) in _widened(pair))
    assert sum(target.numel() for _, target in pair.weights) > sum(source.numel() for source, _ in pair.weights)


def _widened(pair):
    return [(pair.weights[i], (i, out)) for i, out in pair.rows if out is not None]


@pytest.mark.parametrize("share_seed", [None, 0, 1])
def test_copies_stay_copies_after_a_step_unless_shares_are_unequal(share_seed):
    pair = built(["conv", "residual", "se", "conv"], 11, share_seed)
    image = pair.image()
    for i, _ in pair.rows:
        pair.weights[i][1].requires_grad_()
    pair.forward(1, image).square().sum().backward()
    differences = []
    for i, out in pair.rows:
        source, target = pair.weights[i]
        stepped = target.detach() - 0.1 * target.grad
        for members in copies(out, len(source)) if out is not None else []:
            differences += [relative_error(stepped[q], stepped[members[0]]) for q in members[1:]]
    assert differences
    assert (max(differences) < 1e-12) if share_seed is None else (min(differences) > 1e-6)


@laws
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=seeds, share=st.none() | st.just(3), data=st.data()
)
def test_fold_undoes_widening(shape, seed, share, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    pair = Pair(seed)
    weight, index = torch.randn(shape, generator=pair.generator, dtype=torch.float64), pair.onto(shape[dim])
    assert torch.equal(Fold(dim, index)(Gather(dim, index)(weight)), weight)
    assert torch.equal(Fold(dim, index)(Gather(dim, index)(weight.half())), weight.half())
    shared = Share(dim, index, share)(weight)
    assert torch.allclose(Fold(dim, index, "sum")(shared), weight, rtol=1e-14, atol=0)


@laws
@given(seed=seeds, rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_fold_is_the_mean_of_rows_and_the_sum_of_columns(seed, rows, columns):
    """OPERATORS D2: W'[p, q] = mean over A_p of the sum over B_q of W[i, j]."""
    pair = Pair(seed)
    a, b = pair.onto(rows), pair.onto(columns)
    weight = torch.randn((len(indices(a)), len(indices(b))), generator=pair.generator, dtype=torch.float64)
    result = Fold(1, b, "sum")(Fold(0, a)(weight))
    for p, members in enumerate(copies(a, rows)):
        for q, others in enumerate(copies(b, columns)):
            assert result[p, q].item() == pytest.approx(weight[members][:, others].sum(1).mean().item(), abs=1e-13)


def test_gather_and_share_by_hand():
    weight = torch.tensor([[6.0, 12.0, 24.0]])
    assert Gather(1, ((0, 3), (0, 2)))(weight).tolist() == [[6, 12, 24, 6, 12]]
    assert Gather(-1, ((2, 1), (0, 1)))(weight).tolist() == [[24, 6]]
    assert Share(1, ((0, 3), (0, 2)))(weight).tolist() == [[3, 6, 24, 3, 6]]
    assert Share(1, ((2, 1), (0, 3)))(weight).tolist() == [[12, 6, 12, 12]]


def test_shares_are_one_number_per_entry_drawn_from_the_seed():
    weight, index = torch.ones(4, 3, 2, dtype=torch.float64), ((0, 3), (0, 2))
    first, again, other = (Share(1, index, seed)(weight) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(first, first[:1, :, :1].expand(4, 5, 2))  # the same for every row and tap
    assert first[0, 2, 0] == 1  # a single copy keeps its value bit for bit
    assert first.min() > 0
    near = Share(1, index, 1, 1e8)(weight)
    assert torch.allclose(near, Share(1, index)(weight), rtol=1e-3)
    before = torch.random.get_rng_state()
    Share(1, index, 1)(weight)
    assert torch.equal(torch.random.get_rng_state(), before)
