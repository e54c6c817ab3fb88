"""The study of transferability in examples/: what is copied, what is frozen, and the table."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FILE = Path(__file__).parents[2] / "examples" / "transferability.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("transferability", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tiny_study(script, tmp_path, capsys):
    given = ["--seeds", "1", "--samples", "5", "--epochs", "1", "--layers", "2", "--folder", str(tmp_path)]
    script.main(given)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("| 2 | ")
    first = {f"features.{i}.{name}" for i in (0, 3) for name in ("weight",)}
    first |= {f"features.{i}.{name}" for i in (1, 4) for name in ("weight", "bias", "running_mean", "running_var")}
    for kind, donor in (("A2B", "A"), ("A2B+", "A"), ("B2B", "B")):
        start, end = load_file(tmp_path / f"{kind}-0.safetensors"), load_file(tmp_path / f"{kind}-0/last.safetensors")
        base = load_file(tmp_path / f"base{donor}-0/last.safetensors")
        copied = {key for key in start if start[key].shape == base[key].shape and torch.equal(start[key], base[key])}
        assert first <= copied
        assert "features.7.weight" not in copied
        same = {key for key in first if torch.equal(end[key], start[key])}
        assert same == (set() if kind.endswith("+") else first), kind
        assert not torch.equal(end["head.weight"], start["head.weight"])
    script.main(given)  # what was trained is read again
    assert capsys.readouterr().out == printed
