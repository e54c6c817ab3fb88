"""Two gloo processes, started as torchrun starts them, end where one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from support.runs import train, with_source, write_nets

from netgraft import plugins
from netgraft.finetune.describe import FOLDER

METHODS = list(plugins.listing(FOLDER))

WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from support.runs import train, with_source
folder, runs = sys.argv[1], json.loads(sys.argv[2])
for out, given in runs.items():
    train(with_source(folder, out=folder + "/" + out, **given))
torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None
"""


def launch(folder, runs, world):
    """Train each of ``runs`` in ``world`` gloo processes."""
    here = Path(__file__).parent
    start(folder, WORKER.format(paths=[str(here.parent)]), [str(folder), json.dumps(runs)], world)


def start(folder, code, arguments, world):
    """Run the code in ``world`` processes, as torchrun starts them."""
    (folder / "worker.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {name: str(value) for name, value in more.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", "worker.py", *arguments]
        started.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


def weights(folder, out):
    return safetensors.torch.load_file(folder / out / "last.safetensors")


def distance(one, other):
    """The largest relative difference of a tensor, by its norm."""
    floats = [key for key in one if one[key].is_floating_point()]
    return max(float((one[key] - other[key]).norm() / one[key].norm().clamp(min=1e-12)) for key in floats)


OWN = """
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from netgraft.finetune.protocol import Part, Update
from netgraft.finetune.toolbox.terms import l2_penalty, squared_distance

@dataclass(frozen=True)
class Away:
    \"\"\"Regularisers against the task: the logits to 0, the weights to 0.\"\"\"

    needs: ClassVar[frozenset] = frozenset()
    combine: ClassVar[str] = "dtnh"

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            here = run.target(batch)
            flat = squared_distance(here.logits, torch.zeros_like(here.logits))
            decay = l2_penalty(list(run.target_module.parameters()), 0.01)
            yield Update(("target",), {"task": run.task(here, batch), "flat": flat}, {"decay": decay})
"""

SAME = {"target_arg": {"drop": 0.0}, "epochs": 4, "samples_per_class": 10}  # dropout is each process's own


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """How far two processes are from one after 24 steps, for each run; and the history of one."""
    folder = write_nets(tmp_path_factory.mktemp("two"))
    (folder / "away.py").write_text(OWN)
    gentle = SAME | {"bn": "eval", "lr": 0.005}  # large steps amplify rounding
    runs = {name: gentle | {"method": name} for name in METHODS}
    for name in ("dan", "jan"):  # their gradients are a hundred times the task's where features are small
        runs[name]["lam"] = 0.003
    for bn in ("eval", "sync", "train"):
        runs[f"dtnh {bn}"] = SAME | {"method": f"{folder}/away.py", "bn": bn, "lr": 0.02}
    launch(folder, {out: given | {"batch_size": 8} for out, given in runs.items()}, 2)
    found, start_weights = {}, safetensors.torch.load_file(folder / "init.safetensors")
    for out, given in runs.items():
        result, one = train(with_source(folder, out=str(folder / "one"), batch_size=16, **given), force=True)
        found[out] = distance(one, weights(folder, out)), result.history, distance(one, start_weights)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, far):
    """With BatchNorm's statistics frozen (--bn eval)."""
    assert far[name][0] <= 1e-6
    assert far[name][1][-1]["step"] == 24
    assert far[name][2] > 1e-3  # it did train


@pytest.mark.parametrize("bn", ["eval", "sync"])
def test_dtnh_in_conflict(bn, far):
    """Conflicts in a third of the steps: the coefficient is that of the whole batch, with either kind of statistics."""
    distance, history, _ = far[f"dtnh {bn}"]
    assert sum(record["train_obtuse"] for record in history) / len(history) > 0.33
    assert distance <= 1e-6


def test_statistics_of_each_process_differ(far):
    """--bn train: what makes two processes another training, as in DistributedDataParallel; so the others mean it."""
    assert far["dtnh train"][0] > 1e-4


COLLECTIVES = """
import torch
from netgraft.finetune.engine.processes import Processes
me = Processes("cpu")
x = torch.full((2, 3), float(me.rank + 1), dtype=torch.float64, requires_grad=True)
whole = me.gather(x)
assert whole.tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
(g,) = torch.autograd.grad((whole**3).sum(), x, create_graph=True)
assert torch.equal(g, 2 * 3 * x**2)  # both processes' losses depend on it
(h,) = torch.autograd.grad(g.sum(), x)
assert torch.equal(h, 2 * 6 * x)
assert me.average(x).unique().tolist() == [1.5]
a, b = me.mean([x, torch.tensor(float(me.rank))])
assert a.unique().tolist() == [1.5] and float(b) == 0.5 and not a.requires_grad
assert me.all_objects(me.rank) == [0, 1]
net = torch.nn.BatchNorm1d(2)
with torch.no_grad():
    net.weight.fill_(me.rank)
    net.running_mean.fill_(me.rank)
me.average_statistics(net)
assert net.running_mean.tolist() == [0.5, 0.5]
me.broadcast([net])
assert net.weight.tolist() == [0.0, 0.0]
torch.distributed.destroy_process_group()
"""


def test_collectives(tmp_path):
    """Values and gradients of what goes between processes, in two of them."""
    start(tmp_path, COLLECTIVES, [], 2)
