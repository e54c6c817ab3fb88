"""Which layers are compared."""

from dataclasses import replace

import pytest
from support.command_line import run
from support.runs import settings, write_nets

from netgraft.errors import UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.finetune.engine.pairing import given_names, last_of_stages, names_of
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.protocol import FeaturePair
from netgraft.plan import REFITTED, Pair, Pairing, Plan, PlannedPass

PLAN = Plan("source", "target", "", "", "hmt", {}, Pairing((Pair("a", "b", ""),)), (), ())


def test_by_hand():
    assert given_names("a:b, c.1:d.2") == [("a", "b"), ("c.1", "d.2")]
    assert given_names("stages") is None
    for wrong in ("", "a", "a:", "a:b:c", ","):
        with pytest.raises(UsageError, match="pairs"):
            given_names(wrong)


def test_the_ledgers_pairs_are_of_its_source():
    """And of a transfer that moved weights, without a matcher by name."""

    def trace_nothing():
        raise AssertionError

    assert names_of(PLAN, "source", trace_nothing, None) == ([("a", "b")], False)
    refitted = replace(PLAN, passes=(PlannedPass("refit", {}, REFITTED, ()),))
    for plan, source, matcher in (
        (PLAN, "another", None),
        (PLAN, "source", "longest-chain"),
        (None, "source", None),
        (refitted, "source", None),
    ):
        with pytest.raises(AssertionError):
            names_of(plan, source, trace_nothing, matcher)


def test_last_of_each_stage():
    pairs = [FeaturePair(n, n, (4, s, s), (4, s, s)) for n, s in (("a", 8), ("b", 8), ("c", 4), ("d", 2), ("e", 2))]
    assert [pair.target for pair in last_of_stages(pairs)] == ["b", "c", "e"]


def test_between_different_networks(tmp_path, monkeypatch):
    """From the ledger of a transfer, and from a matcher without one: maps of the same rank, no classifiers."""
    monkeypatch.chdir(write_nets(tmp_path))
    source, target = "netgraft:resnet20-glyphs", "netgraft:vgg11-glyphs"
    made = run(
        "transfer",
        "--recipe",
        "hmt",
        source,
        target,
        "--target-arg",
        "num_classes=10",
        "-o",
        "t.safetensors",
        "--no-receipt",
    )
    assert made.exit_code == 0, made.stderr
    found = {}
    for init in ("t.safetensors", None):
        method = tmp_path / "fm.py"
        method.write_text(METHOD)
        given = {"target": target, "target_arg": {"num_classes": 10}, "source": source, "init": init}
        for pairs in ("all", "stages"):
            run_ = prepare(settings(tmp_path, method=str(method), pairs=pairs, **given)).run
            found[init, pairs] = run_.pairs
            assert run_.net.last in {pair.source for pair in run_.pairs}
    ledger = {(p["source"], p["target"]) for p in read_provenance("t.safetensors")["plan"]["pairing"]["pairs"]}
    assert {pair[:2] for pair in found["t.safetensors", "all"]} <= ledger
    for init in ("t.safetensors", None):
        stages, everything = found[init, "stages"], found[init, "all"]
        assert 1 < len(stages) < len(everything)
        assert set(stages) <= set(everything)
        assert len({pair.target_shape[1:] for pair in stages}) == len(stages)
        assert all(len(pair.source_shape) == len(pair.target_shape) == 3 for pair in everything)


METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from netgraft.finetune.protocol import Need

@dataclass(frozen=True)
class FM:
    needs: ClassVar[frozenset] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
"""


def test_what_came_from_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(write_nets(tmp_path))
    source, target = "netgraft:resnet20-glyphs", "netgraft:vgg11-glyphs"
    made = run(
        "transfer",
        "--recipe",
        "hmt",
        source,
        target,
        "--target-arg",
        "num_classes=10",
        "-o",
        "t.safetensors",
        "--no-receipt",
    )
    assert made.exit_code == 0, made.stderr
    chosen = settings(tmp_path, target=target, target_arg={"num_classes": 10}, init="t.safetensors")
    live = prepare(chosen).run
    names = {name for name, _ in live.target_module.named_parameters()}
    assert live.heads == ("classifier",) or all(not n.startswith(live.heads) for n in live.transferred)
    assert set() < live.transferred < names
    plain = prepare(settings(tmp_path)).run  # an initialisation without a ledger: all but the head
    everything = {name for name, _ in plain.target_module.named_parameters()}
    assert plain.heads == ("head",)
    assert plain.transferred == everything - {"head.weight", "head.bias"}
