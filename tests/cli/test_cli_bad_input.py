"""Bad input: clear text on stderr, exit code 2, nothing on stdout, nothing written, an existing output untouched."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from support.command_line import NET, contents, run, state, write_net, write_weights

from netgraft.models.hub import PATIENCE

FORWARD = NET.replace("return self.head", "x = {}\n        return self.head")
BROKEN = {
    "syntax.py": "import torch\nclass Net(torch.nn.Module:\n    ...\n",
    "raises.py": "import torch\n1 / 0\n",
    "exits.py": "import sys\nsys.exit(0)\n",
    "empty.py": "x = 1\n",
    "several.py": NET + "\nclass Other(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 3)\n",
    "needs.py": NET.replace("width=4", "width"),
    "constructor.py": NET.replace("super().__init__()", "super().__init__()\n        raise ValueError('too wide')"),
    "forward.py": FORWARD.replace("{}", "x @ torch.ones(3, 3)"),
    "leaves.py": FORWARD.replace("{}", "exit(0)"),
    "unlike.py": """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (7,)

    def __init__(self):
        super().__init__()
        self.only = nn.GRU(7, 3)

    def forward(self, x):
        return self.only(x)[0]
""",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a net, its weights, and an earlier output."""
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    write_weights("w.safetensors")
    (tmp_path / "init.safetensors").write_bytes(b"an earlier output")
    return tmp_path


def refused(folder, *args, code=2):
    """stderr of a command that must fail and leave every file alone."""
    before = contents(folder)
    result = run(*args)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert contents(folder) == before
    return " ".join(result.stderr.split())


def transfer(folder, source="./net.py=w.safetensors", target="./net.py", *options):
    return refused(folder, "transfer", source, target, "-o", "init.safetensors", "--force", "--recipe", "hmt", *options)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("resnt18", ["Unknown model 'resnt18'", "Did you mean resnet18"]),
        ("resnet18.a1_in2k", ["Unknown pretrained tag 'a1_in2k'", "resnet18.a1_in1k"]),
        ("torchvision:resnt18", ["Unknown torchvision model 'resnt18'", "Did you mean"]),
        ("torchvison:resnet18", ["Did you mean torchvision:resnet18"]),
        ("netgraft:resnet20-glyph", ["Did you mean resnet20-glyphs"]),
        ("./nte.py", ["no such Python file", "Did you mean net.py"]),
        ("./nowhere/net.py", ["no such Python file"]),
        ("./net.py:Nte", ["Unknown class or function 'Nte'", "./net.py:Net"]),
        ("no_such_package.nets:Net", ["no Python module 'no_such_package'"]),
        ("./nowhere", ["no such file or directory"]),
        (".", ["no config.json"]),
        ("w.safetensors", ["ARCH=w.safetensors"]),
        ("", ["empty"]),
    ],
)
def test_models_that_do_not_exist(folder, reference, says):
    for error in (transfer(folder, target=reference), refused(folder, "plan", "./net.py", reference)):
        assert [text for text in says if text not in error] == [], error


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("syntax.py", ["not valid Python", "syntax.py:2: class Net(torch.nn.Module:"]),
        ("raises.py", ["does not run: ZeroDivisionError", "raises.py:2: 1 / 0"]),
        ("exits.py", ["it calls sys.exit()", "exits.py:2"]),
        ("empty.py", ["defines no model", "Define one public torch.nn.Module"]),
        ("several.py", ["defines 2 models", "Type one of ./several.py:Net, ./several.py:Other"]),
        ("needs.py", ["needs the argument width", "{option} width=VALUE"]),
        ("constructor.py", ["could not be built: ValueError: too wide", "constructor.py:10: raise ValueError"]),
        ("forward.py", ["forward.py:17: x = x @ torch.ones(3, 3)"]),
        ("leaves.py", ["leaves.py:17: x = exit(0)"]),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_files_that_fail(folder, name, says, side):
    reference = write_net(folder, name, BROKEN[name])
    sides = [f"{reference}=w.safetensors", "./net.py"] if side == "source" else ["./net.py=w.safetensors", reference]
    error = transfer(folder, *sides)
    assert [text for text in says if text.format(option=f"--{side}-arg") not in error] == [], error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--input-size", "1,16,16"], ["net.py:16: x = self.body", "--input-size"]),
        (["--input-size", "3,16"], ["net.py:16: x = self.body", "an input of 1x3x16", "--input-size"]),
    ],
)
def test_another_input_shape(folder, options, says):
    error = transfer(folder, "./net.py=w.safetensors", "./net.py", *options)
    assert [text for text in says if text not in error] == [], error


