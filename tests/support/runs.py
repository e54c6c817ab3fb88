"""Small trainings: networks in files, digits, and a folder per run."""

from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training, finetune
from netgraft.finetune.engine.parts import lambda_of
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.settings import TrainingSettings

NET = """
import torch
from torch import nn


class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, width=6, drop=0.2, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.body_norm = nn.BatchNorm2d(2 * width)
        self.last = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = self.body_norm(self.body(x)).relu()
        return self.head(self.drop(self.last(x).relu().mean((2, 3))))
"""


def write_nets(folder):
    """``net.py``, ``init.safetensors`` for it, and ``theirs.safetensors`` for a wider net as the source."""
    folder = Path(folder)
    (folder / "net.py").write_text(NET)
    names = {}
    exec(NET, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for file, width in (("init", 6), ("theirs", 8)):
            net = names["Net"](width)
            net.train()(torch.randn(64, 1, 8, 8))  # running statistics of their own
            safetensors.torch.save_file(net.state_dict(), folder / f"{file}.safetensors")
    return folder


def settings(folder, **more):
    """Ten steps of plain fine-tuning in ``folder/run`` unless ``more`` says otherwise."""
    folder = Path(folder)
    given = {
        "target": f"{folder}/net.py:Net",
        "init": f"{folder}/init.safetensors",
        "data": "netgraft:digits",
        "out": f"{folder}/run",
        "samples_per_class": 8,
        "batch_size": 16,
        "epochs": 2,
        "lr": 0.05,
        "device": "cpu",
        "tensorboard": False,
    }
    return TrainingSettings(**(given | more))


def with_source(folder, **more):
    """The same with everything that any method could need."""
    given = {
        "source": f"{folder}/net.py:Net",
        "source_arg": {"width": 8},
        "source_weights": f"{folder}/theirs.safetensors",
        "source_data": "netgraft:digits-hard",
        "unlabelled": "netgraft:digits",
    }
    return settings(folder, **(given | more))


def train(chosen, **more):
    """The result, and the weights of the last epoch."""
    result = finetune(chosen, **more)
    return result, safetensors.torch.load_file(result.folder / "last.safetensors")


def training(chosen, method=None):
    """A training that has not begun; with another ``method`` than the settings name."""
    prepared = prepare(chosen)
    if method is not None:
        prepared.method = method
    return Training(prepared, Folder(Path(chosen.out)), Quiet())


def steps(running, count=1, epoch=0):
    """Performs the updates of so many batches, and yields each batch's number when they are done."""
    run = running.run
    running.set_modes()

    def batches():
        for batch in running.prepared.loader.epoch(epoch):
            batch = to_device(batch, run.device)
            run.begin(batch)
            yield batch
            run.step += 1

    for number, update in enumerate(running.prepared.method.epoch(run, batches(), running.parts)):
        if number == count:
            return
        running.perform(update, lambda_of(running.settings, epoch))


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def written_net(folder, tensors, **arguments):
    """The network of ``net.py`` with these tensors, or random ones."""
    names = {}
    exec((folder / "net.py").read_text(), names)
    net = names["Net"](**arguments)
    if tensors is not None:
        net.load_state_dict(tensors)
    return net


def other_folder(chosen, name):
    return replace(chosen, out=str(Path(chosen.out).parent / name))


class Killed(BaseException):
    """What SIGKILL leaves: nothing runs after it."""


class Killer(Quiet):
    """Ends a training after a step."""

    def __init__(self, step):
        self.step = step

    def batch(self, epoch, step, images, meters):  # noqa: ARG002
        if step == self.step:
            raise Killed
