"""The hypergradient against finite differences, an autograd unroll and PyTorch's own SGD, all in float64."""

import copy
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from netgraft.errors import UsageError
from netgraft.finetune.toolbox.bilevel.adjoint import Sgd, hypergradient

LR, STEPS = 0.05, 2


class Net(nn.Module):
    """Two features, normalised over the batch, and a classifier that no matching reaches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Conv2d(3, 4, 3, stride=2)
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, 5)
        self.adapter = nn.Conv2d(4, 6, 1)

    def forward(self, x):
        features = F.softplus(self.body(F.softplus(self.norm(self.stem(x)))))  # smooth, for finite differences
        return self.head(features.mean((2, 3))), self.adapter(features)


class Case:
    """A net on its way, its optimizer, a batch, and features to match with coefficients."""

    def __init__(self, options, *, warm=True, samples=8):
        torch.manual_seed(0)
        self.net = Net().double().train()
        decayed = [p for p in self.net.parameters() if p.dim() > 1]
        others = [p for p in self.net.parameters() if p.dim() == 1]
        groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed}]
        self.optimizer = torch.optim.SGD(groups, **({"lr": LR} | options))
        self.x, self.y = torch.randn(samples, 1, 8, 8).double(), torch.randint(5, (samples,))
        self.theirs = torch.randn(samples, 6, 3, 3).double()
        self.phi = (torch.rand(samples, 6).double() / samples).requires_grad_()
        self.between = lambda adapted: adapted
        if warm:
            self.steps(self.optimizer, self.net, [self.task, lambda p: self.matching(p, self.phi.detach())])
        self.sgd = Sgd.of(self.optimizer)
        self.names = {id(p): name for name, p in self.net.named_parameters()}

    def call(self, parameters):
        if isinstance(parameters, nn.Module):
            return parameters(self.x)
        given = dict(zip((self.names[id(p)] for p in self.sgd.parameters), parameters, strict=True))
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return functional_call(self.net, given | buffers, (self.x,))

    def task(self, parameters):
        return F.cross_entropy(self.call(parameters)[0], self.y)

    def matching(self, parameters, phi):
        return 5 * (phi * (self.between(self.call(parameters)[1]) - self.theirs).square().mean((2, 3))).sum()

    def steps(self, optimizer, net, losses):
        for loss in losses:
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()

    def ours(self):
        leaf = self.phi.detach().requires_grad_()
        inner = [lambda p: self.matching(p, leaf)] * STEPS + [self.task]
        return hypergradient(inner, self.task, self.sgd, [leaf])

    def by_pytorch(self, phi):
        """J after the steps of the optimizer itself, on a copy."""
        net, optimizer = copy.deepcopy((self.net, self.optimizer))
        self.steps(optimizer, net, [lambda p: self.matching(p, phi.detach())] * STEPS + [self.task])
        with torch.no_grad():
            return self.task(net), net

    def unrolled(self):
        """The same through one graph of all steps."""
        theta = [p.detach().requires_grad_() for p in self.sgd.parameters]
        velocity = list(self.sgd.velocities)
        for number in range(STEPS + 1):
            loss = self.matching(theta, self.phi) if number < STEPS else self.task(theta)
            found = torch.autograd.grad(loss, theta, create_graph=True, allow_unused=True)
            for i, (g, rate) in enumerate(zip(found, self.sgd.rates, strict=True)):
                if g is None:
                    continue
                decayed = g + rate.decay * theta[i]
                old = velocity[i]
                velocity[i] = decayed if old is None else rate.momentum * old + (1 - rate.dampening) * decayed
                step = decayed + rate.momentum * velocity[i] if rate.nesterov else velocity[i]
                theta[i] = theta[i] - rate.lr * step
        value = self.task(theta)
        return value, torch.autograd.grad(value, self.phi)[0]


KINDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "dampening": {"momentum": 0.8, "weight_decay": 0.1, "dampening": 0.3},
}


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "first step"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_unroll(kind, warm):
    case = Case(KINDS[kind], warm=warm)
    value, expected = case.unrolled()
    found = case.ours()
    assert abs(float(found.outer - value.detach())) <= 1e-12
    assert float(expected.abs().max()) > 1e-6
    assert relative(found.coefficients[0], expected) <= 1e-10


class Backwards(torch.autograd.Function):
    """The square, without a forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("between", [Backwards.apply, F.dropout], ids=["no forward mode", "dropout"])
