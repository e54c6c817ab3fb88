"""Recipes, matchers, operators, passes, methods and generators of one's own: a file, a package, or a file in a room."""

import importlib
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.command_line import EXAMPLES, run, write_net, write_weights
from support.drawn import ZOO
from support.matcher_laws import check_identity, check_laws
from support.nets import Branched, Flat, Straight, traced
from support.recipe_laws import check_identity as check_copy
from support.recipe_laws import check_laws as check_recipe
from support.recipe_laws import check_result
from support.staged import check_pass, grafted, taught

import netgraft
from netgraft import plugins
from netgraft.errors import PlanError
from netgraft.files.checkpoint import read_provenance
from netgraft.operators.apply import apply_steps
from netgraft.plan import STACKED, Plan, Step
from netgraft.report.ledger import ledger, pass_lines

OWN = {kind: str(EXAMPLES / f"own_{kind}.py") for kind in ("recipe", "matcher", "operator", "pass")}
RECIPE, MATCHER, OPERATOR, PASS = OWN.values()
WIDER = ("net.py", "--source-weights", "w.safetensors", "--target-arg", "width=6")
IMAGE = (3, 16, 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Here: a network, and weights of it."""
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    write_weights(tmp_path / "w.safetensors")
    return tmp_path


def written(*args):
    """The ledger of a transfer, and what it printed."""
    result = run("transfer", "net.py", *WIDER, "-o", "out.safetensors", "--force", *args)
    assert result.exit_code == 0, result.stderr
    return read_provenance(Path("out.safetensors")), result.stdout


# ------------------------------------------------------------------------------------------------------- the examples


@pytest.mark.parametrize("kind", OWN)
def test_an_example_is_short(kind):
    assert len(Path(OWN[kind]).read_text().splitlines()) <= 40
    cls = plugins.load({"pass": "passes"}.get(kind, f"{kind}s"), OWN[kind])
    assert all(option.doc for option in plugins.options(cls))


@pytest.mark.usefixtures("folder")
def test_the_recipe_on_the_command_line():
    provenance, printed = written("--recipe", RECIPE, "--map", "stem=body", "--skip", "norm", "--head")
    plan = Plan.from_json(provenance["plan"])
    plan.check_law(state_keys())
    assert plan.pairing.mapped == {"body": "stem"}
    assert plan.options["maps"] == [["stem", "body"]]
    assert {fate.key for fate in plan.kept if fate.why.startswith("skipped by --skip norm")} == {
        f"norm.{role}" for role in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert {move.key: move.source_key for move in plan.moves}["body.weight"] == "stem.weight"
    assert plan.options["head"] == "always"
    assert plan.fates["head.weight"] == STACKED
    assert "maps ['stem=body']" in printed


@pytest.mark.usefixtures("folder")
def test_the_head_of_another_size_stays_without_the_recipes_help():
    provenance, _ = written("--recipe", RECIPE, "--target-arg", "classes=9")
    kept = {fate["key"]: fate["why"] for fate in provenance["plan"]["kept"]}
    assert set(kept) == {"head.weight", "head.bias"}
    assert kept["head.bias"] == (
        "the head keeps its own initialisation: 5 outputs in the source, 9 in the target (--head moves it anyway)"
    )


@pytest.mark.usefixtures("folder")
def test_the_operator_through_the_recipe():
    provenance, printed = written("--recipe", RECIPE, "--set", f"operator={OPERATOR}")
    plan = Plan.from_json(provenance["plan"])
    assert {step.operator for move in plan.moves for step in move.steps} == {OPERATOR}
    assert plan.fates["stem.weight"] == STACKED
    assert "axis 0 repeated with other signs to 6" in printed
    planned = run("plan", "net.py", *WIDER, "--recipe", RECIPE, "--set", f"operator={OPERATOR}")
    assert "axis 0 repeated with other signs to 6" in planned.stdout


def test_a_ledger_runs_no_file_that_it_names(folder):
    """It reads what the operator says of itself; its words, which are code, are left out."""
    canary = folder / "ran"
    text = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n" + Path(OPERATOR).read_text()
    (folder / "canary.py").write_text(text.replace('fate: ClassVar[str] = "stacked"', 'fate: ClassVar[str] = "set"'))
    provenance, _ = written("--recipe", RECIPE)
    text = str(provenance["plan"]).replace("'cyclic'", "'./canary.py'")
    plan = Plan.from_json(eval(text))
    assert plan.fates["stem.weight"] == "set"
    assert "./canary.py out 4 to 6" in "\n".join(ledger(plan))
    list(pass_lines({"passes": [{"name": "./canary.py", "a": 1}]}))
    assert not canary.exists()
    assert Plan.from_json(eval(text.replace("canary", "gone"))).fates["stem.weight"] == STACKED


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("recipe", ["hmt", "graft", RECIPE], ids=["hmt", "graft", "own"])
def test_the_matcher_on_the_command_line(recipe):
    provenance, _ = written("--recipe", recipe, "--matcher", MATCHER)
    why = {pair["target"]: pair["why"] for pair in provenance["plan"]["pairing"]["pairs"]}
    assert why["stem"] == why["body"] == "the last 1 parts of their names are equal"


@pytest.mark.usefixtures("folder")
def test_the_pass_on_the_command_line():
    provenance, printed = written("--recipe", "hmt", "--pass", PASS)
    (report,) = provenance["passes"]
    assert list(report["means"]) == ["head"]
    assert f"centred head, whose biases had the mean {report['means']['head']}" in printed
    assert report["means"]["head"] != 0


def state_keys():
    names = {}
    exec(Path("net.py").read_text(), names)
    return names["Net"]().state_dict()


# ----------------------------------------------------------------------------------------------------- laws they keep


@pytest.mark.parametrize(
    ("source", "target"), [*pairwise([Straight, Flat, Branched, lambda: Straight(((12, 5), (16, 3)), classes=7)])]
)
def test_laws_of_recipes(source, target):
    source, target = traced(source, IMAGE), traced(target, IMAGE)
    recipe = plugins.create("recipes", RECIPE, {})
    check_result(check_recipe(recipe, source, target), source, target)
    if not source.loose:  # what is used by no layer is no recipe's business but that of a plain copy
        check_copy(recipe, source)


@pytest.mark.parametrize("target", ZOO)
def test_laws_of_matchers(target):
    matcher = plugins.create("matchers", MATCHER, {})
    for source in ZOO.values():
        check_laws(matcher, source, ZOO[target])
    check_identity(matcher, ZOO[target])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_laws_of_operators(dtype):
    weight = torch.arange(1.0, 13).reshape(3, 4).to(dtype)
    before = weight.clone()

    def made(**options):
        return apply_steps(weight, [Step(OPERATOR, options)])

    assert torch.equal(made(dim=0, size=3), weight)
    assert torch.equal(made(dim=1, size=2), weight[:, :2])
    wide = made(dim=0, size=8)
    assert wide.dtype == dtype
    assert torch.equal(wide, torch.cat([weight, -weight, weight[:2]]))
    assert torch.equal(made(dim=0, size=8), wide)
    assert torch.equal(weight, before)
    with pytest.raises(PlanError):
        made(dim=2, size=3)


def test_laws_of_passes():
    work = grafted(taught(Straight, IMAGE), lambda: Straight(((12, 3), (12, 3))))
    report, start, changed = check_pass(plugins.create("passes", PASS, {"to": "0.5"}), work)
    (key,) = changed
    bias = work.target.module.state_dict()[key]
    torch.testing.assert_close(bias.mean(), torch.tensor(0.5))
    torch.testing.assert_close(bias - bias.mean(), start[key] - start[key].mean())
    assert list(report["means"].values()) == [pytest.approx(float(start[key].mean()), abs=1e-4)]


# -------------------------------------------------------------------------------------------- what is refused, and how


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("recipe", ("def pair(", "def match("), "no methods pair(source, target) and plan(task)"),
        ("recipe", ("return Draft(moves, reasons)", "return moves"), "does not answer with a Draft, but with list"),
        ("operator", ('"stacked"', '"folded"'), "does not say what becomes of a tensor"),
        ("operator", ('"stacked"', '"stack" + "ed"'), "does not say what becomes of a tensor"),
        ("pass", ('fate: ClassVar[str] = ""', 'fate: ClassVar[str] = "lost"'), "or a fate"),
        ("pass", ("def touches(", "def touch("), "lacks touches(source, target, pairing)"),
    ],
)
def test_a_plugin_that_is_none(folder, kind, change, says):
    text = Path(OWN[kind]).read_text()
    assert change[0] in text
    (folder / "broken.py").write_text(text.replace(*change))
    options = {
        "recipe": ["--recipe", "./broken.py"],
        "operator": ["--recipe", RECIPE, "--set", "operator=./broken.py"],
        "pass": ["--recipe", "hmt", "--pass", "./broken.py"],
    }
    result = run("plan", "net.py", *WIDER, *options[kind])
    assert result.exit_code == 2, result.stdout
    assert says in " ".join(result.stderr.split())


# ----------------------------------------------------------------------------------------------- one file each, and how

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar
from netgraft.finetune.methods.plain import Plain as _Plain

@dataclass(frozen=True)
class Loud(_Plain):
    """Plain, by another name."""
'''
GENERATOR = '''
import torch
from dataclasses import dataclass

@dataclass(frozen=True)
class Grey:
    """Grey images, each of another grey."""
    def __call__(self, count, size, generator):
        shades = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
        return shades.expand(count, *size).clone()
'''
KINDS = {
    "recipes": Path(RECIPE).read_text(),
    "matchers": Path(MATCHER).read_text(),
    "operators": Path(OPERATOR).read_text(),
    "passes": Path(PASS).read_text(),
    "finetune.methods": METHOD,
    "data.generators": GENERATOR,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A distribution with one entry point of each kind."""
    site = tmp_path / "site"
    (site / "ngx_own").mkdir(parents=True)
    (site / "ngx_own-1.0.dist-info").mkdir()
    (site / "ngx_own-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ngx-own\nVersion: 1.0\n")
    lines = []
    for folder, text in KINDS.items():
        kind = folder.rpartition(".")[2]
        (site / "ngx_own" / f"{kind}.py").write_text(text)
        lines += [f"[netgraft.{kind}]", f"packed-{plugins.noun(folder)} = ngx_own.{kind}"]
    (site / "ngx_own-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (site / "ngx_own" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    importlib.invalidate_caches()
    yield site
    for name in [name for name in sys.modules if name.startswith("ngx_own")]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", KINDS)
def test_every_kind_comes_from_a_file_and_from_a_package(folder, tmp_path, package):
    name = f"packed-{plugins.noun(folder)}"
    found = plugins.listing(folder)[name]
    assert found.path == package / "ngx_own" / f"{folder.rpartition('.')[2]}.py"
    assert found.summary
    assert not any(module.startswith("ngx_own") for module in sys.modules), "listing imports nothing"
    packed = plugins.load(folder, name)
    assert packed.__module__.startswith("ngx_own.")
    (tmp_path / "own.py").write_text(KINDS[folder])
    own = plugins.load(folder, str(tmp_path / "own.py"))
    assert own.__name__ == packed.__name__
    assert plugins.options(own) == plugins.options(packed)
    command = f"{folder.rpartition('.')[2]}"
    for given in (name, str(tmp_path / "own.py")):
        shown = run(command, given)
        assert shown.exit_code == 0, shown.stderr
        assert found.summary in " ".join(shown.stdout.split())
    assert name in run(command).stdout


@pytest.mark.usefixtures("folder", "package")
def test_a_transfer_with_a_package_alone():
    provenance, printed = written(
        *("--recipe", "packed-recipe", "--matcher", "packed-matcher", "--set", "operator=packed-operator"),
        *("--pass", "packed-pass"),
    )
    assert Plan.from_json(provenance["plan"]).fates["stem.weight"] == STACKED
    assert "axis 0 repeated with other signs to 6" in printed
    assert "centred head" in printed
    assert "centred head" in run("show", "out.safetensors").stdout
    provenance, _ = written("--recipe", "refit", "--images", "packed-generator", "--set", "refit_images=16")
    assert provenance["plan"]["options"]["generator"] == "packed-generator"


def test_one_file_in_its_folder_is_all_that_netgraft_itself_needs(folder):
    """The package once more, with the examples in its folders and no other line changed."""
    root = Path(netgraft.__file__).parent
    shutil.copytree(root, folder / "netgraft", ignore=shutil.ignore_patterns("__pycache__"))
    for room, (kind, name) in {
        "recipes": ("recipe", "axis_by_axis"),
        "matchers": ("matcher", "by_suffix"),
        "operators": ("operator", "alternate"),
        "passes": ("pass", "centre_head"),
    }.items():
        shutil.copy(OWN[kind], folder / "netgraft" / room / f"{name}.py")
    args = ["--recipe", "axis-by-axis", "--matcher", "by-suffix", "--set", "operator=alternate"]
    args += ["--pass", "centre-head", "-o", "out.safetensors"]
    command = [sys.executable, "-c", "from netgraft.__main__ import main; main()", "transfer", "net.py", *WIDER, *args]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "axis 0 repeated with other signs to 6" in done.stdout
    assert "centred head" in done.stdout
