"""A lock may come from a stranger: what it names runs nothing but files below its own folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import NET, run

CANARY = "from pathlib import Path\nPath({!r}).touch()\n" + NET


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """A project, the working directory, and beside it the file that appears when something of the lock has run."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    file = tmp_path / "canary"
    (tmp_path / "outside.py").write_text(CANARY.format(str(file)))
    return file


def write_lock(model, *args, path="lock.json"):
    empty = {"layers": {}, "edges": [], "chain": [], "unused": [], "gates": True, "weight": "layers"}
    entry = {"args": list(args), "input_size": None, **empty}
    Path(path).write_text(json.dumps({"format": "netgraft lock", "version": 1, "models": {model: entry}}))


def refused(canary, *options):
    result = run("inspect-chains", "--check", "lock.json", *options)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "name it on the command line: netgraft inspect-chains " in " ".join(result.stderr.split())
    assert not canary.exists()
    return result.stderr


@pytest.mark.parametrize("format", ["table", "junit"])
@pytest.mark.parametrize(("model", "argument"), [("os:system", "command='touch {}'"), ("os:mkdir", "path='{}'")])
def test_a_function_of_python(canary, model, argument, format):
    write_lock(model, argument.format(canary))
    refused(canary, "--format", format)


def test_a_function_that_takes_a_list(canary):
    write_lock("subprocess:call", f"args=['touch', '{canary}']")
    refused(canary)


def test_a_function_that_ends_the_process():
    write_lock("os:_exit", "status=0")
    command = [sys.executable, "-m", "netgraft", "inspect-chains", "--check", "lock.json"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_nothing_runs_before_the_refusal(canary):
    """Not even a sound model that the lock names first."""
    Path("net.py").write_text(CANARY.format(str(canary)))
    write_lock("net.py")
    text = json.loads(Path("lock.json").read_text())
    text["models"]["os:getcwd"] = text["models"]["net.py"]
    Path("lock.json").write_text(json.dumps(text))
    refused(canary)


@pytest.mark.parametrize("model", ["../outside.py", "./../outside.py:Net", "{}", "linked.py", "linked/outside.py"])
def test_files_outside(canary, model):
    Path("linked.py").symlink_to("../outside.py")
    Path("linked").symlink_to("..")
    write_lock(model.format(canary.parent / "outside.py"))
    assert "outside the lock's folder" in refused(canary)


def test_a_lock_that_is_a_link_vouches_for_no_other_folder(canary):
    write_lock("../outside.py", path="../lock.json")
    Path("lock.json").symlink_to("../lock.json")
    refused(canary)


@pytest.mark.parametrize("model", ["../timm", "local-dir:../timm", "linked"])
def test_a_folder_outside(canary, model):
    folder = canary.parent / "timm"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    Path("linked").symlink_to("../timm")
    if model == "linked":
        model = "./linked"
    write_lock(model)
    assert "outside the lock's folder" in refused(canary)


def test_an_installed_package_below_the_folder(canary):
    packages = Path("venv/lib/site-packages")
    packages.mkdir(parents=True)
    (packages / "spawn.py").write_text("from pathlib import Path\n\ndef spawn(path):\n    Path(path).touch()\n")
    write_lock("venv/lib/site-packages/spawn.py:spawn", f"path='{canary}'")
    assert "installed package" in refused(canary)


@pytest.mark.parametrize(
    "text", ["from os import system", "from os import system as build", "import os; build = os.system"]
)
@pytest.mark.parametrize("named", [True, False])
def test_a_callable_that_a_file_imports(canary, text, named):
    name = text.split()[-1] if "build" not in text else "build"
    Path("net.py").write_text(f"{text}\n")
    if not named and name != "build":
        Path("net.py").write_text(f"{text}\n__all__ = ['system']\n")
    write_lock(f"net.py:{name}" if named else "net.py", f"command='touch {canary}'")
    result = run("inspect-chains", "--check", "lock.json")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert not canary.exists()


@pytest.mark.parametrize("model", ["net.py:touch", "net.py:call"])
def test_what_is_neither_a_module_class_nor_a_function(canary, model):
    Path("touching.py").write_text("from pathlib import Path\n\ndef touch(path):\n    Path(path).touch()\n")
    Path("net.py").write_text("from functools import partial\nfrom touching import touch\ncall = partial(touch)\n")
    write_lock(model, f"path='{canary}'")
    assert "does not define" in refused(canary)


def test_what_the_command_line_names_is_vouched_for(canary):
    """Then a module, a file elsewhere and an imported class work as ever; the lock alone does not reach them."""
    Path("helper.py").write_text(NET)
    Path("net.py").write_text("from helper import Net\n")
    (canary.parent / "outside.py").write_text(NET)
    models = ["helper:Net", "../outside.py", "net.py:Net"]
    written = run("inspect-chains", *models, "--arg", "width=6", "--lock", "lock.json")
    assert written.exit_code == 0, written.output
    for model in models:
        result = run("inspect-chains", model, "--check", "lock.json")
        assert (result.exit_code, "unchanged" in result.stdout) == (0, True), result.output
    refused(canary)


def test_a_project_checks_its_own_files_and_names_in_catalogues():
    """From another working directory too, and through a link that stays inside."""
    Path("models").mkdir()
    Path("models/net.py").write_text(NET)
    Path("link.py").symlink_to("models/net.py")
    models = ["models/net.py", "./link.py:Net", "netgraft:vgg11-glyphs"]
    assert run("inspect-chains", *models, "--lock", "lock.json").exit_code == 0
    assert run("inspect-chains", "--check", "lock.json").exit_code == 0
