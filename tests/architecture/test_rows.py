"""Rows followed through views: against PyTorch's own views of an index tensor, and in networks that cut projections."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import traced
from torch import nn

from netgraft.architecture.rows import View, operands, patches, readers


def elements(view, shape):
    """The elements that a view has, in its own order, by counting through its factors."""
    offsets = []
    for factors in view.axes:
        steps = [range(0, size * stride, stride) for size, stride in factors]
        offsets.append([sum(each) for each in itertools.product(*steps)])
    found = [view.offset + sum(each) for each in itertools.product(*offsets)]
    assert len(found) == torch.Size(shape).numel()
    return found


@st.composite
def steps(draw):
    return draw(
        st.lists(st.tuples(st.sampled_from(["reshape", "permute", "select", "slice"]), st.randoms()), max_size=6)
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), steps())
def test_views_are_those_of_pytorch(shape, plan):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    view = View.whole(tuple(shape))
    for name, random in plan:
        if name == "permute":
            dims = list(range(tensor.dim()))
            random.shuffle(dims)
            tensor, after = tensor.permute(dims), view.permuted(dims)
        elif name == "select" and tensor.dim() > 1:
            dim = random.randrange(tensor.dim())
            place = random.randrange(tensor.shape[dim])
            tensor, after = tensor.select(dim, place), view.selected(dim, place)
        elif name == "slice":
            dim = random.randrange(tensor.dim())
            start = random.randrange(tensor.shape[dim])
            length = random.randint(1, tensor.shape[dim] - start)
            tensor, after = tensor.narrow(dim, start, length), view.sliced(dim, start, length)
        else:
            sizes = [*tensor.shape]
            place = random.randrange(len(sizes))
            if sizes[place] % 2 == 0:
                sizes[place : place + 1] = [2, sizes[place] // 2]
            else:
                sizes[place : place + 2] = [torch.Size(sizes[place : place + 2]).numel()]
            tensor, after = tensor.reshape(sizes), view.reshaped(tuple(sizes))
        if after is None:  # not a product of factors: nothing is said rather than something wrong
            return
        view = after
    assert elements(view, tensor.shape) == tensor.flatten().tolist()


class Cut(nn.Module):
    """A projection of 12 rows, cut in a way of its own; each piece goes to a layer of its own."""

    def __init__(self, cut, pieces):
        super().__init__()
        self.mixed, self.cut = nn.Linear(5, 12), cut
        self.after = nn.ModuleList(nn.Linear(each, 2) for each in pieces)

    def forward(self, x):
        return sum(layer(torch.tanh(piece)) for layer, piece in zip(self.after, self.cut(self.mixed(x)), strict=True))


def interleaved(x):  # two heads, in each two queries, two keys, two values
    return [part.flatten(1) for part in x.unflatten(1, (2, 6)).split(2, dim=2)]


CUTS = {
    "chunk": (lambda x: x.chunk(3, 1), (4, 4, 4)),
    "uneven": (lambda x: x.split([5, 4, 3], 1), (5, 4, 3)),
    "slices": (lambda x: (x[:, :7], x[:, 7:]), (7, 5)),
    "unbind": (lambda x: x.view(-1, 3, 4).permute(1, 0, 2).unbind(0), (4, 4, 4)),
    "select": (lambda x: [x.view(-1, 2, 6)[:, i] for i in (1, 0)], (6, 6)),
    "interleaved": (interleaved, (4, 4, 4)),
}


@pytest.mark.parametrize("name", CUTS)
def test_rows_of_the_pieces(name):
    cut, pieces = CUTS[name]
    graph = traced(lambda: Cut(cut, pieces), (5,))
    found = [reader.rows for reader in sorted(readers(graph, graph.by_id["mixed"]), key=lambda r: r.node)]
    truth = [tuple(part[0].tolist()) for part in cut(torch.arange(24).reshape(2, 12))]
    order = [node.id for node in graph.nodes if node.op == "tanh"]
    assert dict(zip(sorted(order), found, strict=True)) == dict(zip(order, truth, strict=True))


def test_channels_of_a_feature_map():
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)

        def forward(self, x):
            a, b = self.conv(x).flatten(2).transpose(1, 2).chunk(2, dim=-1)
            return torch.tanh(a) * b

    graph = traced(Map, (3, 4, 4))
    rows = {reader.rows for reader in readers(graph, graph.by_id["conv"])}
    assert rows == {(0, 1, 2), (3, 4, 5)}


def test_operands_come_in_the_order_of_the_arguments():
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            a, b = self.one(x), self.other(x)
            return torch.cat([b, a, b], 1)

    graph = traced(Divided, (3,))
    joined = next(node for node in graph.nodes if node.op == "cat")
    assert operands(joined) == ["other", "one", "other"]


ORDERS = {
    "rows, columns, channels": ((0, 2, 4, 3, 5, 1), ((1, 4), (2, 2), (0, 3))),
    "channels, rows, columns": ((0, 2, 4, 1, 3, 5), ((0, 3), (1, 4), (2, 2))),
    "columns, rows, channels": ((0, 2, 4, 5, 3, 1), ((2, 2), (1, 4), (0, 3))),
}


@pytest.mark.parametrize("name", ORDERS)
def test_patches(name):
    order, truth = ORDERS[name]

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(24, 5)

        def forward(self, x):
            x = x.reshape(x.shape[0], 3, 2, 4, 4, 2).permute(order)
            return self.embed(x.reshape(x.shape[0], 8, 24))

    graph = traced(Patches, (3, 8, 8))
    assert patches(graph, graph.by_id["embed"]) == truth


def test_what_reads_no_patches():
    assert patches(*(lambda g: (g, g.by_id["0"]))(traced(lambda: nn.Sequential(nn.Linear(6, 2)), (6,)))) == ()
