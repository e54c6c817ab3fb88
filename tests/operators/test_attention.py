"""Head-aware operators on real attention in float64: whole heads, another head width, new heads, fused or split."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.channels.index_map import blocks, cyclic, identity
from netgraft.operators.fold import Fold
from netgraft.operators.gather import Gather
from netgraft.operators.head_dim import HeadDim
from netgraft.operators.pad import Pad
from netgraft.operators.scale import Scale
from netgraft.operators.scale_part import ScalePart
from netgraft.operators.share import Share

laws = settings(deadline=None, derandomize=True, database=None, max_examples=30)
seeds = st.integers(0, 2**16)
D = 12  # width of the stream, which stays


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(x, q, k, v, proj, heads, kv_heads=None, scale=None):
    """Attention on [batch, tokens, D]; every projection is (weight, bias)."""
    q, k, v = (
        F.linear(x, *part).unflatten(-1, (h, -1)).transpose(1, 2)
        for part, h in ((q, heads), (k, kv_heads or heads), (v, kv_heads or heads))
    )
    k, v = (part.repeat_interleave(heads // (kv_heads or heads), 1) for part in (k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return F.linear(mixed.transpose(1, 2).flatten(2), *proj)


def fused(x, qkv, proj, heads):
    q, k, v = zip(*(part.chunk(3) for part in qkv), strict=True)
    return attention(x, q, k, v, proj, heads)


def source(seed, heads, width):
    qkv = randn(seed, 3 * heads * width, D), randn(seed + 1, 3 * heads * width)
    proj = randn(seed + 2, D, heads * width), randn(seed + 3, D)
    return randn(seed + 4, 2, 5, D), qkv, proj


def relative_error(result, wanted):
    return ((result - wanted).norm() / wanted.norm()).item()


def both(operator, pair):
    return tuple(map(operator, pair))


@laws
@given(heads=st.integers(1, 3), more=st.integers(0, 4), width=st.integers(1, 5), share=st.none() | seeds, seed=seeds)
def test_whole_heads(heads, more, width, share, seed):
    x, qkv, proj = source(seed, heads, width)
    head_map = cyclic(heads, heads + more)
    index = blocks(head_map, width, identity(width))
    n = heads * width
    qkv_index = blocks(identity(3), n, index)
    grown = both(Gather(0, qkv_index), qkv)
    shared = Share(1, index, share)(proj[0]), proj[1]
    assert relative_error(fused(x, grown, shared, heads + more), fused(x, qkv, proj, heads)) < 1e-12
    assert torch.equal(Fold(0, qkv_index)(grown[0]), qkv[0])
    if more % heads:  # one circle over the whole fused axis takes rows of q for k
        plain = both(Gather(0, cyclic(3 * n, 3 * (n + more * width))), qkv)
        assert relative_error(fused(x, plain, shared, heads + more), fused(x, qkv, proj, heads)) > 1e-3


@pytest.mark.parametrize("size_to", [128, 96, 80])
@pytest.mark.parametrize("seed", [None, 4])
def test_wider_heads_are_exact_fused_and_split(size_to, seed):
    heads, size = 2, 64
    x, qkv, proj = source(0, heads, size)
    qkv = both(Scale(0.3), qkv)
    wanted = fused(x, qkv, proj, heads)
    index = blocks(identity(heads), size, cyclic(size, size_to))
    shared = Share(1, index, seed)(proj[0]), proj[1]
    grown = both(HeadDim(0, 3 * heads, size, size_to, queries=((0, heads),)), qkv)
    assert relative_error(fused(x, grown, shared, heads), wanted) < 1e-12
    q, k, v = zip(*(part.chunk(3) for part in qkv), strict=True)
    q = both(HeadDim(0, heads, size, size_to, queries=((0, heads),)), q)
    k, v = (both(HeadDim(0, heads, size, size_to), part) for part in (k, v))
    assert relative_error(attention(x, q, k, v, shared, heads), wanted) < 1e-12
    assert torch.equal(torch.cat([q[0], k[0], v[0]]), grown[0])
    assert relative_error(attention(x, k, k, v, shared, heads), wanted) > 1e-3


def test_more_heads_and_wider_heads_at_once():
    x, qkv, proj = source(3, 2, 4)
    index = blocks(cyclic(2, 5), 6, identity(6))
    grown = both(HeadDim(0, 6, 4, 6, queries=((0, 2),)), qkv)
    grown = both(Gather(0, blocks(identity(3), 12, index)), grown)
    shared = Share(1, blocks(cyclic(2, 5), 4, cyclic(4, 6)))(proj[0]), proj[1]
    assert relative_error(fused(x, grown, shared, 5), fused(x, qkv, proj, 2)) < 1e-12


def test_queries_that_are_interleaved_with_keys_and_values():
    """BLOOM's and GPT-NeoX's fused axis: q, k, v of head 0, then of head 1."""
    _, (weight, _), _ = source(5, 2, 4)
    grown = HeadDim(0, 6, 4, 8, queries=((0, 1), (3, 1)))(weight)
    wanted = Share(0, ((0, 4), (0, 4)))(torch.ones(4)).double() * 2**0.5
    assert torch.allclose(grown[:8] / weight[[0, 1, 2, 3] * 2], wanted[:, None].expand(8, D))
    assert torch.equal(grown[8:16], weight[4:8].repeat(2, 1))


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_narrower_heads_scale_their_logits(exponent):
    _, (weight, bias), _ = source(6, 2, 8)
    narrowed = HeadDim(0, 6, 8, 2, queries=((0, 2),), exponent=exponent)
    factor = (2 / 8) ** 0.5 * (8 / 2) ** exponent
    assert torch.allclose(narrowed(weight)[:4], weight[[0, 1, 8, 9]] * factor, rtol=1e-14)
    assert torch.equal(narrowed(bias)[4:], bias[[16, 17, 24, 25, 32, 33, 40, 41]])


@laws
@given(heads=st.integers(1, 3), more=st.integers(0, 3), width=st.integers(1, 5), seed=seeds)
def test_new_heads_that_nothing_reads_are_exact_whatever_they_hold(heads, more, width, seed):
    x, qkv, proj = source(seed, heads, width)
    new = randn(seed + 9, 3, more * width, D), randn(seed + 10, 3, more * width)
    grown = tuple(
        torch.cat([torch.cat([old, fresh]) for old, fresh in zip(part.chunk(3), extra, strict=True)])
        for part, extra in zip(qkv, new, strict=True)
    )
    padded = Pad(1, (heads + more) * width)(proj[0]), proj[1]
    assert relative_error(fused(x, grown, padded, heads + more), fused(x, qkv, proj, heads)) < 1e-12


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_grouped_queries_keep_their_keys_and_values(copies):
    """GQA: 4 query heads read 2 key-value heads; the map of query heads carries whole groups."""
    x, width, groups = randn(0, 2, 5, D), 3, cyclic(2, 2 * copies - 1 if copies > 1 else 2)
    q, k, v = ((randn(i, h * width, D), randn(i + 9, h * width)) for i, h in ((1, 4), (2, 2), (3, 2)))
    proj = randn(4, D, 4 * width), randn(5, D)
    kv_index = blocks(groups, width, identity(width))
    q_index = blocks(groups, 2 * width, identity(2 * width))
    n = sum(count for _, count in groups)
    shared = Share(1, q_index)(proj[0]), proj[1]
    grown = (both(Gather(0, index), part) for index, part in ((q_index, q), (kv_index, k), (kv_index, v)))
    result = attention(x, *grown, shared, 2 * n, n)
    assert relative_error(result, attention(x, q, k, v, proj, 4, 2)) < 1e-12


def test_attention_without_the_square_root_needs_its_inverse():
    x, qkv, proj = source(8, 2, 4)
    q, k, v = zip(*(part.chunk(3) for part in both(Scale(0.3), qkv)), strict=True)
    wanted = attention(x, q, k, v, proj, 2, scale=1.0)
    q = both(HeadDim(0, 2, 4, 6, queries=((0, 2),)), q)
    q = both(ScalePart(0, 0, 12, (4 / 6) ** 0.5), q)
    k, v = (both(HeadDim(0, 2, 4, 6), part) for part in (k, v))
    shared = Share(1, blocks(identity(2), 4, cyclic(4, 6)))(proj[0]), proj[1]
    assert relative_error(attention(x, q, k, v, shared, 2, scale=1.0), wanted) < 1e-12
