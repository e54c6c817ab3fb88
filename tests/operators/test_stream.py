"""A pre-norm transformer whose residual stream is widened by any ratio, in float64 (LEMON; OPERATORS D6)."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.channels.index_map import cyclic
from netgraft.operators.gather import Gather
from netgraft.operators.share import Share
from netgraft.operators.stretch_columns import StretchColumns
from netgraft.operators.stretch_norm import StretchNorm
from netgraft.operators.stretch_rows import StretchRows

laws = settings(deadline=None, derandomize=True, database=None, max_examples=40)
HIDDEN, TOKENS = 7, 4


def transformer(d, seed, rms=False):
    """Weights by name; "rows" write to the stream, "columns" read it, "norm" stands between."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = {"embed.rows": randn(d, 5), "embed.rows.bias": randn(d), "position.columns": randn(TOKENS, d)}
    for block in range(2):
        weights[f"{block}.norm.weight"], weights[f"{block}.norm.bias"] = randn(d), randn(d) * (not rms)
        weights[f"{block}.in.columns"], weights[f"{block}.in.bias"] = randn(HIDDEN, d), randn(HIDDEN)
        weights[f"{block}.out.rows"], weights[f"{block}.out.rows.bias"] = randn(d, HIDDEN), randn(d)
    weights["norm.weight"], weights["norm.bias"] = randn(d), randn(d) * (not rms)
    weights["head.columns"] = randn(3, d)
    return weights, randn(2, TOKENS, 5)


def normed(x, weight, bias, eps, rms):
    if rms:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def run(w, image, eps, rms):
    x = F.linear(image, w["embed.rows"], w["embed.rows.bias"]) + w["position.columns"]
    for block in range(2):
        h = normed(x, w[f"{block}.norm.weight"], w[f"{block}.norm.bias"], eps, rms)
        h = F.gelu(F.linear(h, w[f"{block}.in.columns"], w[f"{block}.in.bias"]))
        x = x + F.linear(h, w[f"{block}.out.rows"], w[f"{block}.out.rows.bias"])
    return F.linear(normed(x, w["norm.weight"], w["norm.bias"], eps, rms), w["head.columns"])


def stretched(weights, d, rms=False, seed=None):
    rest = "zero" if rms else "mean"
    grown = {}
    for name, weight in weights.items():
        if "rows" in name:
            grown[name] = StretchRows(0, d, rest)(weight)
        elif name == "position.columns":  # written to the stream, along its last axis
            grown[name] = StretchRows(-1, d, rest)(weight)
        elif "columns" in name:
            grown[name] = StretchColumns(1, d, seed)(weight)
        elif "norm" in name:
            grown[name] = StretchNorm(d, name.rpartition(".")[2])(weight)
        else:
            grown[name] = weight
    return grown


def relative_error(result, wanted):
    return ((result - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("rms", [False, True])
@laws
@given(d=st.integers(2, 7), more=st.integers(0, 20), share=st.none() | st.just(3), seed=st.integers(0, 2**16))
def test_any_ratio_is_exact_with_the_adapted_eps(rms, d, more, share, seed):
    weights, image = transformer(d, seed, rms)
    grown, eta2 = stretched(weights, d + more, rms, share), (d + more) // d * d / (d + more)
    wanted = run(weights, image, 1e-3, rms)
    assert relative_error(run(grown, image, 1e-3 * eta2, rms), wanted) < 1e-12


@pytest.mark.parametrize("rms", [False, True])
def test_the_unadapted_eps_costs_an_error_of_its_own_order(rms):
    weights, image = transformer(6, 0, rms)
    grown = stretched(weights, 16, rms)
    coarse, fine = (relative_error(run(grown, image, eps, rms), run(weights, image, eps, rms)) for eps in (1e-4, 1e-6))
    assert 0 < coarse < 1e-4
    assert 50 < coarse / fine < 200
    whole = stretched(weights, 18, rms)
    assert relative_error(run(whole, image, 1e-4, rms), run(weights, image, 1e-4, rms)) < 1e-12


def test_naive_copies_are_not_exact():
    weights, image = transformer(6, 0)
    index = cyclic(6, 16)
    naive = {}
    for name, weight in weights.items():
        along = -1 if name == "position.columns" else 0
        reads = "columns" in name and along == 0
        moved = 6 in weight.shape
        naive[name] = (Share(1, index) if reads else Gather(along, index))(weight) if moved else weight
    assert relative_error(run(naive, image, 0, False), run(weights, image, 0, False)) > 0.01
    grown = stretched(weights, 16)
    assert relative_error(run(grown, image, 0, False), run(weights, image, 0, False)) < 1e-12


def test_whole_ratios_are_copies_and_shares():
    weight, index = torch.arange(6.0).reshape(2, 3), cyclic(3, 9)
    assert torch.equal(StretchRows(1, 9)(weight), Gather(1, index)(weight))
    assert torch.equal(StretchColumns(1, 9, 5)(weight), Share(1, index, 5)(weight))
    assert torch.equal(StretchNorm(9, dim=1)(weight), Gather(1, index)(weight))


def test_by_hand():
    row = torch.tensor([1.0, 2.0, 6.0])
    assert StretchRows(0, 5)(row).tolist() == [1, 2, 6, 3, 3]
    assert StretchRows(0, 5, "zero")(row).tolist() == [1, 2, 6, 0, 0]
    assert StretchColumns(0, 8)(row).tolist() == [0.5, 1, 3, 0.5, 1, 3, 0, 0]
    assert StretchNorm(4)(row).tolist() == pytest.approx([0.75**0.5 * value for value in (1, 2, 6, 3)])
    assert StretchNorm(4, "bias")(row).tolist() == [1, 2, 6, 0]
    assert StretchRows(0, 4)(torch.tensor([1, 2])).tolist() == [1, 2, 1, 2]
