"""Only what is no copy is trained: which layers that are, and that all others stay bit for bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.nets import traced, weights

from netgraft.models.side import Side
from netgraft.planning import TransferRequest, make_plan
from netgraft.recipes.almost_equal import seams
from netgraft.transfer import transfer

NETS = """
import torch
from torch import nn


class Chain(nn.Module):
    def __init__(self, names="abcd", norm=nn.BatchNorm2d, classes=6, shortcut=False):
        super().__init__()
        self.stem, self.names, self.shortcut = nn.Conv2d(3, 8, 3, padding=1), names, shortcut
        self.convs = nn.ModuleDict({n: nn.Conv2d(8, 8, 3, padding=1, bias=False) for n in names})
        self.norms = nn.ModuleDict({n: norm(8) for n in names})
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.stem(x)
        for n in self.names:
            y = torch.relu(self.norms[n](self.convs[n](x)))
            x = x + y if self.shortcut else y
        return self.head(x.mean((2, 3)))
"""
names = {}
exec(NETS, names)
Chain = names["Chain"]


def found(source, target):
    return list(seams(*(traced(lambda options=options: Chain(**options), (3, 8, 8)) for options in (source, target))))


@pytest.mark.parametrize(
    ("names", "expected"),
    [("acd", ["convs.c", "norms.c"]), ("abd", ["convs.d", "norms.d"]), ("abcd", []), ("abc", ["head"])],
)
def test_the_seam_is_right_behind_what_was_taken_out_of_a_chain(names, expected):
    assert found({}, {"names": names}) == expected


def test_where_a_shortcut_leads_around_it_there_is_none():
    assert found({"shortcut": True}, {"shortcut": True, "names": "acd"}) == []


def test_what_was_put_in_is_no_seam():
    assert found({}, {"names": "abxcd"}) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    state = weights(Chain, 1)
    save_file(state, tmp_path / "w.safetensors")
    return tmp_path


def asked(folder, args, **options):
    source = Side("./nets.py:Chain", "source", input_size=(3, 16, 16), weights=folder / "w.safetensors")
    target = Side("./nets.py:Chain", "target", args, input_size=(3, 16, 16))
    options = {"steps": 4, "images": 64, "batch": 16} | options
    return TransferRequest(source, target, folder / "out.safetensors", recipe="fit-seam", options=options, force=True)


def test_the_rest_stays_bit_for_bit(folder):
    request = asked(folder, {"names": "acd"})
    transfer(request)
    before, after = load_file(folder / "w.safetensors"), load_file(request.output)
    changed = {key.rpartition(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"convs.c", "norms.c"}


def test_the_plan_names_what_is_trained(folder):
    (each,) = make_plan(asked(folder, {"names": "acd"})).plan.passes
    assert each.name == "distil"
    assert {key.rpartition(".")[0] for key in each.keys} == {"convs.c", "norms.c"}
    assert each.options["steps"] == 4


def test_where_all_is_copied_nothing_is_trained(folder):
    assert make_plan(asked(folder, {"classes": 3})).plan.passes == ()
