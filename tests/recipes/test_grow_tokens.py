"""Transformers over tokens, grown: a forward pass on token numbers says whether the target computes the same."""

from functools import partial

import pytest
import torch
from support.bert_nets import Bert, BuiltIn
from support.nets import Net

from netgraft.errors import CheckFailed, UsageError
from netgraft.graft import graft
from netgraft.plan import Plan
from netgraft.recipes.graft import Graft
from netgraft.recipes.grow import Grow
from netgraft.recipes.run import run_recipe
from netgraft.trace import trace


def example():
    return (torch.zeros(2, 8, dtype=torch.long),)


def grown(source, target, **options):
    """(plan, source, target) in float64, the source as after training."""
    graphs = [trace(Net(build, (8,), example)) for build in (source, target)]
    pairing, moves, kept = run_recipe(Grow(**options), *graphs)
    plan = Plan("s", "t", "", "", "grow", {}, pairing, moves, kept)
    rng = torch.Generator().manual_seed(3)
    one, other = source().double().eval(), target().double().eval()
    for tensor in one.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=rng, dtype=torch.float64))
    other.load_state_dict(graft(plan, one.state_dict(), other.state_dict()))
    return plan, one, other


def apart(one, other, tokens=50):
    ids = torch.randint(tokens, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = one(ids)
        return ((expected - other(ids)).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"width": 32, "heads": 4, "hidden": 50}),
        ({}, {"width": 32, "heads": 2, "depth": 4}),  # wider heads, and norms behind the additions twice as often
        ({"first": True}, {"first": True, "width": 48, "heads": 6, "depth": 3}),
        ({"attention": BuiltIn}, {"attention": BuiltIn, "width": 32, "depth": 3, "places": 20}),
    ],
)
def test_bert_grows_exactly(before, after):
    plan, one, other = grown(partial(Bert, **before), partial(Bert, **after))
    assert not plan.pairing.notes
    assert not plan.kept
    assert apart(one, other) < 1e-10


def test_a_longer_table_of_positions_keeps_what_it_had():
    plan, one, other = grown(Bert, partial(Bert, places=20, width=32, heads=4))
    assert not plan.kept
    assert torch.equal(other.positions.weight[:12, :16], one.positions.weight)
    assert other.positions.weight[12:].std() > 0.5  # its own initialisation
    assert apart(one, other) < 1e-10


def test_tokens_are_never_matched_by_number_in_silence():
    plan, *_ = grown(Bert, partial(Bert, vocabulary=60))
    (kept,) = plan.kept
    grafted = run_recipe(Graft(), *(trace(Net(partial(Bert, vocabulary=n), (8,), example)) for n in (50, 60)))
    assert {each.key: each.why for each in grafted.kept}["tokens.weight"] == kept.why
    assert kept.key == "tokens.weight"
    assert "--vocab-map" in kept.why
    assert any("--vocab-map" in note for note in plan.pairing.notes)


def test_tokens_go_by_a_map_and_new_ones_begin_at_the_mean():
    vocabulary = (*range(49, -1, -1), -1, -1)  # backwards, and two that are new; the table has 8 to spare
    plan, one, other = grown(Bert, partial(Bert, vocabulary=60, width=32, heads=4), vocabulary=vocabulary)
    assert not plan.kept
    assert torch.equal(other.tokens.weight[:50, :16], one.tokens.weight.flip(0))
    assert torch.allclose(other.tokens.weight[50:, :16], one.tokens.weight.mean(0).expand(10, -1))
    ids = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(one(ids), other(49 - ids), atol=1e-10)
    with pytest.raises(CheckFailed, match="by their strings"):
        grown(Bert, partial(Bert, vocabulary=60), vocabulary=vocabulary, exact=True)


def test_a_head_that_answers_with_tokens_goes_by_the_map_too():
    sizes = partial(Bert, classes=50), partial(Bert, vocabulary=60, classes=60)
    _, one, other = grown(*sizes, vocabulary=(5, 3, *[-1] * 58))
    for role in ("weight", "bias"):
        before, after = getattr(one.classifier, role), getattr(other.classifier, role)
        assert torch.equal(after[:2], before[[5, 3]])
        assert torch.allclose(after[2:], before.mean(0).expand(58, *before.shape[1:]))


def test_a_map_that_fits_no_table_is_refused():
    with pytest.raises(UsageError, match="map of 61 tokens"):
        grown(Bert, partial(Bert, vocabulary=60), vocabulary=(0,) * 61)


def test_a_norm_behind_which_a_layer_reads_is_not_left_without_its_affine():
    """Only blocks that can be zero may stand between an inserted norm and the next."""

    class Extra(Bert):
        def __init__(self):
            super().__init__()
            self.more, self.again = torch.nn.LayerNorm(16), torch.nn.Linear(16, 16)

        def forward(self, ids):
            x = self.tokens(ids) + self.positions(self.position_ids[:, : ids.shape[1]])
            x = self.more(self.again(self.norm(x)))
            for block in self.blocks:
                x = block(x)
            return self.classifier(torch.tanh(self.pooler(x[:, 0])))

    plan, *_ = grown(Bert, Extra)
    assert plan.pairing.notes


class Recurrent(torch.nn.Module):
    def __init__(self, kind=torch.nn.LSTM, width=6, inputs=5, floors=2, both=False):
        super().__init__()
        self.embed = torch.nn.Linear(4, inputs)
        self.cells = kind(inputs, width, floors, batch_first=True, bidirectional=both)
        self.head = torch.nn.Linear(width * (1 + both), 3)

    def forward(self, x):
        return self.head(self.cells(self.embed(x))[0].mean(1))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_gates_grow_with_their_units(kind, both):
    build = partial(Recurrent, kind, both=both)
    graphs = [trace(Net(each, (7, 4))) for each in (build, partial(build, width=15, inputs=10))]
    pairing, moves, kept = run_recipe(Grow(), *graphs)
    assert not kept
    assert not pairing.notes
    one, other = build().double(), partial(build, width=15, inputs=10)().double()
    plan = Plan("s", "t", "", "", "grow", {}, pairing, moves, kept)
    other.load_state_dict(graft(plan, one.state_dict(), other.state_dict()))
    x = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(one(x), other(x), atol=1e-12)


def test_gates_of_another_kind_do_not_stand_in_for_one_another():
    graphs = [trace(Net(partial(Recurrent, kind), (7, 4))) for kind in (torch.nn.LSTM, torch.nn.GRU)]
    pairing, *_ = run_recipe(Grow(), *graphs)
    assert "cells" not in {pair.target for pair in pairing.pairs}
