"""What vanishes in the canonical form, what does not, and which part is which: judged by how the networks were made."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced
from torch import nn

from netgraft.architecture.canonical import canonical
from netgraft.architecture.folding import folded
from netgraft.architecture.isomorphism import isomorphism


class Plain(nn.Module):
    def __init__(self, act=torch.relu, pool=lambda x: x.mean((2, 3)), kernel=3, widths=(4, 6), head=None, order=1):
        super().__init__()
        self.act, self.pool = act, pool
        made = {
            "first": nn.Conv2d(3, widths[0], kernel, padding=kernel // 2),
            "norm": nn.BatchNorm2d(widths[0]),
            "second": nn.Conv2d(widths[0], widths[1], 1),
            "head": head or nn.Linear(widths[1], 5),
        }
        for name in list(made)[::order]:
            setattr(self, name, made[name])

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        return self.head(self.pool(self.second(x)))


def form(build):
    return canonical(traced(build, (3, 8, 8)))


def names(build, other):
    """By the second network's layer the first one's that is the same part; None where the forms differ."""
    one, two = form(build), form(other)
    found = isomorphism(one, two)
    return found and {two.parts[b].layer: one.parts[a].layer for b, a in found.items() if two.parts[b].layer}


SPELLINGS = {
    "registered backwards": {"order": -1},
    "another activation function": {"act": lambda x: F.gelu(x)},
    "an activation written out": {"act": lambda x: x * torch.sigmoid(x)},
    "a clamp": {"act": lambda x: x.clamp(0, 6)},
    "dropout and a copy": {"act": lambda x: F.dropout(torch.relu(x), 0.5, False).contiguous()},
    "another way to pool": {"pool": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)},
    "a view and a mean": {"pool": lambda x: x.view(x.shape[0], x.shape[1], -1).mean(-1)},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_vanish(name):
    found = names(Plain, lambda: Plain(**SPELLINGS[name]))
    assert found == {each: each for each in ("first", "norm", "second", "head")}


def test_a_convolution_of_one_pixel_is_a_linear_layer():
    class Rows(Plain):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(4, 6)

        def forward(self, x):
            x = torch.relu(self.norm(self.first(x))).permute(0, 2, 3, 1)
            return self.head(self.second(x).mean((1, 2)))

    assert names(Plain, Rows) == {each: each for each in ("first", "norm", "second", "head")}


@pytest.mark.parametrize("changed", [{"kernel": 5}, {"widths": (4, 7)}, {"head": nn.Linear(6, 6)}])
def test_sizes_do_not_vanish(changed):
    assert names(Plain, lambda: Plain(**changed)) is None


class Attends(nn.Module):
    """One head of attention: queries, keys and values by one layer, or by three."""

    def __init__(self, fused, swapped=False):
        super().__init__()
        self.fused, self.swapped = fused, swapped
        if fused:
            self.qkv = nn.Linear(6, 18)
        else:
            self.values, self.keys, self.queries = (nn.Linear(6, 6) for _ in range(3))
        self.proj = nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.queries(x), self.keys(x), self.values(x))
        if self.swapped:
            q, v = v, q
        return self.proj(F.scaled_dot_product_attention(q, k, v))


def test_queries_keys_and_values_are_told_apart():
    one, two = (canonical(traced(lambda fused=fused: Attends(fused), (4, 6))) for fused in (True, False))
    found = isomorphism(one, two)
    rows = {two.parts[b].layer: one.parts[a].rows for b, a in found.items()}
    parts = {"queries": range(6), "keys": range(6, 12), "values": range(12, 18)}
    assert {name: rows[name] for name in parts} == {name: tuple(each) for name, each in parts.items()}


def test_a_part_that_goes_another_way_is_another_part():
    one, two = (canonical(traced(lambda s=s: Attends(True, s), (4, 6))) for s in (False, True))
    found = isomorphism(one, two)
    rows = {two.parts[b].rows: one.parts[a].rows for b, a in found.items()}
    assert rows[tuple(range(6))] == tuple(range(12, 18))  # what the other calls queries are values there


class Branches(nn.Module):
    """Two branches of one shape that differ in what stands at their ends."""

    def __init__(self, turned=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.after_a, self.after_b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.turned = turned

    def forward(self, x):
        first, second = (self.b, self.a) if self.turned else (self.a, self.b)
        return self.after_a(first(x)) + self.after_b(second(x))


def test_branches_are_known_by_what_follows():
    assert names(Branches, lambda: Branches(True)) == {
        "a": "b",
        "b": "a",
        "after_a": "after_a",
        "after_b": "after_b",
    }


def test_norms_fold():
    class Folded(Plain):
        def forward(self, x):
            return self.head(self.pool(self.second(torch.relu(self.first(x)))))

    one, two = form(Plain), form(Folded)
    assert isomorphism(one, two) is None
    found = isomorphism(folded(one), folded(two))
    parts = {folded(two).parts[b].layer: folded(one).parts[a] for b, a in found.items()}
    assert (parts["first"].layer, parts["first"].norm) == ("first", "norm")


def test_a_norm_that_others_read_does_not_fold():
    class Shared(Plain):
        def forward(self, x):
            y = self.first(x)
            return self.head(self.pool(self.second(self.norm(y) + y)))

    graph = form(Shared)
    assert len(folded(graph).parts) == len(graph.parts)
