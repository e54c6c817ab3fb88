"""Position tables against timm's resizes, and classifier rows by label."""

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

from netgraft.errors import PlanError
from netgraft.operators.labels import Labels
from netgraft.operators.positions import Positions
from netgraft.operators.relative_table import RelativeTable


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (16, 16)), ((14, 14), (7, 9)), ((4, 6), (6, 4)), ((3, 5), (3, 8))])
def test_positions_agree_with_timm(prefix, old, new):
    table = randn(1, prefix + old[0] * old[1], 6)
    result = Positions(old, new, prefix)(table)
    wanted = resample_abs_pos_embed(table, list(new), list(old), prefix)
    assert torch.allclose(result, wanted, rtol=0, atol=1e-5)
    assert torch.equal(result[:, :prefix], table[:, :prefix])
    assert torch.equal(Positions(old, new, prefix)(table[0]), result[0])  # [tokens, width], as CLIP has it


def test_positions_of_a_sequence_and_of_a_video():
    constant = torch.full((2, 1 + 12, 3), 0.5)
    assert torch.allclose(Positions((12,), (20,), 1)(constant), torch.tensor(0.5))
    assert Positions((3, 2, 2), (4, 3, 3), 1)(constant).shape == (2, 37, 3)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("old", "new"), [(7, (8, 8)), (8, (7, 7)), (7, (12, 5)), (2, (1, 3))])
def test_relative_tables_agree_with_timm(extra, old, new):
    table, rows = randn((2 * old - 1) ** 2 + extra, 4), (2 * new[0] - 1) * (2 * new[1] - 1) + extra
    result = RelativeTable(new, extra=extra)(table)
    assert torch.allclose(result, resize_rel_pos_bias_table_simple(table, new, (rows, 4)), rtol=0, atol=1e-5)
    assert torch.equal(RelativeTable(new, (old, old), extra)(table), result)
    assert torch.equal(result[rows - extra :], table[len(table) - extra :])


def test_relative_tables_keep_offset_zero_and_symmetry():
    grid = randn(5, 9, 1)
    grid = grid + grid.flip(0, 1)
    result = RelativeTable((5, 4), (3, 5))(grid.reshape(45, 1)).reshape(9, 7)
    assert torch.allclose(result, result.flip(0, 1), atol=1e-6)
    assert result[4, 3].item() == pytest.approx(grid[2, 4, 0].item())


def test_labels_keep_their_logits():
    features, weight, bias = randn(5, 8).double(), randn(4, 8).double(), randn(4).double()
    index = ((2, 2), (-1, 2), (0, 1))
    logits = features @ weight.T + bias
    result = features @ Labels(index)(weight).T + Labels(index)(bias)
    assert torch.allclose(result[:, [0, 1, 4]], logits[:, [2, 3, 0]], rtol=0, atol=1e-12)
    assert result[:, 2:4].abs().max() == 0
    average = features @ Labels(index, "mean")(weight).T + Labels(index, "mean")(bias)
    assert torch.allclose(average[:, 2], logits.mean(1), rtol=0, atol=1e-12)
    assert Labels(((-1, 3),))(bias).tolist() == [0, 0, 0]
    with pytest.raises(PlanError, match="no labels"):
        Labels(((-1, 3),))(bias[:0])
