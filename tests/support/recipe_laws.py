"""What every recipe keeps to, checked for one source and one target."""

import torch
from support.drawn import renamed

from netgraft.graft import graft
from netgraft.plan import Plan
from netgraft.recipes.protocol import Chooses
from netgraft.recipes.run import run_recipe


def make_plan(recipe, source, target):
    if isinstance(recipe, Chooses):
        choice = recipe.choose(source, target, "cpu")
        assert choice.why
        recipe = choice.recipe
    pairing, moves, kept = run_recipe(recipe, source, target)
    return Plan("s", "t", source.fingerprint(), target.fingerprint(), "r", {}, pairing, tuple(moves), tuple(kept))


def tensors(graph, offset):
    state = {}
    for i, (key, slot) in enumerate(graph.slots.items()):
        rng = torch.Generator().manual_seed(offset + i)
        state[key] = torch.randint(1000, slot.shape, generator=rng).to(getattr(torch, slot.dtype))
    return state


def check_laws(recipe, source, target):
    plan = make_plan(recipe, source, target)
    plan.check_law(target.slots)
    assert all(fate.why for fate in (*plan.moves, *plan.kept))
    for fate in (*plan.moves, *plan.kept):
        assert fate.shape == target.slots[fate.key].shape
    for move in plan.moves:
        origin = source.slots[move.source_key] if move.source_key else target.slots[move.key]
        assert move.source_shape == origin.shape
    assert sum(plan.coverage().values()) == sum(torch.Size(slot.shape).numel() for slot in target.slots.values())
    assert make_plan(recipe, source, target) == plan, "not deterministic"
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    return plan


def check_result(plan, source, target):
    """The plan can be carried out; what it keeps is the target's, what it copies is the source's."""
    theirs, ours = tensors(source, 0), tensors(target, 1_000_000)
    result = graft(plan, theirs, ours)
    assert list(result) == list(ours)
    for key, tensor in result.items():
        assert (tensor.shape, tensor.dtype) == (ours[key].shape, ours[key].dtype)
    for kept in plan.kept:
        assert torch.equal(result[kept.key], ours[kept.key])
    for move in plan.moves:
        if not move.steps:
            assert torch.equal(result[move.key], theirs[move.source_key])


def check_names(recipe, source, target, plan):
    (other_source, there), (other_target, here) = renamed(source, "s_"), renamed(target, "t_")
    other = make_plan(recipe, other_source, other_target)
    found = {here[move.key]: (there[move.source_key], move.steps) for move in other.moves}
    expected = {move.key: (move.source_key, move.steps) for move in plan.moves}
    assert found == expected


def check_identity(recipe, graph):
    plan = check_laws(recipe, graph, graph)
    assert not plan.kept
    assert all(graph.slots[move.key].key == move.source_key for move in plan.moves)
    assert not any(move.steps for move in plan.moves)
