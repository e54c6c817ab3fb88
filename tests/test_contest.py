"""Which candidate is taken: what the numbers say, in which order, and what no number decides."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import run

from netgraft import transfer as transfer_module
from netgraft.contest import Made, hold
from netgraft.errors import NonFiniteWeights
from netgraft.evidence.carried import COST, LIMIT, Carried
from netgraft.files.checkpoint import read_provenance
from netgraft.models.side import Side
from netgraft.planning import TransferRequest, make_plan
from netgraft.recipes.protocol import Choice
from netgraft.transfer import transfer


class Told:
    """A measure that says what it is told to; None: not measured."""

    why = "no answer"

    def look(self, share):
        if share is None:
            return None
        errors = (1 - share) / 100 * torch.ones(100, dtype=torch.float64)
        return Carried(share, errors + 1e-3 * torch.tensor([1.0, -1.0] * 50) * (share == 0.42), float("nan"))


def held(*shares, expected="distil", fails=()):
    """The winner's name, and what the rows say; ``shares`` are pairs of a name and what it carries."""
    candidates = [
        SimpleNamespace(choice=Choice(name, None, "", name == expected), plan=SimpleNamespace(passes=()))
        for name, _ in shares
    ]

    def make(candidate):
        if candidate.choice.name in fails:
            raise NonFiniteWeights("NaN")
        return Made(candidate, dict(shares)[candidate.choice.name], [])

    winner, rows = hold(candidates, make, Told())
    assert [row["recipe"] for row in rows] == [name for name, _ in shares]
    assert sum(row["taken"] for row in rows) == (winner is not None)
    return winner and winner.planned.choice.name, [row["carried"] for row in rows]


def test_nothing_is_fitted_where_nearly_all_is_carried():
    made = []

    def candidate(name, *fates):
        passes = tuple(SimpleNamespace(fate=fate) for fate in fates)
        return SimpleNamespace(choice=Choice(name, None, "", name == "distil"), plan=SimpleNamespace(passes=passes))

    def make(each):
        made.append(each.choice.name)
        return Made(each, {"same-names": 0.9, "grow": 0.91, "distil": 0.99}[each.choice.name], [])

    candidates = [candidate("same-names"), candidate("grow", ""), candidate("distil", "distilled")]
    winner, rows = hold(candidates, make, Told())
    assert made == ["same-names", "grow"]
    assert winner.planned.choice.name == "grow"
    assert rows[2]["note"] == "not tried: grow carries 0.91"


def test_once_the_budget_is_spent_nothing_more_is_fitted():
    made, late = [], iter([False, True])

    def candidate(name, *fates):
        passes = tuple(SimpleNamespace(fate=fate) for fate in fates)
        return SimpleNamespace(choice=Choice(name, None, "", name == "distil"), plan=SimpleNamespace(passes=passes))

    def make(each):
        made.append(each.choice.name)
        return Made(each, {"same-names": 0.2, "refit": 0.5, "graft": 0.4}[each.choice.name], [])

    candidates = [candidate("same-names"), candidate("refit", "refitted"), candidate("distil", "distilled")]
    winner, rows = hold([*candidates, candidate("graft", "")], make, Told(), lambda: next(late))
    assert made == ["same-names", "refit", "graft"]
    assert winner.planned.choice.name == "refit"
    assert rows[2]["note"] == "not tried: the budget is spent"


@pytest.mark.parametrize(
    ("shares", "winner"),
    [
        ((("same-names", 0.5), ("grow", 0.6), ("distil", 0.4)), "grow"),
        ((("same-names", 0.5), ("grow", 0.504), ("distil", 0.4)), "same-names"),  # within the margin
        ((("same-names", 0.5), ("refit", 0.42), ("distil", 0.5)), "distil"),  # a tie: the rule decides
        ((("same-names", 0.5), ("distil", 0.499)), "same-names"),
        ((("distil", 0.5), ("same-names", 0.501)), "same-names"),  # the floor needs no margin
        ((("distil", 0.5), ("same-names", 0.5)), "distil"),
        ((("same-names", 0.41), ("grow", 0.42)), "same-names"),  # more than the margin, but images disagree
        ((("same-names", None), ("grow", 0.1), ("distil", None)), "grow"),
        ((("same-names", None), ("distil", None)), None),
    ],
)
def test_the_number_decides_beyond_noise(shares, winner):
    assert held(*shares)[0] == winner


def test_nothing_dearer_is_tried_where_all_is_carried():
    assert held(("same-names", 0.9), ("grow", 0.9995), ("distil", 1.0)) == ("grow", [0.9, 1.0, None])


def test_what_holds_nan_is_out():
    assert held(("same-names", 0.3), ("distil", 0.9), fails=["distil"]) == ("same-names", [0.3, None])


