"""``netgraft groups``: tables, JSON, and what is refused."""

import json
from pathlib import Path

import pytest
from support.command_line import run

NET = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (5, 6)

    def __init__(self, width=4):
        super().__init__()
        self.stem, self.norm = nn.Linear(6, width), nn.LayerNorm(width)
        self.body = nn.Linear(width, width)
        self.tokens = nn.Linear(5, 5)
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(self.norm(x))
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x.mean(1))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


def lines(*args):
    result = run("groups", "./net.py", *args)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_tables():
    text = lines()
    assert text[0] == "./net.py: 1 channel group holds 7 of 12 tensors"
    assert text[2].split() == ["group", "channels", "members", "mixed", "by", "tensor[axis]"]
    assert text[3].split(maxsplit=3)[:3] == ["stem.weight[0]", "4", "8"]
    assert "mean (norm)" in text[3]
    assert text[3].endswith("stem.weight[0], stem.bias[0], norm.weight[0] and 5 more")
    fixed = [line.split() for line in text[7:]]
    assert ["output", "1", "head.bias", "3"] in fixed
    assert ["not", "used", "in", "the", "forward", "pass", "2", "spare.weight", "2x2,", "spare.bias", "2"] in fixed
    assert [row[0] for row in fixed] == ["input", "output", "not", "warning:"]


def test_every_member():
    (row,) = (line for line in lines("--members") if line.startswith("  stem.weight[0]"))
    assert row.endswith("norm.bias[0], body.weight[0], body.weight[1], body.bias[0], head.weight[1]")


def test_json():
    document = json.loads("\n".join(lines("--format", "json", "--arg", "width=8")))
    (group,) = document["groups"]
    assert (document["model"], document["rung"], group["name"], group["size"]) == (
        "./net.py",
        "meta",
        "stem.weight[0]",
        8,
    )
    assert {"key": "body.weight", "axis": 1} in group["members"]
    assert group["mixed"] == [{"how": "mean", "by": "norm"}]
    fixed = {entry["key"]: (entry["shape"], entry["why"]) for entry in document["fixed"]}
    assert fixed["head.bias"] == ([3], ["output"])
    assert fixed["spare.bias"] == ([2], ["not used in the forward pass"])
    assert fixed["tokens.weight"][1] == ["input"]
    assert "The forward pass never used 2 parameters" in document["warnings"][0]


def test_a_model_with_nothing_to_permute():
    Path("net.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(4, 3)\nnet.input_size = (4,)\n")
    result = run("groups", "./net.py:net", "--input-size", "4")
    assert result.stdout.splitlines()[0] == "./net.py:net: 0 channel groups hold 0 of 2 tensors"
    assert "  output" in result.stdout


def test_an_unknown_model_is_refused():
    result = run("groups", "resnet19")
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
