"""The face: help that can be trusted, stdout that can be piped, exit codes, and what a finished transfer says."""

import glob
import hashlib
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from support.command_line import NET, link_examples, run, state, write_net, write_weights

import netgraft
from netgraft import transfer as job

COMMANDS = (
    "transfer",
    "plan",
    "inspect-chains",
    "show",
    "verify",
    "models",
    "recipes",
    "matchers",
    "passes",
    "generators",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    write_weights("w.safetensors")
    return tmp_path


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


# ----------------------------------------------------------------------------------------------------------------- help


def examples(*command):
    """The command lines at the end of a help page."""
    _, _, listed = run(*command, "--help").stdout.partition("Examples:\n")
    return [line.strip() for line in listed.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    result = run(command, "-h")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == run(command, "--help").stdout
    assert examples(command)
    assert not re.search(r"[a-z]\.\.\.$", result.stdout, re.MULTILINE)


def test_help_lists_every_command_in_full():
    result = run("--help", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for command in COMMANDS:
        summary = re.search(rf"^  {command}  +(.*)$", result.stdout, re.MULTILINE)
        assert summary is not None
        assert summary[1].endswith(".")
        assert not summary[1].endswith("...")
    for reference in ("resnet18.a1_in1k", "hf-hub:", "torchvision:", "netgraft:", "./my_arch.py:Net", "=FILE"):
        assert reference in result.stdout
    without = run(env={"COLUMNS": "80"})
    assert (without.exit_code, without.stdout, without.stderr) == (0, result.stdout, "")


def test_version():
    assert succeed("--version") == f"netgraft {netgraft.__version__}\n"


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=lambda c: "".join(c) or "netgraft")
def test_examples_run(command, tmp_path, monkeypatch):
    """In a checkout, with a file of weights saved from timm, one after the other."""
    monkeypatch.chdir(tmp_path)
    link_examples(tmp_path)
    torch.manual_seed(0)
    write_weights("r18.safetensors", timm.create_model("resnet18").state_dict())
    if command in (("show",), ("verify",)):
        succeed(
            "transfer", "--recipe", "hmt", "netgraft:resnet20-glyphs", "examples/my_arch.py", "-o", "init.safetensors"
        )
    lines = examples(*command)
    assert lines
    for line in lines:
        if command == ("transfer",):
            Path("init.safetensors").unlink(missing_ok=True)
        program, *words = shlex.split(line)
        assert program == "netgraft"
        succeed(*(name for word in words for name in sorted(glob.glob(word)) or [word]))


# ------------------------------------------------------------------------------------------------------------- transfer


@pytest.mark.usefixtures("folder")
def test_a_transfer_and_its_ledger():
    wide = ("./net.py", "./net.py", "--target-arg", "width=6")
    weights = ("--source-weights", "w.safetensors")
    text = succeed("transfer", "--recipe", "hmt", *wide, *weights, "-o", "init.safetensors")
    assert re.search(r"^  stem +4x3x3x3 +stem +6x3x3x3 +cyclic out 4 to 6$", text, re.MULTILINE)
    assert "wrote init.safetensors (" in text
    assert "head.weight, head.bias" not in text
    written, rest = text.split("\n\nwrote init.safetensors")
    plan = "\n".join(line for line in written.splitlines() if not line.startswith("carries "))
    assert plan != written  # what a plan cannot tell
    assert (
        succeed("plan", "--recipe", "hmt", *wide)
        == succeed("transfer", "--recipe", "hmt", *wide, "--dry-run")
        == plan + "\n"
    )
    shown = succeed("show", "init.safetensors")
    assert shown.startswith(f"written by netgraft {netgraft.__version__}\nsource: w.safetensors, sha256 of the file ")
    assert shown.endswith(f"\n\n{written}\n")
    model = execute(rest, model=build(width=6))
    assert model(torch.zeros(1, 3, 16, 16)).isfinite().all()


def build(**kwargs):
    names = {}
    exec(NET, names)
    return names["Net"](**kwargs)


def execute(text, **names):
    """Run the lines that tell how to load the file, as printed, and return ``model``."""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    assert lines
    exec("\n".join(lines), names)
    return names["model"].eval()


@pytest.mark.usefixtures("folder")
def test_a_timm_target_loads_in_timm():
    write_weights("r18.safetensors", timm.create_model("resnet18").state_dict())
    text = succeed(
        *("transfer", "--recipe", "hmt", "resnet18=r18.safetensors", "resnet10t", "--target-arg", "num_classes=7"),
        *("--seed", "3", "-o", "a folder.safetensors"),
    )
    assert "netgraft show 'a folder.safetensors'" in text
    torch_lines, timm_lines = text.split("Load it in timm:\n")
    by_hand = execute(
        torch_lines.partition("Load it in PyTorch:")[2], model=timm.create_model("resnet10t", num_classes=7)
    )
    by_timm = execute(timm_lines, timm=timm)
    x = torch.ones(1, 3, 64, 64)
    assert torch.equal(by_hand(x), by_timm(x))
    assert by_timm(x).shape == (1, 7)


@pytest.mark.usefixtures("folder")
def test_every_tensor():
    options = ("./net.py=w.safetensors", "./net.py", "--set", "head=never", "--every-tensor")
    written = succeed("transfer", "--recipe", "hmt", *options, "-o", "init.safetensors")
    planned = succeed("plan", "--recipe", "hmt", "./net.py", *options[1:])
    assert written.startswith(planned)
    assert succeed("show", "init.safetensors", "--every-tensor").endswith(planned)
    assert [line.split()[0] for line in planned.splitlines()] == ["tensor", *sorted(state())]
    assert re.search(r"head\.bias +5 +kept +the head keeps", planned)


def _sha256(name):
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


@pytest.mark.usefixtures("folder")
def test_remarks_about_the_weights_are_shown():
    torch.save({"state_dict_ema": state()}, "ema.pth")
    text = succeed("transfer", "--recipe", "hmt", "./net.py=ema.pth", "./net.py", "-o", "init.safetensors")
    assert "note: ema.pth: the tensors under state_dict_ema are taken, an average of the weights (EMA)." in text


# --------------------------------------------------------------------------------------------------------------- stdout

LOUD = f"""
import logging, os, sys, warnings
print("printed at import")
{NET}
class Loud(Net):
    def __init__(self, width=4):
        super().__init__(width)
        print("printed at construction")
        sys.stdout.write("written")

    def forward(self, x):
        warnings.warn("warned in forward")
        print("printed at forward")
        return super().forward(x)
warnings.warn("warned at import")
"""


@pytest.mark.parametrize(
    "args",
    [
        ("transfer", "--recipe", "hmt", "./net.py=w.safetensors", "./loud.py:Loud", "-o", "init.safetensors"),
        (
            "transfer",
            "--recipe",
            "hmt",
            "./net.py=w.safetensors",
            "./loud.py:Loud",
            "-o",
            "init.safetensors",
            "--dry-run",
        ),
        ("plan", "--recipe", "hmt", "./loud.py:Loud", "./net.py"),
        ("plan", "--recipe", "hmt", "./net.py", "./loud.py:Loud", "--every-tensor"),
        ("inspect-chains", "./loud.py:Loud"),
    ],
)
def test_a_model_that_prints(folder, args):
    write_net(folder, "loud.py", LOUD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run(*args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    json.loads(result.stdout)
    for moment in ("import", "construction", "forward"):
        assert f"printed at {moment}" in result.stderr


def test_a_model_that_warns(folder):
    write_net(folder, "loud.py", LOUD)
    command = f"{shlex.quote(sys.executable)} -m netgraft plan ./loud.py:Loud ./net.py --format json"
    code, out, error = shell(command)
    assert code == 0
    assert json.loads(out)
    assert "UserWarning: warned at import" in error


@pytest.mark.parametrize(
    "args",
    [
        ("models",),
        ("models", "resnet18"),
        ("recipes",),
        ("recipes", "hmt"),
        ("matchers",),
        ("matchers", "longest-chain"),
    ],
)
def test_listings_as_json(args):
    assert json.loads(succeed(*args, "--format", "json"))


@pytest.mark.usefixtures("folder")
def test_json_of_a_transfer():
    args = ("./net.py", "./net.py", "--source-weights", "w.safetensors", "-o", "init.safetensors")
    written = json.loads(succeed("transfer", "--recipe", "hmt", *args, "--format", "json"))
    shown = json.loads(succeed("show", "init.safetensors", "--format", "json"))
    planned = json.loads(succeed("plan", "--recipe", "hmt", "./net.py", "./net.py", "--format", "json"))
    assert written == shown | {"output": "init.safetensors", "sha256": _sha256("init.safetensors")}
    assert shown["plan"] == planned["plan"]
    assert shown["coverage"] == planned["coverage"]
    assert {fate: count for fate, count in shown["coverage"].items() if count} == {"exact": 470}
    assert shown["source"]["sha256"] == _sha256("w.safetensors")


def test_control_characters_reach_no_terminal(folder):
    evil = "\x1b[31mred\x1b]0;title\x07\u202e[bold]"
    write_net(
        folder,
        "evil.py",
        NET.replace("self.head = ", f"self.add_module({evil!r}, nn.Linear(2 * width, 9))\n        self.head = "),
    )
    outputs = [
        succeed("transfer", "--recipe", "hmt", "./net.py=w.safetensors", "./evil.py", "-o", "init.safetensors", *more)
        for more in ([], ["--force", "--every-tensor"])
    ]
    outputs += [succeed("show", "init.safetensors"), succeed("show", "init.safetensors", "--every-tensor")]
    outputs += [
        succeed("inspect-chains", "./evil.py"),
        run("plan", "--recipe", "hmt", evil, evil).stderr,
        run(evil).stderr,
    ]
    for output in outputs:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", output)
    assert "[bold]" in outputs[1]  # no markup is read either
    write_net(folder, "raises.py", f"raise ValueError({evil!r})")
    assert "\x1b" not in run("plan", "--recipe", "hmt", "./raises.py", "./net.py").stderr


# ----------------------------------------------------------------------------------------------------------- exit codes


def test_an_internal_error_is_no_failed_check(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(job, "graft", fail)
    result = run("transfer", "--recipe", "hmt", "./net.py=w.safetensors", "./net.py", "-o", "init.safetensors")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "internal error (RuntimeError)" in result.stderr
    assert "unforeseen" in result.stderr
    assert not (folder / "init.safetensors").exists()


@pytest.mark.usefixtures("folder")
def test_a_failed_check_after_its_report():
    result = run(
        "plan",
        "--recipe",
        "hmt",
        "./net.py",
        "./net.py",
        "--set",
        "head=never",
        "--fail-under",
        "99",
        "--format",
        "json",
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["coverage"]["kept"] == 45
    assert run("plan", "--recipe", "hmt", "./net.py", "./net.py", "--fail-under", "100").exit_code == 0


def shell(line):
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.usefixtures("folder")
def test_readers_that_leave_and_disks_that_are_full():
    netgraft = f"{shlex.quote(sys.executable)} -m netgraft"
    assert shell(f"{netgraft} recipes | true; echo ${{PIPESTATUS[0]}}") == (0, "0\n", "")
    assert shell(f"{netgraft} recipes >&-") == (0, "", "")
    code, _, error = shell(f"{netgraft} recipes > /dev/full")
    assert code == 2
    assert "could not be written" in error
    assert "Traceback" not in error


def test_names_that_the_terminal_cannot_show(folder):
    write_net(folder, "größe.py")
    code = f"PYTHONIOENCODING=ascii {shlex.quote(sys.executable)} -m netgraft inspect-chains ./größe.py"
    status, out, error = shell(code)
    assert (status, error) == (0, "")
    assert r"./gr\xf6\xdfe.py" in out
