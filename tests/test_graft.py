"""Carrying out a plan: what comes out, and what is refused before any tensor is made."""

import pytest
import torch

from netgraft.errors import PlanError, UsageError
from netgraft.graft import graft
from netgraft.plan import Kept, Move, Pairing, Plan, Step


def plan(moves, kept):
    return Plan("s", "t", "", "", "hmt", {}, Pairing(()), tuple(moves), tuple(kept))


def move(key, source_key, shape, source_shape, *steps):
    return Move(key, source_key, shape, source_shape, steps, "paired")


SOURCE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "half": torch.ones(2, dtype=torch.float16) / 3}
TARGET = {"x": torch.zeros(4, 3), "y": torch.ones(2, 3), "n": torch.tensor(0), "h": torch.zeros(2)}
STACK = Step("cyclic", {"dim": 0, "size": 4})


@pytest.fixture
def good():
    return plan(
        [move("x", "a", (4, 3), (2, 3), STACK), move("n", "b", (), ()), move("h", "half", (2,), (2,))],
        [Kept("y", (2, 3), "no pair")],
    )


def test_moves_and_kept_tensors(good):
    result = graft(good, SOURCE, TARGET)
    assert list(result) == list(TARGET)
    assert torch.equal(result["x"], torch.cat([SOURCE["a"], SOURCE["a"]]))
    assert torch.equal(result["y"], TARGET["y"])
    assert result["n"] == 7
    assert result["n"].dtype == torch.int64
    assert torch.equal(result["h"], SOURCE["half"].float())


def test_nothing_is_shared_or_changed(good):
    source = {key: tensor.clone() for key, tensor in SOURCE.items()}
    target = {key: torch.nn.Parameter(t) if t.is_floating_point() else t.clone() for key, t in TARGET.items()}
    before = {**source, **{key: tensor.detach().clone() for key, tensor in target.items()}}
    result = graft(good, source, target)
    memory = {tensor.untyped_storage().data_ptr() for tensor in (*source.values(), *target.values())}
    for tensor in result.values():
        assert tensor.untyped_storage().data_ptr() not in memory
        assert not tensor.requires_grad
        assert tensor.is_contiguous()
        tensor.fill_(9)
    for key, tensor in (*source.items(), *target.items()):
        assert torch.equal(tensor, before[key])


def test_one_source_for_two_targets_gives_two_tensors():
    both = plan([move("x", "a", (2, 3), (2, 3)), move("y", "a", (2, 3), (2, 3))], [])
    result = graft(both, SOURCE, {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3)})
    assert torch.equal(result["x"], result["y"])
    assert result["x"].data_ptr() != result["y"].data_ptr()


def test_views_as_sources_come_out_contiguous():
    turned = {"a": torch.arange(6.0).reshape(3, 2).t()}
    result = graft(plan([move("x", "a", (2, 3), (2, 3))], []), turned, {"x": torch.zeros(2, 3)})
    assert result["x"].is_contiguous()
    assert torch.equal(result["x"], turned["a"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([move("x", "gone", (4, 3), (2, 3), STACK)], "gone: no such tensor"),
        ([move("x", "a", (4, 3), (3, 3), STACK)], r"a: shape \[2, 3\]"),
        ([move("x", "a", (4, 4), (2, 3), STACK)], r"x: shape \[4, 3\]"),
        ([move("x", "a", (4, 3), (2, 3), Step("cyclic", {"dim": 0, "size": 5}))], r"gave \[5, 3\]"),
        ([move("x", "a", (4, 3), (2, 3))], r"gave \[2, 3\]"),
        ([move("x", "a", (4, 3), (2, 3), Step("cyclic", {"dim": 5, "size": 4}))], "no axis 5"),
        ([], "exactly one fate"),
    ],
)
def test_a_plan_that_does_not_fit(good, wrong, message):
    with pytest.raises(PlanError, match=message):
        graft(plan([*wrong, *good.moves[1:]], good.kept), SOURCE, TARGET)


def test_a_step_that_does_not_exist(good):
    wrong = move("x", "a", (4, 3), (2, 3), Step("magic", {}))
    with pytest.raises(UsageError, match="magic"):
        graft(plan([wrong, *good.moves[1:]], good.kept), SOURCE, TARGET)
