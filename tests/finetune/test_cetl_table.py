"""CETL's table in examples/: a tiny run of the script, what its rows are, and its arithmetic."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from netgraft.finetune.engine.sets import open_sets
from netgraft.finetune.methods.cetl import CoupledEndToEnd
from netgraft.finetune.settings import TrainingSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
BUDGET = 6, 18  # epochs, images per class


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location("cetl_table", EXAMPLES / "cetl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tiny_table(script, tmp_path, capsys):
    given = ["--seeds", "1", "--samples", "2", "--epochs", "3", "--rows", "baseline,cetl-kd", "--folder", str(tmp_path)]
    script.main([*given, "--table"])
    assert len(capsys.readouterr().out.splitlines()) == 4, "nothing but the title"
    script.main(given)
    printed = capsys.readouterr().out
    for row, epochs in (("baseline", 3), ("cetl-kd", 1)):
        out = tmp_path / f"{row}-scratch-2-0-3"
        found = json.loads((out / "result.json").read_text())
        history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert found["accuracy"] == pytest.approx(history[-1]["eval_top1"], abs=1e-4)
        assert found["on_labels"] == epochs
        assert f"| {row} | {found['accuracy']:.2f} |" in printed
        (out / "last.safetensors").unlink()
    assert found["recons1"] == pytest.approx(history[0]["train_recons1"], abs=1e-4)
    assert found["recons2"] == pytest.approx(history[1]["train_recons2"], abs=1e-4)
    script.main(given)  # they are done already
    assert capsys.readouterr().out == printed
    assert not list(tmp_path.glob("*-scratch-*/last.safetensors"))


def test_options_are_chosen_on_images_that_are_held_out(script, tmp_path, monkeypatch):
    """The best mean wins, and the next option is chosen with it."""
    seen = []

    def pretend(out, given):
        seen.append((out.name, given))
        options = given["set"]
        best = {"beta": 10.0, "stage_count": 5, "strength": 1.0}
        return {"validation": 50.0 + sum(options.get(name) == value for name, value in best.items()) + given["seed"]}

    monkeypatch.setattr(script, "train", pretend)
    printed = script.choose(2, 6, tmp_path)
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    assert chosen == {"beta": 10.0, "stage_count": 5, "strength": 1.0}
    assert "| beta | u | 10.0 | 151.5 ± 0.5 | 2 |" in printed
    assert {given["set"]["stage_count"] for _, given in seen if given["set"]["config"] == "cetl"} == {5}
    assert len({name for name, _ in seen}) == len(seen) == 14
    assert {given["draw_seed"] for _, given in seen} == {100, 101}
    sets = open_sets(TrainingSettings("", "netgraft:digits-hard", "", **seen[0][1]))
    assert set(np.bincount(sets.train.labels)) <= {17, 18}
    assert not set(sets.train.items) & set(sets.validation.items)
    assert not set(sets.validation.items) & set(sets.test.items)


def test_rows_differ_in_what_they_say_alone(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "teacher", lambda *_: tmp_path / "taught.safetensors")
    chosen = {"beta": 0.5, "stage_count": 2, "strength": 7.0}
    found = {row: script.settings_of(row, "scratch", 3, *BUDGET, tmp_path, chosen) for row in script.ROWS}
    same = {"seed": 3, "draw_seed": 3, "samples_per_class": 18}
    assert all(same.items() <= given.items() and "init" not in given for given in found.values())
    assert {row: given["epochs"] for row, given in found.items() if given["epochs"] != 6} == {"baseline-third": 2}
    methods = {row: CoupledEndToEnd(**given["set"]) for row, given in found.items() if given["method"] == "cetl"}
    assert [method.config for method in methods.values()] == ["f", "u", "e", "fi", "cetl", "cetl"]
    assert [method.beta for method in methods.values()] == [0.5, 0.5, 1, 1, 1, 1]
    assert [method.stage_count for method in methods.values()] == [1, 1, 2, 2, 2, 2]
    assert [method.strength for method in methods.values()] == [1, 1, 1, 7, 7, 7]
    assert [row for row, given in found.items() if "source_weights" in given] == ["cetl-kd", "kd"]
    assert methods["cetl-kd"].soft_targets == 1.0


def test_the_table_is_paired(script):
    rng = np.random.default_rng(0)
    names, seeds_of = ("accuracy", "seconds", "on_labels"), {"baseline": (0, 1, 2), "u": (1, 2), "kd": ()}
    found = {
        row: {seed: dict(zip(names, rng.uniform(20, 80, 3), strict=True)) for seed in seeds}
        for row, seeds in seeds_of.items()
    }
    for one in found["u"].values():
        one |= {"recons1": 0.25}
    one, other = (np.array([found[row][seed]["accuracy"] for seed in (1, 2)]) for row in ("u", "baseline"))
    rows = script.table(found).splitlines()
    assert len(rows) == 4
    seconds, epochs = (np.median([one[name] for one in found["u"].values()]) for name in ("seconds", "on_labels"))
    cells = ["u", f"{one.mean():.2f} ± {one.std(ddof=1) / 2**0.5:.2f}"]
    cells += [f"{(one - other).mean():+.1f} ± {(one - other).std(ddof=1) / 2**0.5:.1f}", "0.250", ""]
    assert rows[-1] == f"| {' | '.join([*cells, f'{epochs:.0f}', f'{seconds:.0f}', '2', '62.63'])} |"


@pytest.mark.parametrize("wrong", [["--rows", "g"], ["--init", "graft"], ["--seeds", "0"]])
def test_refusals(wrong, script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*wrong, "--folder", str(tmp_path)])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
