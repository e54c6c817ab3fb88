"""Positions and channels, against loops over single numbers."""

import pytest
import torch
import torch.nn.functional as F

from netgraft.architecture.graph import Layer
from netgraft.passes.refitting.layout import Layout, channel_axis, comparable, layout_of, rows_from, rows_of, sample


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "map": ((2, 5, 3, 4), 1, (3, 4), 0),
    "channels last": ((2, 3, 4, 5), -1, (3, 4), 0),
    "vector": ((2, 5), 1, (1, 1), 0),
    "tokens": ((2, 9, 5), 2, (3, 3), 0),
    "class token": ((2, 10, 5), 2, (3, 3), 1),
    "class and register tokens": ((2, 201, 5), 2, (14, 14), 5),
    "distilled": ((2, 198, 5), 2, (14, 14), 2),
    "windows": ((8, 4, 5), 2, None, 0),
    "windows in rows": ((8, 2, 2, 5), 3, None, 0),
    "channels in front of tokens": ((2, 5, 9), 1, None, 0),
    "volume": ((2, 5, 3, 3, 3), 1, None, 0),
}


@pytest.mark.parametrize(("shape", "axis", "grid", "prefix"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(shape, axis, grid, prefix):
    layout = layout_of(shape, axis, 2)
    assert (layout.shape, layout.axis, layout.grid, layout.prefix) == (shape, axis % len(shape), grid, prefix)
    assert layout.channels == 5
    assert layout.rows * 5 == torch.Size(shape).numel()
    if grid:
        assert layout.tokens == prefix + grid[0] * grid[1]


@pytest.mark.parametrize(("shape", "axis"), [(each[0], each[1]) for each in LAYOUTS.values()], ids=LAYOUTS)
def test_rows_of(shape, axis):
    value, layout = drawn(*shape), layout_of(shape, axis, 2)
    by_loop = []
    for place in torch.cartesian_prod(*(torch.arange(n) for i, n in enumerate(shape) if i != layout.axis)).reshape(
        -1, len(shape) - 1
    ):
        index = place.tolist()
        by_loop.append([value[(*index[: layout.axis], c, *index[layout.axis :])].item() for c in range(5)])
    assert torch.equal(rows_of(value, layout, torch.arange(layout.rows)), torch.tensor(by_loop))
    rows = torch.tensor([layout.rows - 1, 0, 1])
    assert torch.equal(rows_of(value, layout, rows), torch.tensor(by_loop)[rows])
    channels_last = value.movedim(layout.axis, -1).contiguous().movedim(-1, layout.axis)
    assert torch.equal(rows_of(channels_last, layout, rows), torch.tensor(by_loop)[rows])


def test_a_finer_map_is_averaged():
    theirs, ours = layout_of((2, 3, 4, 6), 1, 2), layout_of((2, 7, 2, 3), 1, 2)
    value = drawn(2, 3, 4, 6)
    found = rows_from(value, theirs, ours, torch.arange(ours.rows), torch.tensor([2, 0]))
    for row in range(ours.rows):
        image, y, x = row // 6, row // 3 % 2, row % 3
        mean = value[image, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
        torch.testing.assert_close(found[row], mean[[2, 0]])


def test_a_coarser_map_is_interpolated():
    theirs, ours = layout_of((1, 1, 2, 2), 1, 1), layout_of((1, 1, 4, 4), 1, 1)
    value = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    found = rows_from(value, theirs, ours, torch.arange(16), torch.tensor([0])).reshape(4, 4)
    across = torch.tensor([0.0, 1.0, 3.0, 4.0])
    torch.testing.assert_close(found, across + 2 * across[:, None])


def test_the_same_grid_in_other_axes():
    """A feature map over tokens with a class token: the map has nothing for it."""
    theirs, ours = layout_of((2, 3, 4, 4), 1, 2), layout_of((2, 17, 6), 2, 2)
    rows = sample(theirs, ours, 1000, torch.Generator())
    assert len(rows) == 32
    assert not set(rows.tolist()) & {0, 17}
    value = drawn(2, 3, 4, 4)
    found = rows_from(value, theirs, ours, rows, torch.tensor([1]))
    for row, here in zip(rows.tolist(), found, strict=True):
        image, token = divmod(row, 17)
        assert here == value[image, 1, (token - 1) // 4, (token - 1) % 4]


def test_tokens_in_front_follow_tokens_in_front():
    theirs, ours = layout_of((2, 5 + 16, 3), 2, 2), layout_of((2, 1 + 4, 3), 2, 2)
    assert (theirs.prefix, ours.prefix) == (5, 1)
    rows = sample(theirs, ours, 1000, torch.Generator())
    assert len(rows) == ours.rows
    value = drawn(2, 21, 3)
    found = rows_from(value, theirs, ours, rows, torch.arange(3))
    for image in range(2):
        torch.testing.assert_close(found[5 * image], value[image, 0])
        grid = value[image, 5:].T.reshape(1, 3, 4, 4)
        torch.testing.assert_close(found[5 * image + 1 : 5 * image + 5], F.avg_pool2d(grid, 2).flatten(2)[0].T)


def test_more_tokens_in_front_than_the_source_has_are_left_out():
    theirs, ours = layout_of((2, 10, 3), 2, 2), layout_of((2, 201, 3), 2, 2)
    rows = sample(theirs, ours, 1000, torch.Generator())
    assert set((rows % 201).tolist()) == {0, *range(5, 201)}


def test_a_map_reads_a_tokens_grid():
    theirs, ours = layout_of((2, 5, 3), 2, 2), layout_of((2, 3, 2, 2), 1, 2)
    value = drawn(2, 5, 3)
    found = rows_from(value, theirs, ours, torch.arange(8), torch.arange(3))
    torch.testing.assert_close(found, value[:, 1:].reshape(8, 3))


def test_windows_follow_windows_of_the_same_number():
    a, b = layout_of((8, 4, 5), 2, 2), layout_of((8, 4, 3), 2, 2)
    assert comparable(a, b)
    assert not comparable(a, layout_of((8, 9, 3), 2, 2))
    assert not comparable(a, layout_of((2, 3, 4, 4), 1, 2))
    assert comparable(layout_of((2, 3, 4, 4), 1, 2), layout_of((2, 17, 6), 2, 2))
    value = drawn(8, 4, 5)
    rows = torch.tensor([31, 4])
    assert torch.equal(rows_from(value, a, b, rows, torch.tensor([4, 1])), value.reshape(32, 5)[rows][:, [4, 1]])


def test_samples_are_sorted_and_without_repeats():
    layout = layout_of((2, 3, 20, 20), 1, 2)
    rows = sample(layout, layout, 100, torch.Generator().manual_seed(3))
    assert len(rows) == len(set(rows.tolist())) == 100
    assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(rows, sample(layout, layout, 100, torch.Generator().manual_seed(3)))
    assert rows.max() < layout.rows
    assert torch.equal(sample(layout, layout, 800, torch.Generator()), torch.arange(800))


@pytest.mark.parametrize(
    ("shape", "channels", "kind", "axis"),
    [
        ((2, 8, 4, 4), 8, "conv2d", 1),
        ((2, 4, 4, 8), 8, "linear", 3),
        ((2, 8, 4, 4), 8, "linear", 1),
        ((2, 16, 8), 8, "linear", 2),
        ((2, 8), 8, "linear", 1),
    ],
)
def test_the_axis_of_channels(shape, channels, kind, axis):
    assert channel_axis(shape, Layer("l", kind, (channels, 4))) == axis
    assert Layout(shape, axis, None).channels == channels


def test_as_many_channels_as_columns():
    linear = Layer("l", "linear", (8, 4))
    assert channel_axis((2, 8, 8, 8), linear) == 3
    assert channel_axis((2, 8, 8, 8), linear, permuted=True) == 1
    assert channel_axis((2, 4, 4, 8), linear, permuted=True) == 3