# ----------------------------------------------------------------------------------------------------------- end to end

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self, widths=(12, 16, 24), act="relu", classes=6):
        super().__init__()
        before, self.blocks, self.act = 3, nn.ModuleList(), act
        for width in widths:
            self.blocks.append(nn.Sequential(nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)))
            before = width
        self.head = nn.Linear(before, classes)

    def forward(self, x):
        for block in self.blocks:
            x = getattr(torch, self.act)(block(x))
        return self.head(x.mean((2, 3)))

class Decoded(Net):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(24, 8, 4, 4)
        self.last = nn.Conv2d(8, 4, 1)
        del self.head

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu()
        return self.last(self.up(x).relu())

class Deeper(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24))

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu()
        return self.head(self.more(x).relu().mean((2, 3)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    names = {}
    exec(NETS, names)
    torch.manual_seed(1)
    net = names["Net"]().train()
    for _ in range(20):
        net(torch.rand(32, 3, 16, 16))  # statistics of its own
    save_file(net.state_dict(), "w.safetensors")
    return tmp_path


def asked(folder, target, args=None, file="init.safetensors", **more):
    source = Side("./nets.py:Net", "source", weights=folder / "w.safetensors")
    return TransferRequest(source, Side(target, "target", args or {}), folder / file, force=True, **more)


TARGETS = [
    ("./nets.py:Net", {"classes": 3}),
    ("./nets.py:Net", {"widths": (12, 16, 40)}),
    ("./nets.py:Net", {"act": "tanh"}),
    ("./nets.py:Decoded", {}),
    ("./nets.py:Deeper", {}),
]


@pytest.mark.parametrize(("target", "args"), TARGETS)
def test_the_default_is_never_below_the_copy_by_name(folder, target, args):
    transfer(asked(folder, target, args, options={"budget": 0.02}))
    told = read_provenance(folder / "init.safetensors")
    transfer(asked(folder, target, args, "names.safetensors", recipe="same-names"))
    names = read_provenance(folder / "names.safetensors")["receipt"]["carried"]
    found = told["receipt"]["carried"]
    assert found["share"] >= names["share"]
    assert (found["random"], found["held_out"]) == (names["random"], names["held_out"])
    assert any(row["recipe"] == "same-names" for row in told["candidates"])
    taken = [row for row in told["candidates"] if row["taken"]]
    assert [(row["recipe"], row["carried"]) for row in taken] == [(told["plan"]["recipe"], found["share"])]


def test_the_same_command_gives_the_same_bytes(folder):
    request = asked(folder, "./nets.py:Net", {"widths": (12, 16, 40), "classes": 3}, options={"budget": 0.02})
    transfer(request)
    before, bytes_before = load_file(request.output), request.output.read_bytes()
    assert before
    transfer(request)
    assert request.output.read_bytes() == bytes_before


def test_the_plan_shows_the_candidates_without_measuring(folder):
    request = asked(folder, "./nets.py:Net", {"widths": (12, 10)}, options={"budget": 0.02})
    planned = make_plan(request)
    names = [each.choice.name for each in planned.candidates]
    assert names[:4] == ["almost-equal", "same-names", "grow", "graft"]
    assert [each.choice.expected for each in planned.candidates].count(True) == 1
    assert planned.choice.expected
    args = ("./nets.py:Net=w.safetensors", "./nets.py:Net", "--target-arg", "widths=(12, 10)", "--budget", "0.02")
    shown = run("plan", *args)
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"  same-names +to be measured; tensors of equal name and shape", shown.stdout)
    assert f"* {planned.choice.name} " in shown.stdout


def test_what_was_asked_for_by_name_has_no_rivals(folder):
    request = asked(folder, "./nets.py:Net", {"classes": 3}, recipe="graft")
    transfer(request)
    told = read_provenance(request.output)
    assert told["candidates"] == []
    assert told["receipt"]["carried"]["share"] == 1


@pytest.mark.parametrize(("recipe", "cost"), [("graft", COST), ("refit", LIMIT), ("auto", LIMIT)])
def test_a_decision_between_fits_is_worth_more_images(tmp_path, monkeypatch, recipe, cost):
    monkeypatch.chdir(tmp_path)
    grey = NETS.replace("(3, 16, 16)", "(1, 16, 16)").replace("self.act = 3,", "self.act = 1,")
    (tmp_path / "net.py").write_text(grey)
    given = []
    looked = transfer_module.Measure

    def measure(*args, **more):
        given.append(more["cost"])
        return looked(*args, **more)

    monkeypatch.setattr(transfer_module, "Measure", measure)
    options = {"refit_images": 16} if recipe == "refit" else {"budget": 0.1} if recipe == "auto" else {}
    source, target = Side("netgraft:resnet20-glyphs", "source"), Side("./net.py:Net", "target")
    transfer(TransferRequest(source, target, tmp_path / "init.safetensors", recipe=recipe, options=options))
    assert given == [cost]
