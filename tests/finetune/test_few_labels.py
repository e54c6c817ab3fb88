"""The table of few labels in examples/: a tiny run of the script, and its arithmetic."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from netgraft.data.opening import load_data
from netgraft.errors import UsageError
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.settings import TrainingSettings
from netgraft.models.side import Side
from netgraft.planning import TransferRequest
from netgraft.transfer import transfer

FILE = Path(__file__).parents[2] / "examples" / "few_labels.py"
TINY = ["--methods", "plain", "--inits", "scratch", "--samples", "5", "--epochs", "2", "--seeds", "1"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("few_labels", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_run(script, tmp_path, capsys):
    out, folder = tmp_path / "lines.jsonl", tmp_path / "runs"
    arguments = [*TINY, "--out", str(out), "--folder", str(folder)]
    script.main(arguments)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line.pop("seconds") > 0
    accuracy = line.pop("accuracy")
    known = {"method": "plain", "rule": "total", "init": "scratch", "samples": 5, "seed": 0, "epochs": 2}
    assert line == known

    net = script.VGG9()
    net.load_state_dict(safetensors.torch.load_file(folder / "plain-total-scratch-5-0-2" / "last.safetensors"))
    test = load_data("netgraft:digits-hard", size=(1, 16, 16), mean=(0.5,), std=(0.35,), split="test")
    right = net.eval()(test.images).argmax(1) == test.labels
    assert accuracy == pytest.approx(100 * float(right.double().mean()), abs=1e-3)
    assert f"| scratch | plain | {accuracy:.1f} |  | 1 |" in capsys.readouterr().out

    (folder / "plain-total-scratch-5-0-2" / "last.safetensors").unlink()
    script.main(arguments)  # it is done already
    assert not (folder / "plain-total-scratch-5-0-2" / "last.safetensors").exists()
    assert len(out.read_text().splitlines()) == 1


def _lines():
    """Random ones: plain, and fm with and without dtnh, of which one seed is missing."""
    rng = np.random.default_rng(0)
    accuracy, lines = {}, []
    for method, rule in (("plain", "total"), ("fm", "total"), ("fm", "dtnh")):
        for seed in (2, 0, 1, 3):
            if (rule, seed) == ("dtnh", 3):
                continue
            accuracy[method, rule, seed] = rng.uniform(20, 80)
            line = {"method": method, "rule": rule, "init": "auto", "seed": seed, "seconds": 1.0 + seed}
            line |= {"accuracy": accuracy[method, rule, seed], "conflicts": 0.1 * (seed + 1)}
            lines.append(line)
    return accuracy, lines


def _written(values, sign=""):
    return f"{np.mean(values):{sign}.1f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"


def test_tables(script):
    """Differences are of the seeds that both have, with the standard error of the differences."""
    accuracy, lines = _lines()
    fm, with_rule = (np.array([accuracy["fm", rule, seed] for seed in range(3)]) for rule in ("total", "dtnh"))
    four = {m: np.array([accuracy[m, "total", seed] for seed in range(4)]) for m in ("plain", "fm")}
    cells = [_written(four["fm"]), _written(with_rule), _written(with_rule - fm, "+"), "20 %", "4", "2.5"]
    rows = script.table("regularisers", lines, ["plain", "fm"]).splitlines()
    assert rows[-1] == f"| auto | fm | {' | '.join(cells)} |"
    cells = [_written(four["fm"]), _written(four["fm"] - four["plain"], "+"), "4", "2.5"]
    rows = script.table("l2t", lines, ["plain", "fm"]).splitlines()
    assert rows[-1] == f"| auto | fm | {' | '.join(cells)} |"
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.parametrize(
    "wrong",
    [["--table", "all"], ["--methods", "plain,dann"], ["--inits", "graft"], ["--samples", "x"], ["--seeds", "0"]],
)
def test_refusals(wrong, script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_head_is_drawn_with_the_seed(script, tmp_path):
    """The rest is the transfer's; and the head is the one that training from scratch begins with."""
    reference = script.NETS["vgg9"][0]
    transfer(
        TransferRequest(
            Side(script.SOURCE, "source"),
            Side(reference, "target"),
            tmp_path / "vgg9.safetensors",
            recipe="graft",
            receipt=False,
            device="cpu",
        )
    )
    once = safetensors.torch.load_file(tmp_path / "vgg9.safetensors")
    for seed in (1, 2):
        drawn = safetensors.torch.load_file(script.transferred("vgg9", seed, tmp_path))
        differ = {key for key in once if not torch.equal(once[key], drawn[key])}
        assert differ == {"head.weight", "head.bias"}
        options = {"seed": seed, "samples_per_class": 1, "out": str(tmp_path / "run")}
        scratch = prepare(TrainingSettings(reference, script.DATA, **options, **script.FIXED)).run.target_module
        assert torch.equal(drawn["head.weight"], scratch.head.weight)


def test_what_is_refused(script, tmp_path):
    """The cell that says so is right."""
    assert [script.refused("l2-sp", init) for init in script.INITS] == [True, False]
    with pytest.raises(UsageError, match="needs an initialisation"):
        prepare(TrainingSettings(script.NETS["vgg9"][0], script.DATA, str(tmp_path), method="l2-sp", **script.FIXED))
    with pytest.raises(UsageError, match="compares classes"):  # so kd's source is fine-tuned first
        prepare(
            TrainingSettings(
                script.NETS["vgg9"][0], script.DATA, str(tmp_path), method="kd", source=script.SOURCE, **script.FIXED
            )
        )
    _, lines = _lines()
    rows = script.table("regularisers", lines, ["plain", "l2-sp"]).splitlines()
    assert next(row for row in rows if "refused" in row).startswith("| scratch | l2-sp | refused |")
    assert len({row.count("|") for row in rows}) == 1
