"""What is called translated was run: both networks on the same inputs, or another recipe takes over."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import run

from netgraft.files.checkpoint import read_provenance

NETS = """
import torch
import torch.nn.functional as F
from torch import nn

class Fused(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self, act="relu"):
        super().__init__()
        self.act = getattr(F, act)
        self.embed, self.qkv, self.proj = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def attend(self, x):
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.act(self.norm(x + self.attend(x))).mean(1))

class Three(Fused):
    def __init__(self, act="relu"):
        super().__init__(act)
        del self.qkv
        self.values, self.keys, self.queries = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def attend(self, x):
        return self.proj(F.scaled_dot_product_attention(self.queries(x), self.keys(x), self.values(x)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    names = {}
    exec(NETS, names)
    torch.manual_seed(0)
    save_file({key: torch.randn_like(value) for key, value in names["Fused"]().state_dict().items()}, "w.safetensors")
    return names


def outputs(names, act="relu"):
    source, target = names["Fused"](), names["Three"](act)
    source.load_state_dict(load_file("w.safetensors"))
    target.load_state_dict(load_file("o.safetensors"))
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        return source(x), target(x)


def transfer(*more):
    result = run("transfer", "./nets.py:Fused=w.safetensors", "./nets.py:Three", "-o", "o.safetensors", *more)
    return result, read_provenance("o.safetensors") if result.exit_code == 0 else None


@pytest.mark.parametrize("more", [(), ("--no-receipt",), ("--recipe", "translate")])
def test_the_default_translates_one_network(folder, more):
    result, told = transfer(*more)
    assert result.exit_code == 0, result.stderr
    assert told["plan"]["recipe"] == "translate"
    assert told["receipt"]["output"]["error"] <= 1e-5
    assert told["receipt"]["exact"]["holds"] is True
    torch.testing.assert_close(*outputs(folder), rtol=1e-4, atol=1e-5)
    verified = run("verify", "o.safetensors")
    assert verified.exit_code == 0, verified.stdout


def test_what_looks_alike_and_computes_otherwise_is_not_called_translated(folder):
    """An activation is not part of the form that is compared: only running both tells."""
    result, told = transfer("--target-arg", "act=gelu", "--budget", "0.02")
    assert result.exit_code == 0, result.stderr
    assert told["plan"]["recipe"] != "translate"
    first = told["candidates"][0]
    assert (first["recipe"], first["taken"]) == ("translate", False)
    assert "not proven by running both: relative error" in first["note"]
    assert "exact: the target computes" not in result.stdout
    before, after = outputs(folder, "gelu")
    assert (after - before).norm() > 0.01 * before.norm()


def test_by_name_it_is_refused_and_nothing_is_written(folder, tmp_path):  # noqa: ARG001
    result, _ = transfer("--recipe", "translate", "--target-arg", "act=gelu")
    assert result.exit_code == 1
    assert "was not shown to compute what ./nets.py:Fused=w.safetensors does" in result.stderr
    assert "relative error" in result.stderr
    assert not (tmp_path / "o.safetensors").exists()


def test_two_networks_are_refused_by_name(folder):  # noqa: ARG001
    result = run("plan", "./nets.py:Fused", "resnet10t", "--recipe", "translate")
    assert result.exit_code == 1
    assert "The two are not one network" in result.stderr


def test_the_user_s_word_on_layers_counts_more(folder):  # noqa: ARG001
    result, told = transfer("--skip", "head", "--budget", "0.02")
    assert result.exit_code == 0, result.stderr
    assert told["plan"]["recipe"] != "translate"
    assert {kept["key"] for kept in told["plan"]["kept"]} >= {"head.weight", "head.bias"}
