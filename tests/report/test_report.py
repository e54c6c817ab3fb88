"""Tables, shares and ledgers, from plans written by hand."""

import io
import sys
import time
from dataclasses import replace

import pytest

from netgraft.errors import CorruptFile, OutputError
from netgraft.plan import Kept, Move, Pair, Pairing, Plan, Step
from netgraft.report import console as streams
from netgraft.report import ledger
from netgraft.report.progress import progress
from netgraft.report.text import percent, safe, shape_text, size_text, some, table

CYCLIC = (Step("cyclic", {"dim": 0, "size": 6}), Step("cyclic", {"dim": 1, "size": 5}))
PLAN = Plan(
    source="a",
    target="b",
    source_fingerprint="",
    target_fingerprint="",
    recipe="hmt",
    options={"norms": "all", "head": "never"},
    pairing=Pairing((Pair("one", "first", "why"), Pair("two", "second", "why"), Pair("three", "third", "why"))),
    moves=(
        Move("first.weight", "one.weight", (6, 5, 3, 3), (4, 2, 3, 3), CYCLIC, "why"),
        Move("second.weight", "two.weight", (2,), (2,), (), "why"),
        Move("second.bias", "two.bias", (1,), (1,), (), "why"),
    ),
    kept=(Kept("third.weight", (9,), "no kin"), Kept("third.bias", (1,), "no kin"), Kept("step", (), "a counter")),
    warnings=("target b: odd",),
)


def test_ledger():
    assert list(ledger.ledger(PLAN)) == [
        "a -> b   (recipe hmt, head never, norms all)",
        "2 of 6 tensors copied, 1 converted, 3 new",
        "",
        "  source layer  shape    target layer  shape    how",
        "  one           4x2x3x3  first         6x5x3x3  cyclic out 4 to 6, cyclic in 2 to 5",
        "  two           2        second        2        copied",
        "  three                  third                  kept: no kin",
        "",
        "284 numbers in 6 tensors of the target:   exact 1.1 %   interpolated 0.0 %   stacked 95.1 %   kept 3.9 %",
        "kept at the target's own initialisation:",
        "  third.weight, third.bias: no kin",
        "  step: a counter",
        "warning: target b: odd",
    ]


def test_the_verdict_stands_before_the_table():
    chosen = replace(PLAN, chosen="it carries most")
    receipt = {
        "skipped": "",
        "carried": {"share": 0.94, "random": 0.31, "agreement": 0.8, "held_out": 9, "images": "x"},
    }
    rows = [
        {"recipe": "grow", "carried": 0.94, "note": "", "why": "it fits", "taken": True},
        {"recipe": "refit", "carried": None, "note": "not tried", "why": "a minute", "taken": False},
    ]
    lines = list(ledger.ledger(chosen, receipt, rows))
    assert lines[1:7] == [
        "2 of 6 tensors copied, 1 converted, 3 new; chosen because it carries most",
        "carries 0.94 of what the source sees (random: 0.31), the same top class on 80 %, on 9 held-out images (x)",
        "    candidate  carries",
        "  * grow       0.940    it fits",
        "    refit               not tried; a minute",
        "",
    ]
    assert "source layer" in lines[7]


@pytest.mark.parametrize(("kept", "warned"), [(26_200, False), (30_000, True)])
def test_next_to_nothing_from_the_source_is_the_first_thing_said(kept, warned):
    plan = replace(PLAN, kept=(*PLAN.kept, Kept("more", (kept,), "no kin")))
    first = next(ledger.ledger(plan))
    assert first.startswith("warning: next to nothing (0.9 % of the target's numbers) comes from") == warned


def measured(error, holds, compared="output"):
    return {"output": {"compared": compared, "error": error}, "exact": {"claimed": True, "holds": holds}}


UNLIKE = {"output": {"compared": "output", "skipped": "other shapes"}, "exact": {"claimed": True, "holds": None}}


@pytest.mark.parametrize(
    ("receipt", "line"),
    [
        (None, "planned as exact; not measured (no receipt)"),
        ({"skipped": "not asked for"}, "planned as exact; not measured (not asked for)"),
        (UNLIKE, "planned as exact; not measured (other shapes)"),
        (measured(0.5, holds=False), "planned as exact, but measured otherwise: relative error 0.5 of the output"),
        (
            measured(1e-9, holds=True),
            "exact: the target computes what the source computes (measured: relative error 1e-09 of the output)",
        ),
        (
            measured(0.0, holds=True, compared="features"),
            "exact: up to its head the target computes what the source computes "
            "(measured: relative error 0 of the features)",
        ),
    ],
)
def test_exactness_is_said_where_it_was_measured(receipt, line):
    plan = replace(PLAN, options={"exact": False}, warnings=())
    assert list(ledger.ledger(plan, receipt))[-1] == line
    noted = list(ledger.ledger(replace(plan, pairing=replace(plan.pairing, notes=("a wider mean",))), receipt))
    exact = line.startswith("exact")
    assert noted[-2:] == ["not known to be exact from the plan alone:" if exact else "not exact:", "  a wider mean"]
    assert (line in noted) == exact


