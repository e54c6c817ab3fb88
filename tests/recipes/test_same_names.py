"""What has the same name and shape is copied, below whatever path one network stands in the other; the rest is not."""

import pytest
from support.nets import Straight, traced
from support.recipe_laws import check_laws, check_result, make_plan
from torch import nn

from netgraft.recipes.same_names import SameNames


class Inside(nn.Module):
    """A network within another, under a path of its own, with a layer behind it."""

    def __init__(self, net, more):
        super().__init__()
        self.wrapped = nn.ModuleDict({"encoder": net})
        self.more = more

    def forward(self, x):
        return self.more(self.wrapped["encoder"](x))


@pytest.fixture(scope="module")
def source():
    return traced(Straight, (3, 16, 16))


def copied(source, target, **options):
    plan = check_laws(SameNames(**options), source, target)
    check_result(plan, source, target)
    assert not any(move.steps for move in plan.moves)
    return {move.key: move.source_key for move in plan.moves}, {kept.key: kept.why for kept in plan.kept}


def test_inside_and_outside(source):
    target = traced(lambda: Inside(Straight(), nn.Linear(5, 4)), (3, 16, 16))
    moves, kept = copied(source, target)
    assert moves == {f"wrapped.encoder.{key}": key for key in source.slots}
    assert kept == dict.fromkeys(["more.weight", "more.bias"], "no tensor of equal name and shape in the source")
    back, kept = copied(target, source)
    assert back == {key: f"wrapped.encoder.{key}" for key in source.slots}
    assert not kept


def test_another_shape_keeps_its_own(source):
    target = traced(lambda: Straight(classes=7), (3, 16, 16))
    moves, kept = copied(source, target)
    assert set(moves) == {key for key, slot in target.slots.items() if source.slots[key].shape == slot.shape}
    assert set(kept) == {layer.name + role for layer in target.heads() for role in (".weight", ".bias")}


def test_nothing_is_claimed(source):
    assert "was not looked at" in make_plan(SameNames(), source, source).pairing.notes[0]


def test_options(source):
    (head,) = (layer.name for layer in source.heads())
    first = source.kernels()[0].name
    _, kept = copied(source, source, head="never")
    assert set(kept.values()) == {"the head keeps its own initialisation (head=never)"}
    assert all(key.startswith(f"{head}.") for key in kept)
    _, kept = copied(source, source, skip=(first,))
    assert f"{first}.weight" in kept
    assert f"{head}.weight" not in kept
    even = traced(lambda: Straight(((8, 3), (8, 3), (8, 3))), (3, 16, 16))
    moves, _ = copied(even, even, maps=(("convs.2", "convs.1"),))
    assert [moves[f"convs.{i}.weight"] for i in range(3)] == ["convs.0.weight", "convs.2.weight", "convs.2.weight"]
