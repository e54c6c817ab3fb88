"""What CI runs: the example workflow's own shell lines, and the pre-commit hook's own command."""

import os
import shlex
import subprocess
import sys

import pytest
import yaml
from support.command_line import EXAMPLES, NET, ROOT, run

WORKFLOW = EXAMPLES / "inspect-chains.yml"
PYTHON = shlex.quote(sys.executable)


def shell_lines():
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a locked architecture, and programs called netgraft and pip as a runner has them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    assert run("inspect-chains", "./net.py", "--lock", "netgraft.lock.json").exit_code == 0
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {"netgraft": f'exec {PYTHON} -m netgraft "$@"', "pip": 'echo "$@" >> pip.log'}
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def steps():
    """Every run: of the workflow in GitHub's way, up to the first that fails; the last one's result."""
    for line in shell_lines():
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", line], capture_output=True, text=True, check=False)
        if done.returncode:
            break
    return done


def test_the_workflow_is_one_that_github_reads():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow.keys() == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    (job,) = workflow["jobs"].values()
    assert all(step.keys() <= {"name", "uses", "with", "run"} for step in job["steps"])


def test_the_workflow_passes_and_fails(project):
    done = steps()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("::notice file=net.py,title=net.py::unchanged")
    assert "netgraft" in (project / "pip.log").read_text()
    (project / "net.py").write_text(NET.replace("classes=5", "classes=6"))
    done = steps()
    assert done.returncode == 1
    assert done.stdout == "::error file=net.py,title=net.py changed::layer reshaped: head: 5x8 -> 6x8\n"
    (project / "netgraft.lock.json").write_text("{")
    assert steps().returncode == 2


def test_the_hook_runs_a_command_that_exists(project):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["id"], hook["language"], hook["pass_filenames"]) == ("netgraft-inspect-chains", "python", False)
    program, *args = [*shlex.split(hook["entry"]), *hook["args"]]
    assert program == "netgraft"
    assert run(*args).exit_code == 0
    (project / "net.py").write_text(NET.replace("classes=5", "classes=6"))
    assert run(*args).exit_code == 1