def test_every_tensor():
    assert list(ledger.every_tensor(PLAN)) == [
        "  tensor         shape    fate     from, or why kept",
        "  first.weight   6x5x3x3  stacked  one.weight 4x2x3x3 (cyclic out 4 to 6, cyclic in 2 to 5)",
        "  second.bias    1        exact    two.bias 1",
        "  second.weight  2        exact    two.weight 2",
        "  step           1        kept     a counter",
        "  third.bias     1        kept     no kin",
        "  third.weight   9        kept     no kin",
    ]


def test_a_recorded_plan_comes_back(tmp_path):
    provenance = {
        "version": "1",
        "source": {"description": "s", "hashed": "file", "sha256": "f00", "notes": ["n"]},
        "kept": {"description": "k"},
        "plan": PLAN.to_json(),
    }
    assert list(ledger.ledger(ledger.recorded_plan(provenance, tmp_path))) == list(ledger.ledger(PLAN))
    assert list(ledger.origin_lines(provenance)) == [
        "written by netgraft 1",
        "source: s, sha256 of the file f00",
        "  n",
        "kept: k",
    ]
    assert list(ledger.notes(provenance)) == ["note: n"]
    for key in provenance:
        with pytest.raises(CorruptFile):
            ledger.recorded_plan({k: v for k, v in provenance.items() if k != key}, tmp_path)
    with pytest.raises(CorruptFile):
        ledger.recorded_plan(provenance | {"source": "text"}, tmp_path)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0.0 %"),
        (0, 9, "0.0 %"),
        (9, 9, "100.0 %"),
        (1, 3, "33.3 %"),
        (1, 10**6, "<0.1 %"),
        (10**6 - 1, 10**6, ">99.9 %"),
        (1, 2000, "0.1 %"),
        (1999, 2000, ">99.9 %"),
    ],
)
def test_shares_are_never_rounded_to_nothing_or_all(part, whole, text):
    assert percent(part, whole) == text


def test_tables():
    assert table(("name", "n"), [("a", "1,000"), ("long", "2")], indent=" ") == [
        " name      n",
        " a     1,000",
        " long      2",
    ]
    assert table(("name", ""), []) == ["name"]
    name = "x" * 500
    assert name in table(("name",), [(name,)])[1]
    assert shape_text(()) == "1"
    assert [size_text(n) for n in (9, 1000, 1_440_000, 5 * 10**9)] == ["9 bytes", "1.0 kB", "1.4 MB", "5.0 GB"]
    assert some(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert safe("a\x1b[0m\nb\u202e\ud800é") == "a�[0m�b��é"


def test_streams(monkeypatch):
    stdout, stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)

    def work():
        print("aside")
        streams.write(["a", "b"])

    assert streams.run(work) == 0
    assert (stdout.getvalue(), stderr.getvalue()) == ("a\nb\n", "aside\n")
    assert sys.stdout is stdout

    def stop(error):
        def work():
            raise error

        return streams.run(work)

    codes = [
        stop(e) for e in (OutputError("x"), KeyboardInterrupt(), streams.Terminated(), SystemExit(0), ValueError())
    ]
    assert codes == [2, 130, 143, 2, 2]


def test_where_there_is_no_terminal_a_line_from_time_to_time(monkeypatch, capsys):
    monkeypatch.delenv("NETGRAFT_PROGRESS")
    now = iter([0.0, 4.0, 11.0, 19.0, 21.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with progress() as say:
        for text in ("tracing", "layer 1 of 9", "layer 2 of 9", "layer 3 of 9"):
            say(text)
    assert capsys.readouterr() == ("", "[11 s] layer 1 of 9\n[22 s] layer 3 of 9\n")


def test_none_where_that_is_not_wanted(monkeypatch, capsys):
    monkeypatch.setenv("NETGRAFT_PROGRESS", "off")
    now = iter(range(0, 1000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with progress() as say:
        say("tracing")
        say("grafting")
    assert capsys.readouterr() == ("", "")


def test_progress_is_for_terminals(monkeypatch, capsys):
    with progress() as say:
        say("quiet")
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as say:
        say("[bold]loading")
    assert "[bold]loading" in terminal.getvalue()
