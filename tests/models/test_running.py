"""What is shared by all that run networks."""

import pytest
import torch
from torch import nn

from netgraft.errors import ForwardError, UsageError
from netgraft.finetune.engine.processes import Processes
from netgraft.models.fit import nonfinite
from netgraft.models.model import load_model
from netgraft.models.running import (
    find_device,
    find_submodule,
    forward,
    hearing_inputs,
    hearing_outputs,
    load_state,
    one_thread,
)

NET = """
from torch import nn

class Net(nn.Module):
    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        assert x.shape[-1] == 8, "eight"
        return self.conv(x)
"""


def test_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert find_device("auto").type == kind


@pytest.mark.parametrize("ask", [find_device, Processes])
def test_a_device_that_does_not_exist(ask):
    """Also to a training, whose own way of asking ended in a stack trace."""
    with pytest.raises(UsageError, match="device 'cupd' cannot be used") as error:
        ask("cupd")
    assert error.value.hint == "For example --device cpu."


def test_one_thread_and_then_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            _ = 1 / (torch.get_num_threads() - 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_modules_by_their_paths():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    assert find_submodule(net, "(model)") is net
    assert find_submodule(net, "1.0") is net[1][0]
    assert find_submodule(net, "0.weight") is find_submodule(net, "7") is None


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x, scale=1):
        return self.inner(self.inner(x) * scale)


def test_hooks_are_told_and_go_away():
    net, x, heard = Twice(), torch.ones(2), []
    with hearing_outputs({"inner": net.inner}, lambda name, module, output: heard.append((name, module, output))):
        net(x, scale=3)
    assert [(name, module is net.inner, output.tolist()) for name, module, output in heard] == [
        ("inner", True, [1, 1]),
        ("inner", True, [3, 3]),
    ]
    with hearing_inputs({"(model)": net}, lambda name, args, kwargs: heard.append((name, args, kwargs))):
        net(x, scale=2)
    assert heard[2:] == [("(model)", (x,), {"scale": 2})]
    net(x)
    assert len(heard) == 3


def test_what_a_hook_returns_takes_the_outputs_place():
    net = Twice()
    with hearing_outputs({"inner": net.inner}, lambda *heard: heard[2] + 1):
        assert net(torch.zeros(1)).item() == 2
    assert net(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("hearing", [hearing_outputs, hearing_inputs])
def test_hooks_go_away_after_an_error(hearing):
    net = Twice()

    def fail(*_):
        raise KeyError

    with pytest.raises(KeyError), hearing({"inner": net.inner}, fail):
        net(torch.ones(1))
    assert net(torch.ones(1)).item() == 1


def test_a_forward_pass_that_fails_is_told_with_its_line(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    model = load_model(str(tmp_path / "net.py"), role="target")
    module = model.build()
    images = torch.zeros(2, 3, 8, 8)
    assert torch.equal(forward(module, images, model), module(images))
    with pytest.raises(ForwardError, match="failed on images of shape 2x3x9x9: AssertionError: eight") as error:
        forward(module, torch.zeros(2, 3, 9, 9), model)
    assert "net.py:12: assert" in error.value.where
    assert "--input-size" in error.value.hint
    with pytest.raises(ForwardError) as error:
        forward(module, torch.zeros(2, 3, 9, 9), model, "Another hint.")
    assert error.value.hint == "Another hint."


def test_an_error_of_netgrafts_own_stays_as_it_is(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    model = load_model(str(tmp_path / "net.py"), role="target")
    module = model.build()

    def refuse(*_):
        raise UsageError("No.")

    with pytest.raises(UsageError), hearing_outputs({"conv": module.conv}, refuse):
        forward(module, torch.zeros(2, 3, 8, 8), model)


def test_values_that_are_not_finite_are_counted_in_every_type():
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    tensors = {
        "fine": torch.ones(2),
        "whole": torch.tensor([1]),
        "half": bad.to(torch.bfloat16),
        "eight": bad.to(torch.float8_e5m2),
        "complex": torch.complex(bad, torch.ones(3)),
        "empty": torch.ones(0),
    }
    assert nonfinite(tensors) == {"half": 2, "eight": 2, "complex": 2}


class Changed(nn.Module):
    """A module of a second version, which converts or refuses what the first has left."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") != 2:
            raise ValueError("an old file")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_tensors_of_a_module_s_own_version_are_not_converted():
    module = nn.Sequential(Changed(), nn.BatchNorm1d(2))
    tensors = {key: tensor + 1 for key, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match="an old file"):
        module.load_state_dict(tensors)
    load_state(module, tensors)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in module.state_dict().items())
    load_state(module, {"0.weight": torch.full((2,), 5.0)})  # what is no tensor may be missing
    assert module[0].weight.tolist() == [5.0, 5.0]
