"""The law of plans, their coverage, and their way through JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netgraft.errors import PlanError
from netgraft.plan import (
    EXACT,
    FATES,
    INTERPOLATED,
    KEPT,
    STACKED,
    Kept,
    Move,
    Pair,
    Pairing,
    Plan,
    PlannedPass,
    Step,
)

KEYS = ["conv.weight", "conv.bias", "fc.weight"]


def moved(key, *operators, shape=(2, 3)):
    steps = tuple(Step(operator, {"size": 3}) for operator in operators)
    return Move(key, f"source.{key}", shape, (1, 2), steps, "paired")


def kept(key, shape=(4,)):
    return Kept(key, shape, "no pair")


def plan(moves=(), kept=(), **changes):
    facts = {"source": "a", "target": "b", "source_fingerprint": "1", "target_fingerprint": "2", "recipe": "hmt"}
    return Plan(**facts, options={}, pairing=Pairing(()), moves=tuple(moves), kept=tuple(kept), **changes)


# -------------------------------------------------------------------------------------------------------------- the law


def test_every_key_with_one_fate_is_lawful():
    plan([moved(KEYS[0]), moved(KEYS[2])], [kept(KEYS[1])]).check_law(KEYS)
    plan([moved(KEYS[0]), moved(KEYS[2])], [kept(KEYS[1])]).check_law(reversed(KEYS))
    plan().check_law([])


@pytest.mark.parametrize(
    ("moves", "keeps", "where"),
    [
        (KEYS[:1], KEYS[1:2], "missing: ['fc.weight']"),
        ([], [], "missing: ['conv.bias', 'conv.weight', 'fc.weight']"),
        (KEYS, KEYS[:1], "twice: ['conv.weight']"),
        ([*KEYS, KEYS[0]], [], "twice: ['conv.weight']"),
        (KEYS[:1], [*KEYS[1:], KEYS[1]], "twice: ['conv.bias']"),
        (KEYS, ["other.weight"], "not in the target: ['other.weight']"),
        (["other.weight"], KEYS, "not in the target: ['other.weight']"),
    ],
)
def test_missing_twice_and_unknown_keys_break_the_law(moves, keeps, where):
    with pytest.raises(PlanError, match="exactly one fate") as caught:
        plan(map(moved, moves), map(kept, keeps)).check_law(KEYS)
    assert where in caught.value.where


@settings(deadline=None, derandomize=True, database=None)
@given(fates=st.lists(st.tuples(st.sampled_from("abcde"), st.booleans())), keys=st.sets(st.sampled_from("abcde")))
def test_the_law_holds_exactly_for_partitions(fates, keys):
    made = plan([moved(key) for key, goes in fates if goes], [kept(key) for key, goes in fates if not goes])
    if sorted(key for key, _ in fates) == sorted(keys):
        made.check_law(keys)
    else:
        with pytest.raises(PlanError):
            made.check_law(keys)


# ------------------------------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("operators", "fate"),
    [
        ([], EXACT),
        (["bilinear"], INTERPOLATED),
        (["cyclic"], STACKED),
        (["bilinear", "cyclic", "cyclic"], STACKED),
        (["unflatten", "cyclic", "flatten"], STACKED),
    ],
)
def test_a_move_knows_its_fate(operators, fate):
    assert moved("a", *operators).fate == fate


def test_coverage_counts_elements_of_the_target():
    made = plan(
        [
            moved("a", shape=(2, 3)),
            moved("b", shape=()),
            moved("c", "bilinear", shape=(5, 5)),
            moved("d", "bilinear", "cyclic", shape=(4, 2)),
        ],
        [kept("e", (10,)), kept("f", (0, 3))],
    )
    counts = dict.fromkeys(FATES, 0) | {EXACT: 7, INTERPOLATED: 25, STACKED: 8, KEPT: 10}
    assert made.coverage() == counts
    assert tuple(plan().coverage()) == FATES


def test_the_last_pass_with_a_fate_decides():
    first = PlannedPass("refit", {"images": 8}, "refitted", ("a", "b"))
    last = PlannedPass("distil", {}, "distilled", ("b", "c"))
    silent = PlannedPass("rescale", {}, "", ("a", "b", "c", "d"))
    moves, keeps = [moved("a"), moved("b", "cyclic")], [kept("c"), kept("d", (5,))]
    made = plan(moves, keeps, passes=(first, last, silent))
    assert made.fates == {"a": "refitted", "b": "distilled", "c": "distilled", "d": KEPT}
    assert {fate: count for fate, count in made.coverage().items() if count} == {
        "refitted": 6,
        "distilled": 10,
        KEPT: 5,
    }
    assert plan(moves, keeps, passes=(last, first)).fates["b"] == "refitted"
    text = json.dumps(made.to_json())
    assert Plan.from_json(text) == made


# ----------------------------------------------------------------------------------------------------------------- JSON

texts = st.text(max_size=6)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
options = st.dictionaries(texts, json_values, max_size=3)
steps = st.lists(st.builds(Step, texts, options), max_size=3).map(tuple)
plans = st.builds(
    Plan,
    source=texts,
    target=texts,
    source_fingerprint=texts,
    target_fingerprint=texts,
    recipe=texts,
    options=options,
    pairing=st.builds(
        Pairing,
        st.lists(st.builds(Pair, texts, texts, texts), max_size=3).map(tuple),
        st.dictionaries(texts, texts, max_size=3),
    ),
    moves=st.lists(st.builds(Move, texts, texts, shapes, shapes, steps, texts), max_size=3).map(tuple),
    kept=st.lists(st.builds(Kept, texts, shapes, texts), max_size=3).map(tuple),
    warnings=st.lists(texts, max_size=2).map(tuple),
)


@settings(deadline=None, derandomize=True, database=None)
@given(made=plans)
def test_json_and_back(made):
    text = json.dumps(made.to_json())
    assert Plan.from_json(text) == made
    assert Plan.from_json(json.loads(text)) == made
    assert json.dumps(Plan.from_json(text).to_json()) == text


@pytest.mark.parametrize("version", [0, 1, 3, None, "2"])
def test_another_version_is_refused(version):
    with pytest.raises(PlanError, match="version"):
        Plan.from_json({**plan().to_json(), "version": version})


@pytest.mark.parametrize(
    "change",
    [
        {"moves": [{"key": "a"}]},
        {"moves": [{**plan([moved("a")]).to_json()["moves"][0], "shape": 3}]},
        {"kept": [{"key": "a", "shape": [1], "why": "", "more": 1}]},
        {"pairing": {"pairs": []}},
        {"kept": None},
        {"invented": 1},
    ],
    ids=str,
)
def test_a_malformed_plan_is_refused(change):
    with pytest.raises(PlanError, match="not a netgraft plan"):
        Plan.from_json({**plan().to_json(), **change})


@pytest.mark.parametrize("name", [name for name in plan().to_json() if name != "version"])
def test_a_plan_without_a_field_is_refused(name):
    document = plan().to_json()
    del document[name]
    with pytest.raises(PlanError, match="not a netgraft plan"):
        Plan.from_json(document)


def test_a_pass_changed_what_it_changed():
    """A ledger of what was done names no tensor that a pass might have changed, and has not."""
    before = plan(
        [moved("conv.weight"), moved("conv.bias")],
        [kept("fc.weight")],
        passes=(PlannedPass("refit", {}, "refitted", ("conv.weight", "conv.bias", "fc.weight")),),
    )
    after = before.after_passes({"conv.bias", "fc.weight"}, [{} for _ in before.passes])
    assert after.fates == {"conv.weight": EXACT, "conv.bias": "refitted", "fc.weight": "refitted"}
    assert after.copied == {"conv.weight", "conv.bias"}
    assert before.fates["conv.weight"] == "refitted"
