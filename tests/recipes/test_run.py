"""What holds for every recipe without its help: the user's word on single layers, one fate for every key."""

from dataclasses import dataclass, replace

import pytest
from support.nets import Straight, Tied, traced

from netgraft.errors import UsageError
from netgraft.plan import Pair, Pairing, moves_to
from netgraft.recipes.hmt import Hmt
from netgraft.recipes.protocol import Draft, LayerOptions
from netgraft.recipes.run import run_recipe

IMAGE = (3, 16, 16)


@dataclass(frozen=True)
class Careless(LayerOptions):
    """Copies every tensor by name and listens to nobody; moves the last of several that go to one key by hand."""

    tied: bool = False

    def pair(self, source, target):
        return Pairing(tuple(Pair(name, name, "same name") for name in target.layers if name in source.layers))

    def plan(self, task):
        moves = []
        for name, layer in task.target.layers.items():
            for role, slot in layer.tensors.items():
                partner = task.source.layers[name].tensors[role]
                if partner.shape == slot.shape:
                    moves += moves_to(slot, partner.key, partner.shape, (), f"copied with {name}")
        return Draft(moves, notes=("careless", "careless"))


@pytest.fixture(scope="module")
def straight():
    return traced(Straight, IMAGE)


def kept(fates):
    return {fate.key: fate.why for fate in fates.kept}


def test_every_key_has_one_fate(straight):
    target = traced(lambda: Straight(((8, 3), (12, 5))), IMAGE)
    fates = run_recipe(Careless(), straight, target)
    assert sorted([move.key for move in fates.moves] + list(kept(fates))) == sorted(target.slots)
    assert set(kept(fates).values()) == {"no counterpart in the source"}
    assert fates.pairing.notes == ("careless",)


def test_what_is_skipped_stays_though_the_recipe_moves_it(straight):
    first = straight.kernels()[0].name
    fates = run_recipe(Careless(skip=(first,)), straight, straight)
    assert f"{first}.weight" in kept(fates)
    assert all(why.startswith(f"skipped by --skip {first}") for why in kept(fates).values())
    assert len(fates.moves) + len(fates.kept) == len(straight.slots)


def test_a_head_stays_though_the_recipe_moves_it(straight):
    (head,) = (layer.name for layer in straight.heads())
    fates = run_recipe(Careless(head="never"), straight, straight)
    assert set(kept(fates)) == {f"{head}.weight", f"{head}.bias"}
    assert set(kept(fates).values()) == {"the head keeps its own initialisation (head=never)"}
    assert not kept(run_recipe(Careless(head="always"), straight, straight))


def test_a_tensor_that_a_head_shares_moves_with_the_other_layer():
    graph = traced(Tied, (6,))
    (head,) = graph.heads()
    shared = head.tensors["weight"]
    assert any(layer is not head and shared in layer.tensors.values() for layer in graph.layers.values())
    fates = run_recipe(Careless(head="never"), graph, graph)
    assert shared.key in {move.key for move in fates.moves}
    assert set(kept(fates)) == {key for slot in head.tensors.values() if slot is not shared for key in slot.keys}
    first = next(name for name, layer in graph.layers.items() if shared in layer.tensors.values())
    assert {move.why for move in fates.moves if move.key in shared.keys} == {f"copied with {first}"}


def test_the_reasons_of_a_recipe_go_before_the_general_one(straight):
    class Reasoned(Careless):
        def plan(self, task):
            name = task.target.kernels()[0].name
            return Draft((), {name: "for a layer", f"{name}.weight": "for a key"}, "for the rest")

    why = kept(run_recipe(Reasoned(), straight, straight))
    name = straight.kernels()[0].name
    assert why.pop(f"{name}.weight") == "for a key"
    others = [key for key in straight.layers[name].tensors.values() if key.key != f"{name}.weight"]
    assert all(why[slot.key] == "for a layer" for slot in others)
    assert "for the rest" in why.values()


def test_one_backbone_is_no_reason_not_to_listen(straight):
    """hmt copies it as a whole, but for what the user says."""
    first, second = (layer.name for layer in straight.kernels()[:2])
    fates = run_recipe(Hmt(skip=(first,)), straight, straight)
    assert f"{first}.weight" in kept(fates)
    assert f"{second}.weight" in {move.key for move in fates.moves}
    with pytest.raises(UsageError, match="matches no layer"):
        run_recipe(Hmt(skip=("nothing",)), straight, straight)


def test_loose_tensors_of_one_backbone_are_copied_beside_a_skipped_layer():
    graph = traced(Tied, (6,))
    slot = next(iter(graph.slots.values()))
    loose = {"own": replace(slot, key="own", aliases=())}
    graph = replace(graph, loose=loose)
    name = graph.kernels()[0].name
    assert "own" in {move.key for move in run_recipe(Hmt(skip=(name,)), graph, graph).moves}
