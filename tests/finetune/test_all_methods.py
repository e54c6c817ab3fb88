"""The table of all methods in examples/: a tiny run of the script, and what each method is given."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from netgraft import plugins
from netgraft.finetune.needs import check_needs
from netgraft.finetune.protocol import Need
from netgraft.models.side import Side
from netgraft.planning import TransferRequest
from netgraft.transfer import transfer

FOLDER_OF_EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--seeds", "1", "--samples", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER_OF_EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("all_methods", FOLDER_OF_EXAMPLES / "all_methods.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER_OF_EXAMPLES))


@pytest.fixture(scope="module")
def grafted(script, tmp_path_factory):
    """A folder with transfers by the quickest recipe in place of those that take minutes."""
    folder = tmp_path_factory.mktemp("runs")
    for net in ("vgg9", script.few_labels.TEACHER):
        reference, arguments = script.few_labels.NETS[net]
        sides = Side(script.few_labels.SOURCE, "source"), Side(reference, "target", args=arguments)
        transfer(TransferRequest(*sides, folder / f"{net}.safetensors", recipe="graft", receipt=False, device="cpu"))
    return folder


def test_every_method_has_a_row(script):
    alone, domain = script.methods()
    assert sorted([*alone, *domain]) == sorted([*plugins.listing("finetune.methods"), script.TOGETHER])
    assert {"dann", "tradaboost", "adda"} < set(domain)
    assert {"cetl", "ewc", "kd"} < set(alone)


def test_each_method_is_given_what_it_needs(script, monkeypatch):
    """From both starts; nothing is given to a method that asks for nothing."""
    folder = Path("runs")
    monkeypatch.setattr(script, "_teacher", lambda *_: folder / "teacher.safetensors")
    monkeypatch.setattr(script, "_trained_on_source_domain", lambda *_: folder / "digits.safetensors")
    monkeypatch.setattr(script.few_labels, "transferred", lambda *_: folder / "vgg9.safetensors")
    for name in [name for names in script.methods() for name in names]:
        for init in script.INITS:
            if script.refused(name, init):
                continue
            chosen = script.settings_of(name, init, 1, 30, 18, folder, folder / "out")
            check_needs(chosen, script.few_labels.described(chosen.method))
            assert (chosen.init is not None) == (init == "auto" or name in script.FIRST_TRAINED), name
            needs = set(script.few_labels.needs(chosen.method))
            assert (chosen.source is not None) == bool({Need.SOURCE_MODEL, Need.SOURCE_GRADIENTS} & needs), name
            known = Need.SAME_CLASSES in needs or name == "jacobian"
            assert (chosen.source_weights is not None) == known, name
            assert (chosen.seed, chosen.draw_seed, chosen.epochs, chosen.samples_per_class) == (1, 1, 30, 18)
            assert set(chosen.set) <= {"labels"}, "an option that is no default"
    assert [script.refused("l2-sp", init) for init in script.INITS] == [True, False]


def test_a_tiny_run(script, grafted, capsys):
    """Tables of what is finished, also when only some is; nothing is run twice."""
    arguments = ["--folder", str(grafted), *TINY]
    script.main(arguments)
    assert "| plain |" not in capsys.readouterr().out
    script.main([*arguments, "--run", "--methods", "plain,l2-sp,kd,adda,together"])
    files = sorted(grafted.glob("*/result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    out = capsys.readouterr().out
    for name, init in (("plain", "scratch"), ("kd", "auto"), ("adda", "scratch"), ("together", "auto")):
        result = json.loads((script.place(name, init, 0, 2, 2, grafted) / "result.json").read_text())
        row = next(row for row in out.splitlines() if row.startswith(f"| {name} |"))
        assert f"| {result['accuracy']:.1f} |" in row
        assert f"{result['step']:.2f} |" in row
        assert row.endswith("| 1 |")
    assert next(row for row in out.splitlines() if row.startswith("| l2-sp |")).startswith("| l2-sp | refused |")
    script.main([*arguments, "--run", "--methods", "plain,l2-sp,kd,adda,together"])
    assert capsys.readouterr().out == out
    assert [file.stat().st_mtime_ns for file in files] == before


def test_differences_are_of_paired_seeds(script):
    """Of the seeds that both have; the counts of both starts where they are not the same."""
    rng = np.random.default_rng(0)
    plain, other = rng.uniform(20, 80, 3), rng.uniform(20, 80, 2)

    def made(values):
        return {seed: {"accuracy": value, "step": 3.0, "seconds": 1.0} for seed, value in enumerate(values)}

    found = {"plain": {"scratch": {}, "auto": made(plain)}, "fm": {"scratch": {}, "auto": made(other)}}
    less = other - plain[:2]
    row = script.table(found).splitlines()[-1]
    assert row.startswith("| fm |  |  |")
    assert f"| {less.mean():+.1f} ± {less.std(ddof=1) / 2**0.5:.1f} | 3.00 | 1.0 | 0 and 2 |" in row


@pytest.mark.parametrize("wrong", [["--methods", "plain,dan n"], ["--seeds", "0"]])
def test_refusals(wrong, script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--folder", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