def test_an_input_shape_that_nobody_says(folder):
    text = NET.replace("input_size = (3, 16, 16)", "").replace("x = self", "x.view(-1, 3, 17, 23)\n        x = self")
    error = transfer(folder, target=write_net(folder, "silent.py", text))
    assert "--input-size" in error
    assert "silent.py:16: x.view(-1, 3, 17, 23)" in error


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (lambda: state(width=6), ["does not fit", "stem.weight [6, 3, 3, 3] there, [4, 3, 3, 3] in ./net.py"]),
        (lambda: state(classes=9), ["classifier for 9 classes: add --source-arg classes=9"]),
        (lambda: {"a": torch.zeros(1)}, ["1 unexpected", "Missing: stem.weight"]),
        (lambda: state() | {"body.bias": torch.full((8,), torch.nan)}, ["hold", "NaN", "body.bias (8 of 8 values)"]),
        (lambda: state() | {"stem.bias": torch.full((4,), -torch.inf)}, ["infinity", "--allow-nonfinite"]),
    ],
)
def test_weights_that_do_not_fit(folder, tensors, says):
    write_weights("other.safetensors", tensors())
    torch.save(tensors(), "other.pth")
    for file in ("other.safetensors", "other.pth"):
        error = transfer(folder, f"./net.py={file}")
        assert [text for text in says if text not in error] == [], error


class Evil:
    def __reduce__(self):
        return os.mkdir, ("done_by_a_pickle",)


def test_a_pickle_that_would_run_code(folder):
    torch.save({"state_dict": state(), "hook": Evil()}, "evil.pth")
    (folder / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for file in ("evil.pth", "plain.pth"):
        error = transfer(folder, f"./net.py={file}")
        assert "cannot be read" in error if file == "plain.pth" else "would run code" in error and "mkdir" in error
        assert not (folder / "done_by_a_pickle").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: data[:4],
        lambda _: b"",
        lambda data: data + b"more",
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"\xff" + data[9:],
        lambda data: data.replace(b'"shape":[4,3,3,3]', b'"shape":[9,3,3,3]'),
    ],
    ids=["one byte short", "cut", "no header", "empty", "too long", "huge header", "no JSON", "another shape"],
)
def test_safetensors_that_are_not_whole(folder, damage):
    data = damage((folder / "w.safetensors").read_bytes())
    (folder / "sick.safetensors").write_bytes(data)
    for error in (
        transfer(folder, "./net.py=sick.safetensors"),
        refused(folder, "show", "sick.safetensors"),
    ):
        assert "sick.safetensors" in error
        assert "not a whole .safetensors file" in error or "is empty" in error


def test_weights_files_that_are_none(folder):
    (folder / "half.pth").write_bytes((folder / "w.safetensors").read_bytes()[:500])
    assert "cannot be read as PyTorch weights" in transfer(folder, "./net.py=half.pth")
    assert "Did you mean w.safetensors" in transfer(folder, "./net.py=v.safetensors")
    assert "cannot end in '.py'" in transfer(folder, "./net.py=net.py")
    assert "--source-weights" in transfer(folder, "./net.py")


def test_outputs_that_cannot_be_written(folder):
    def error(output, *options, source="./net.py=w.safetensors"):
        return refused(folder, "transfer", source, "./net.py", "-o", output, *options)

    (folder / "folder.safetensors").mkdir()
    assert "mkdir -p nowhere/deep" in error("nowhere/deep/init.safetensors")
    assert "The output exists." in error("init.safetensors")
    assert "--force" in error("init.safetensors")
    assert "The output is a folder." in error("folder.safetensors", "--force")
    assert "not a folder" in error("net.py/init.safetensors")
    assert "-o init.safetensors" in error("init.pth", "--force")
    assert "one of the inputs" in error("w.safetensors", "--force")
    assert "one of the inputs" in error("./folder.safetensors/../w.safetensors", "--force")
    assert "-o init.safetensors, or --dry-run" in refused(folder, "transfer", "./net.py=w.safetensors", "./net.py")


def test_an_output_folder_that_is_not_writable(folder):
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    place = "/proc" if os.access(locked, os.W_OK) else "locked"  # a superuser may write anywhere but there
    refused(folder, "transfer", "./net.py=w.safetensors", "./net.py", "-o", f"{place}/init.safetensors")


