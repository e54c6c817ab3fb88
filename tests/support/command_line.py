"""The command line in this process: ``run("plan", SOURCE, TARGET)``, and files to run it on."""

import shutil
from pathlib import Path

import safetensors.torch
import torch
from typer.testing import CliRunner

from netgraft.cli import app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

NET = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self, width=4, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(x.mean((2, 3)))
"""


def run(*args, env=None):
    """The result of ``netgraft ARGS``: exit_code, stdout, stderr."""
    return CliRunner().invoke(app, list(map(str, args)), prog_name="netgraft", env=env)


def state(text=NET, **kwargs):
    """A state_dict of the file's ``Net``, the same one each time."""
    names = {}
    exec(text, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return names["Net"](**kwargs).state_dict()


def write_net(folder, name="net.py", text=NET):
    (Path(folder) / name).write_text(text)
    return f"./{name}"


def write_weights(path, tensors=None):
    safetensors.torch.save_file(state() if tensors is None else tensors, path)
    return str(path)


def link_examples(folder):
    """``examples/`` in ``folder``, as in a checkout."""
    shutil.copytree(EXAMPLES, Path(folder) / "examples", ignore=shutil.ignore_patterns("__pycache__"))


def contents(folder):
    """Every file below ``folder``, with its bytes."""
    files = [p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