def test_first_step_again(between):
    """It runs twice: by another way where there is no forward mode, and with the same random numbers."""
    case, later = Case(KINDS["nesterov"]), []
    case.between = between
    torch.manual_seed(1)
    _, expected = case.unrolled()
    later.append(torch.rand(3))
    torch.manual_seed(1)
    assert relative(case.ours().coefficients[0], expected) <= 1e-10
    later.append(torch.rand(3))
    assert torch.equal(*later)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_finite_differences(kind):
    """Of steps that PyTorch's optimizer took."""
    case = Case(KINDS[kind])
    found = case.ours().coefficients[0].flatten()
    step = 1e-4
    expected = torch.zeros_like(found)
    for i in range(len(found)):
        move = torch.zeros_like(found)
        move[i] = step
        move = move.view_as(case.phi)
        values = [case.by_pytorch(case.phi + k * move)[0] for k in (-2, -1, 1, 2)]
        expected[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    assert relative(found, expected) <= 1e-6


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_pytorch(kind, warm):
    case = Case(KINDS[kind], warm=warm)
    found, (value, net) = case.ours(), case.by_pytorch(case.phi)
    moved = {case.names[id(p)]: new for p, new in zip(case.sgd.parameters, found.parameters, strict=True)}
    for name, parameter in net.named_parameters():
        assert torch.allclose(moved[name], parameter, rtol=0, atol=1e-13), name
    assert abs(float(found.outer - value)) <= 1e-12


def test_nothing_is_written_to():
    case = Case(KINDS["nesterov"])
    before = copy.deepcopy((case.net.state_dict(), case.optimizer.state_dict()))
    case.ours()
    net, optimizer = case.net.state_dict(), case.optimizer.state_dict()
    assert all(torch.equal(net[key], before[0][key]) for key in net)
    assert optimizer["state"].keys() == before[1]["state"].keys()
    for key, state in optimizer["state"].items():
        assert torch.equal(state["momentum_buffer"], before[1]["state"][key]["momentum_buffer"])
    assert all(p.grad is None or not p.grad.requires_grad for p in case.net.parameters())


def test_unreached_parameters_stay():
    """The head in steps of matching, the adapter in those of the task, and what nothing reaches."""
    case = Case(KINDS["decay"])
    found = case.ours()
    places = {case.names[id(p)]: i for i, p in enumerate(case.sgd.parameters)}
    assert torch.equal(found.parameters[places["unused"]], case.net.unused)
    leaf = case.phi.detach().requires_grad_()
    matched = hypergradient([lambda p: case.matching(p, leaf)], case.task, case.sgd, [leaf])
    assert torch.equal(matched.parameters[places["head.weight"]], case.net.head.weight)
    assert not torch.equal(matched.parameters[places["adapter.weight"]], case.net.adapter.weight)


def test_other_optimizers_are_refused():
    with pytest.raises(UsageError, match="SGD"):
        Sgd.of(torch.optim.Adam([nn.Parameter(torch.ones(1))]))


WORKER = """
import os, sys
import torch, torch.distributed as dist
sys.path[:0] = {paths!r}
from test_hypergradient import KINDS, Case, STEPS
from netgraft.finetune.toolbox.bilevel.adjoint import hypergradient

dist.init_process_group("gloo")
rank = dist.get_rank()
case = Case(KINDS["nesterov"])
case.net.eval() if sys.argv[1] == "eval" else None
value, expected = case.unrolled()
half = slice(4 * rank, 4 * rank + 4)
case.x, case.y, case.theirs = case.x[half], case.y[half], case.theirs[half]
leaf = case.phi.detach()[half].clone().requires_grad_()

def reduce(tensors):
    found = [t.detach().clone() for t in tensors]
    for t in found:
        dist.all_reduce(t)
        t /= 2
    return found

if sys.argv[1] == "sync":
    from netgraft.finetune.engine.batch_norm import synchronise
    from netgraft.finetune.engine.processes import Processes
    class Double(Processes):
        def mean(self, tensors):
            return tuple(reduce(tensors))
    synchronise(case.net, Double("cpu"))
    inner = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # the norms of several processes compute in float32
matching = lambda p: 2 * case.matching(p, leaf)  # this process's mean: the average of both is the whole batch's
found = hypergradient([matching] * STEPS + [case.task], case.task, case.sgd, [leaf], reduce)
mine, theirs = found.coefficients[0] / 2, expected[half]
print(float((mine - theirs).norm() / theirs.norm()), *(float(p.sum()) for p in found.parameters))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("norms", ["eval", "sync"])
def test_two_processes_are_one(norms, tmp_path):
    """Half of the batch each: derivatives and steps of the whole, with frozen and with synchronised BatchNorm."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {k: str(v) for k, v in more.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), norms]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    lines = []
    for process in running:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        lines.append([float(word) for word in out.splitlines()[-1].split()])
    for line in lines:
        assert len(line) == 1 + len(list(Net().parameters()))
        assert line[0] <= 1e-10
    assert lines[0][1:] == lines[1][1:], "processes took different steps"