def test_nothing_in_common(folder):
    unlike = write_net(folder, "unlike.py", BROKEN["unlike.py"])
    for error in (transfer(folder, target=unlike), refused(folder, "plan", "./net.py", unlike)):
        assert "no layer in common" in error
        assert "netgraft inspect-chains ./net.py" in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--recipe", "hmtt"], "Did you mean hmt?"),
        (["--recipe", "./own_recipe.py"], "no recipe file own_recipe.py"),
        (["--matcher", "longest-chian"], "Did you mean longest-chain"),
        (["--set", "nroms=all"], "Did you mean norms?"),
        (["--set", "norms=al"], "expected one of all, affine, none"),
        (["--set", "norms"], "An argument is written name=value."),
        (["--target-arg", "widht=3"], "Did you mean --target-arg width=...?"),
        (["--target-arg", "width=[1,"], "not a Python literal"),
        (["--target-arg", "width=wide"], "could not be built"),
        (["--source-arg", "widht=3"], "Did you mean --source-arg width=...?"),
        (["--input-size", "3,a"], "positive whole numbers"),
        (["--input-size", "0,3"], "positive whole numbers"),
        (["--format", "jsno"], "'text', 'json'"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "one"], "--seed"),
        (["--fail-under", "101"], "--fail-under"),
        (["--recip", "hmt"], "--recipe"),
        (["--source-weights", "nowhere.pth"], "two weights files"),
        (["--random-source"], "both a weights file and random weights"),
    ],
)
def test_option_values(folder, options, says):
    assert says in transfer(folder, "./net.py=w.safetensors", "./net.py", *options)


def test_commands_and_arguments(folder):
    assert "Did you mean 'transfer'?" in refused(folder, "trasnfer", "a", "b")
    assert "SOURCE" in refused(folder, "transfer")
    assert "not written by netgraft" in refused(folder, "show", "w.safetensors")
    assert "cannot be read" in refused(folder, "show", "nowhere.safetensors")
    assert "Did you mean hmt?" in refused(folder, "recipes", "hmtt")
    assert "Did you mean longest-chain" in refused(folder, "matchers", "longest-chian")
    assert "Did you mean resnet18" in refused(folder, "models", "resnt18")


@pytest.mark.parametrize(
    "ledger", ["[]", "{}", '{"plan": 3}', '{"plan": {"version": 1}}', '{"plan": {"version": 99}}', "no JSON"]
)
def test_a_ledger_that_is_none(folder, ledger):
    import safetensors.torch

    safetensors.torch.save_file(state(), "odd.safetensors", metadata={"netgraft": ledger})
    refused(folder, "show", "odd.safetensors")


def test_a_failed_check_is_1_and_writes_nothing(folder):
    options = ("--fail-under", "99", "--set", "head=never")
    before = contents(folder)
    assert "not the 99 % asked for" in refused(
        folder, "transfer", "./net.py=w.safetensors", "./net.py", "-o", "new.safetensors", *options, code=1
    )
    for command in (["plan"], ["transfer", "--recipe", "hmt", "--dry-run"]):
        result = run(command[0], "./net.py", "./net.py", *command[1:], *options)
        assert result.exit_code == 1
        assert "head.weight" in result.stdout  # the plan is shown all the same
    assert contents(folder) == before


def test_no_hub(folder):
    """In a process of its own: huggingface_hub reads its environment once."""
    command = ["transfer", "--recipe", "hmt", "resnet18.a1_in1k", "./net.py", "-o", "init.safetensors", "--force"]
    before = contents(folder)
    result = subprocess.run(
        [sys.executable, "-m", "netgraft", *command],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=60 + PATIENCE,
    )
    assert (result.returncode, result.stdout) == (2, "")
    for way_out in ("--source-weights", "--random-source", "netgraft:resnet20-glyphs"):
        assert way_out in result.stderr
    assert contents(folder) == before


# --------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("moment", ["import", "build", "forward"])
def test_interrupted_in_the_users_code(folder, moment):
    stop = {
        "import": NET + "\nraise KeyboardInterrupt\n",
        "build": NET.replace("super().__init__()", "super().__init__()\n        raise KeyboardInterrupt"),
        "forward": FORWARD.replace("x = {}", "raise KeyboardInterrupt"),
    }
    error = refused(
        folder,
        *("transfer", "--recipe", "hmt", "./net.py=w.safetensors", write_net(folder, "stop.py", stop[moment])),
        *("-o", "init.safetensors", "--force"),
        code=130,
    )
    assert error == "netgraft: interrupted"


@pytest.mark.parametrize("functions", [["fsync"], ["replace", "link"]])  # a new file is linked, never replaced
def test_interrupted_while_writing(folder, monkeypatch, functions):
    def interrupt(*_):
        raise KeyboardInterrupt

    for function in functions:
        monkeypatch.setattr(os, function, interrupt)
    for output, force in (("init.safetensors", ["--force"]), ("new.safetensors", [])):
        refused(folder, "transfer", "./net.py=w.safetensors", "./net.py", "-o", output, *force, code=130)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder, number, code):
    slow = write_net(
        folder,
        "slow.py",
        NET
        + textwrap.dedent("""
            import time
            print("here", flush=True)
            for _ in range(600):  # a signal just before one long sleep would wait for its end
                time.sleep(0.1)
            """),
    )
    before = contents(folder)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "netgraft",
            *("transfer", "--recipe", "hmt", "./net.py=w.safetensors", slow, "-o", "new.safetensors"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "here\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("netgraft: ")
    assert "Traceback" not in err
    assert contents(folder) == before
