"""Users' own files: what is found in them, and what is said when they fail."""

import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from netgraft.errors import BuildError, ModelFileError, UnknownName, UsageError
from netgraft.models.model import load_model, read_weights, require_weights

NET = """
import torch
from torch import nn
from torch.nn import Linear

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
    def forward(self, x):
        return self.fc(x)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="my_arch.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(textwrap.dedent(text))
        return f"./{name}"

    return write


def load(reference, **kwargs):
    return load_model(reference, role="target", **kwargs)


def test_the_one_public_class(write):
    model = load(write(NET + "class _Hidden(nn.Module): ...\n"))
    assert model.name == "./my_arch.py"
    assert type(model.build()).__name__ == "Net"
    assert model.build() is not model.build()
    assert model.input_size is None
    assert model.example_inputs is None
    assert model.weights is None
    assert str(model.file) == "my_arch.py"
    with torch.device("meta"):
        assert model.build().fc.weight.is_meta


def test_arguments(write):
    model = load(write(NET), args={"width": 7})
    assert model.build().fc.out_features == 7


def test_build_is_preferred(write):
    model = load(write(NET + "class Other(nn.Module): ...\ndef build(width=2): return Net(width)\n"))
    assert model.build().fc.out_features == 2


def test_a_lone_factory(write):
    model = load(write("from torch import nn\ndef tiny(): return nn.Linear(2, 2)\ndef example_inputs(): return 1\n"))
    assert model.build().in_features == 2


def test_all_narrows_the_choice(write):
    model = load(write(NET + "class Block(nn.Module): ...\n__all__ = ['Net']\n"))
    assert type(model.build()).__name__ == "Net"


def test_a_named_class_may_be_imported(write):
    assert load(write(NET) + ":Linear", args={"in_features": 2, "out_features": 3}).build().out_features == 3


def test_input_size_and_example_inputs(write):
    path = write(NET + "input_size = [3]\ndef example_inputs(): return torch.zeros(2, 3)\n")
    model = load(path)
    assert model.input_size == (3,)
    (x,) = model.example_inputs()
    assert model.build()(x).shape == (2, 4)
    assert load(path, input_size=(5,)).input_size == (5,)
    in_class = NET.replace("def __init__", "input_size = (1, 3)\n    def __init__")
    assert load(write(in_class + "input_size = (9,)\n", "b.py")).input_size == (1, 3)
    assert load(write(NET + "input_size = 28\n", "c.py")).input_size is None


def test_example_inputs_that_fail(write):
    with pytest.raises(
        ModelFileError, match=r"(?s)ZeroDivisionError.*my_arch.py:\d+: def example_inputs\(\): return 1 / 0"
    ):
        load(write(NET + "def example_inputs(): return 1 / 0\n")).example_inputs()
    with pytest.raises(ModelFileError, match="returned int"):
        load(write(NET + "def example_inputs(): return 1\n", "b.py")).example_inputs()


def test_executed_once_and_pickled(write):
    path = write(
        NET
        + "from dataclasses import dataclass\n@dataclass\nclass Config:\n    a: 'int' = 1\nruns = []\nruns.append(1)\n"
    )
    module = load(path).build()
    assert type(load(path + ":Net").build()) is type(module)
    assert sys.modules[type(module).__module__].runs == [1]
    assert isinstance(pickle.loads(pickle.dumps(module)), type(module))


def test_a_changed_file_is_run_again(write):
    assert load(write(NET)).build().fc.out_features == 4
    assert load(write(NET.replace("width=4", "width=123"))).build().fc.out_features == 123


def test_imports_from_beside_the_file(write):
    before = list(sys.path)
    for folder, width in (("one", 5), ("two", 6)):
        write(NET.replace("width=4", f"width={width}"), f"{folder}/netgraft_test_blocks.py")
        write("from netgraft_test_blocks import Net\ndef build(): return Net()\n", f"{folder}/my_arch.py")
    assert load("one/my_arch.py").build().fc.out_features == 5
    assert load("two/my_arch.py").build().fc.out_features == 6
    assert load("one/my_arch.py").build().fc.out_features == 5
    assert sys.path == before


def test_late_imports_from_beside_the_file(write):
    write(NET, "three/netgraft_test_late.py")
    write("def build():\n    from netgraft_test_late import Net\n    return Net()\n", "three/my_arch.py")
    assert load("three/my_arch.py").build().fc.out_features == 4


def test_modules(write):
    write("", "netgraft_test_pkg/__init__.py")
    write(NET + "input_size = (3,)\n", "netgraft_test_pkg/mod.py")
    model = load("netgraft_test_pkg.mod:Net", args={"width": 8})
    assert model.build().fc.out_features == 8
    assert model.input_size == (3,)
    assert load("torch.nn:Linear", args={"in_features": 1, "out_features": 2}).build().out_features == 2
    with pytest.raises(ModelFileError, match=r"no Python module 'netgraft_test_pkg\.nope'"):
        load("netgraft_test_pkg.nope:Net")
    with pytest.raises(ModelFileError, match="Did you mean torchvision:resnet18"):
        load("torchvison:resnet18")
    with pytest.raises(ModelFileError, match="no Python module 'netgraft_nowhere'"):
        load("netgraft_nowhere.x:Net")
    with pytest.raises(UnknownName, match=r"Did you mean netgraft_test_pkg\.mod:Net"):
        load("netgraft_test_pkg.mod:Nett")
    write("import netgraft_not_installed\n", "netgraft_test_pkg/bad.py")
    with pytest.raises(ModelFileError, match=r"(?s)No module named 'netgraft_not_installed'.*bad.py:1: import"):
        load("netgraft_test_pkg.bad:Net")
    write("x = (\n", "netgraft_test_pkg/worse.py")
    with pytest.raises(ModelFileError, match=r"(?s)not valid Python.*worse.py:1"):
        load("netgraft_test_pkg.worse:Net")


def test_constructors_that_read_values_can_be_built_on_meta(write):
    body = "self.n = int(torch.linspace(0, 3, 4)[2].item())\n        self.fc = nn.Linear(3, width)"
    model = load(write(NET.replace("self.fc = nn.Linear(3, width)", body)))
    with torch.device("meta"):
        module = model.build()
    assert module.n == 2
    assert module.fc.weight.is_meta


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (NET + "class B(nn.Module): ...\n", ModelFileError, r"(?s)2 models.*\./my_arch.py:Net, \./my_arch.py:B"),
        ("def a(): ...\ndef b(): ...\n", ModelFileError, r"2 functions"),
        ("x = 1\n", ModelFileError, "defines no model"),
        ("from torch.nn import Linear\n", ModelFileError, r"(?s)defines no model.*\./my_arch.py:Linear"),
        ("import os\nx = (1,\n", ModelFileError, r"(?s)not valid Python.*my_arch.py:2: x = \(1,"),
        ("import os\n1 / 0\n", ModelFileError, r"(?s)ZeroDivisionError: division by zero.*my_arch.py:2: 1 / 0"),
        ("import json\njson.loads('')\n", ModelFileError, r"(?s)JSONDecodeError.*my_arch.py:2: json.loads"),
        ("from .blocks import Net\n", ModelFileError, "package.module:Net"),
        ("raise SystemExit(3)\n", ModelFileError, "sys.exit"),
        ("import netgraft_not_installed\n", ModelFileError, "netgraft_not_installed"),
        (NET.replace("width=4", "width, depth"), BuildError, r"(?s)arguments width, depth.*--target-arg width="),
        (NET.replace("width=4", "width, /"), BuildError, "positional-only"),
        ("def build(): return 3\n", BuildError, "returned int"),
    ],
)  # fmt: skip
def test_files_that_fail(write, text, error, says):
    with pytest.raises(error, match=says):
        load(write(text)).build()


def test_constructor_that_raises(write):
    text = NET + "def check(n):\n    raise ValueError('too wide')\ndef build():\n    check(3)\n"
    with pytest.raises(
        BuildError, match=r"(?s)build could not be built: ValueError: too wide.*my_arch.py:\d+: raise Val"
    ):
        load(write(text)).build()


def test_unknown_argument(write):
    with pytest.raises(UnknownName, match=r"(?s)'widht'.*Net\(width=4\) in my_arch.py:\d+.*--source-arg width="):
        load_model(write(NET), role="source", args={"widht": 3})


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("Nett", UnknownName, r"Did you mean \./my_arch.py:Net"),
        ("size", ModelFileError, "is int, not a class"),
        ("Plain", ModelFileError, "not a subclass"),
        ("net", ModelFileError, "built already"),
    ],
)
def test_names_in_the_file(write, name, error, says):
    path = write(NET + "size = 3\nclass Plain: ...\nnet = Net()\n")
    with pytest.raises(error, match=says):
        load(f"{path}:{name}")


def test_missing_file(write):
    write(NET)
    with pytest.raises(ModelFileError, match=r"(?s)no such Python file.*Did you mean my_arch.py"):
        load("./my_arhc.py")
    with pytest.raises(ModelFileError, match="no such Python file"):
        load("./nowhere/my_arch.py:Net")


def test_keyboard_interrupt_passes(write):
    with pytest.raises(KeyboardInterrupt):
        load(write("raise KeyboardInterrupt\n"))


def test_a_source_needs_weights(write):
    path = write(NET)
    model = load_model(path, role="source")
    with pytest.raises(UsageError, match="--source-weights"):
        require_weights(model)
    torch.save(load(path).build().state_dict(), "w.pth")
    assert set(read_weights(load_model(f"{path}=w.pth", role="source")).tensors) == {"fc.weight", "fc.bias"}


def test_timm_is_not_imported(write):
    path = write(NET)
    code = f"""
import sys
from netgraft.models.model import load_model, read_weights
read_weights(load_model({path!r}, role="source", random_weights=True))
load_model("netgraft:resnet20-glyphs", role="target").build()
assert not {{"timm", "torchvision", "huggingface_hub"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
