"""The parity receipt against what torch says when one asks it directly."""

import hashlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.command_line import NET, ROOT, run, write_net, write_weights
from support.nets import Tied, traced
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from netgraft import transfer as job
from netgraft.architecture.cost import multiply_adds
from netgraft.errors import CheckFailed
from netgraft.evidence import receipt as receipts
from netgraft.evidence.parity import Party
from netgraft.evidence.receipt import derived_share, make_receipt
from netgraft.files.checkpoint import read_provenance
from netgraft.models.side import Side, literal
from netgraft.plan import Kept, Move, Step
from netgraft.planning import TransferRequest, make_plan
from netgraft.transfer import transfer


def net(text=NET, **kwargs):
    names = {}
    exec(text, names)
    return names["Net"](**kwargs)


def trained(module):
    """The module with statistics and affine of norms as if it had been trained."""
    rng = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict().items():
        if "norm" in key and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    return module.eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """net.py, and w.safetensors with weights for it."""
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    torch.manual_seed(0)
    write_weights("w.safetensors", trained(net()).state_dict())
    return tmp_path


def receive(*, target="./net.py", source="./net.py=w.safetensors", recipe="hmt", options=None, receipt=None, **args):
    """The receipt of a transfer to out.safetensors."""
    sides = Side(source, "source"), Side(target, "target", args=args)
    transfer(
        TransferRequest(
            *sides, Path("out.safetensors"), recipe=recipe, options=options or {}, receipt=receipt, force=True
        )
    )
    return read_provenance("out.safetensors")["receipt"]


def by_hand(inputs, dtype=torch.float64, **kwargs):
    """The outputs of both models with the files' weights, and the standard deviation after every layer."""
    outputs, spreads = [], []
    for module, file in ((net(), "w.safetensors"), (net(**kwargs), "out.safetensors")):
        module.load_state_dict(safetensors.torch.load_file(file))
        module = module.eval().to(dtype)
        with torch.no_grad():
            stem = module.stem(inputs.to(dtype))
            norm = module.norm(stem)
            body = module.body(norm.relu())
            head = module.head(body.relu().mean((2, 3)))
        outputs.append(head)
        spreads.append({"stem": stem.std(), "norm": norm.std(), "body": body.std(), "head": head.std()})
    return outputs, spreads


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- measured


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("recipe", ["hmt", "grow"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_error_and_ratios_are_those_one_computes_by_hand(recipe, precision, monkeypatch):
    if precision == "float32":
        monkeypatch.setattr(receipts, "DOUBLE_BELOW", 0)
    found = receive(recipe=recipe, width=6)
    assert (found["precision"], found["seed"], found["inputs"]) == (
        precision,
        0,
        {"source": [[2, 3, 16, 16]], "target": [[2, 3, 16, 16]]},
    )
    (theirs, ours), spreads = by_hand(inputs(2, 3, 16, 16), getattr(torch, precision), width=6)
    error = ((theirs - ours).norm() / theirs.norm()).item()
    output = found["output"]
    assert output["compared"] == "output"
    if recipe == "hmt":
        assert error > 1e-3
        assert output == {"compared": "output", "error": float(f"{error:.1e}"), "below": False}
    elif precision == "float64":
        assert 0 < output["error"] < 1e-6  # the weights themselves are float32
        assert output["error"] == pytest.approx(error, rel=0.06)
    else:
        assert 0 < error < 1e-5
        assert output == {"compared": "output", "error": 1e-5, "below": True}
    ratios = {layer["target"]: layer["ratio"] for layer in found["layers"]}
    assert [layer["source"] for layer in found["layers"]] == list(ratios)
    assert ratios.keys() == {"stem", "norm", "body", "head"}
    for name, ratio in ratios.items():
        assert ratio == pytest.approx((spreads[1][name] / spreads[0][name]).item(), rel=6e-3)
    ordered = sorted(ratios.values())
    assert (found["ratios"]["min"], found["ratios"]["max"]) == (ordered[0], ordered[-1])
    assert found["ratios"]["median"] == pytest.approx((ordered[1] + ordered[2]) / 2, rel=6e-3)
    assert found["unmeasured"] == 0


@pytest.mark.usefixtures("folder")
def test_the_same_architecture_has_no_error_at_all():
    found = receive()
    assert found["output"] == {"compared": "output", "error": 0.0, "below": False}
    assert found["ratios"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert found["derived"] == found["parameters"] == 461


@pytest.mark.usefixtures("folder")
def test_a_head_of_its_own_is_left_out():
    found = receive(options={"head": "never"})
    assert found["output"] == {"compared": "features", "error": 0.0, "below": False}
    found = receive(classes=7)
    assert found["output"] == {"compared": "features", "error": 0.0, "below": False}
    found = receive(width=6, classes=7)
    why = "the heads differ; the source's reads 2x8, the target's 2x12"
    assert found["output"] == {"compared": "features", "skipped": why}
    assert len(found["layers"]) == 3  # the head's own initialisation is compared with nothing
    assert found["derived"] == found["parameters"] - 7 * 12 - 7


@pytest.mark.usefixtures("folder")
def test_inputs_of_another_shape():
    found = receive(target="netgraft:vgg11-glyphs")
    assert found["output"] == {"compared": "features", "skipped": "the source takes 2x3x16x16, the target 2x1x16x16"}
    assert found["inputs"] == {"source": [[2, 3, 16, 16]], "target": [[2, 1, 16, 16]]}
    assert found["layers"]


def test_a_size_that_both_take(folder):
    write_net(folder, "larger.py", NET.replace("(3, 16, 16)", "(3, 20, 24)"))
    for names in (("net", "larger"), ("larger", "net")):
        found = receive(source=f"./{names[0]}.py=w.safetensors", target=f"./{names[1]}.py")
        assert found["inputs"] == {"source": [[2, 3, 16, 16]], "target": [[2, 3, 16, 16]]}  # the smaller
        assert found["output"]["error"] == 0.0
    flat = NET.replace("x.mean((2, 3))", "nn.functional.adaptive_avg_pool2d(x[:, :, 10:20], 1).flatten(1)[:, :8]")
    rigid = flat.replace("x = self.body", "assert x.shape[2:] == (20, 24); x = self.body")
    write_net(folder, "rigid.py", rigid.replace("(3, 16, 16)", "(3, 20, 24)"))
    found = receive(target="./rigid.py")  # it does not take the source's size, and the source takes its
    assert found["inputs"] == {"source": [[2, 3, 20, 24]], "target": [[2, 3, 20, 24]]}
    write_net(folder, "square.py", NET.replace("x = self.body", "assert x.shape[2:] == (16, 16); x = self.body"))
    found = receive(source="./square.py=w.safetensors", target="./rigid.py")
    assert found["output"]["skipped"] == "the source takes 2x3x16x16, the target 2x3x20x24"
    assert len(found["layers"]) == 4


@pytest.mark.parametrize(
    "line",
    [
        "self.register_buffer('factor', torch.arange(1.0, 5).reshape(4, 1, 1), persistent=False)",
        "self.factor = torch.arange(1.0, 5).reshape(4, 1, 1)",
        "self.factor = (torch.ones(2) * 1.5).sum().item()",
        "self.factor = [[torch.full((), 3.0)]]",
    ],
)
def test_what_is_not_in_the_state_dict_has_its_value(line, folder):
    text = NET.replace("self.stem = ", f"{line}; self.stem = ")
    text = text.replace("self.stem(x)", "self.stem(x) * (self.factor if not isinstance(self.factor, list) else 3.0)")
    write_net(folder, "factor.py", text)
    found = receive(target="./factor.py")
    assert found["output"]["error"] > 0.05
    model = net(text)
    model.load_state_dict(safetensors.torch.load_file("out.safetensors"))
    theirs = net()
    theirs.load_state_dict(safetensors.torch.load_file("w.safetensors"))
    x = inputs(2, 3, 16, 16).double()
    y, z = theirs.double().eval()(x), model.double().eval()(x)
    assert found["output"]["error"] == float(f"{((y - z).norm() / y.norm()).item():.1e}")


@pytest.mark.parametrize(("value", "why"), [(0.0, "the source's output is zero"), (float("inf"), "NaN or infinity")])
@pytest.mark.usefixtures("folder")
def test_numbers_that_json_cannot_hold(value, why):
    state = safetensors.torch.load_file("w.safetensors")
    write_weights("w.safetensors", state | {key: state[key] * 0 + value for key in ("head.weight", "head.bias")})
    sides = Side("./net.py=w.safetensors", "source", allow_nonfinite=True), Side("./net.py", "target")
    transfer(TransferRequest(*sides, Path("out.safetensors"), recipe="hmt"))
    found = read_provenance("out.safetensors")["receipt"]
    assert why in found["output"]["skipped"]
    assert [layer["target"] for layer in found["layers"]] == ["stem", "norm", "body"]
    assert found["unmeasured"] == 1


DEEP = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()

class Net(nn.Module):
    input_size = (3, 8, 8)

    def __init__(self, blocks=1):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))
"""


def test_inserted_blocks_correspond_to_nothing(folder):
    write_net(folder, "deep.py", DEEP)
    write_weights("d.safetensors", trained(net(DEEP)).state_dict())
    found = receive(source="./deep.py:Net=d.safetensors", target="./deep.py:Net", recipe="grow", blocks=3)
    assert found["output"]["error"] < 1e-6
    assert found["exact"] == {"claimed": True, "tolerance": 1e-4, "holds": True}
    assert {layer["target"] for layer in found["layers"]} == {
        "stem",
        "head",
        *(f"blocks.0.{name}" for name in ("conv1", "norm1", "conv2", "norm2")),
    }
    assert all(layer["ratio"] == 1.0 for layer in found["layers"])
    assert found["derived"] < found["parameters"]  # the ends of the inserted blocks were set to zero


SPECIAL = {
    "tokens": """
        class Net(nn.Module):
            input_size = (7,)
            def __init__(self, width=4):
                super().__init__()
                self.table = nn.Embedding(11, width)
                self.head = nn.Linear(width, 3)
            def forward(self, tokens):
                return self.head(self.table(tokens).mean(1))
    """,
    "several inputs": """
        def example_inputs():
            return torch.zeros(3, 6), torch.tensor([True, False, True])
        class Net(nn.Module):
            def __init__(self, width=4):
                super().__init__()
                self.hidden, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            def forward(self, image, mask):
                return {"logits": self.head(self.hidden(image).relu()) * mask[:, None]}
    """,
    "single precision": """
        class Net(nn.Module):
            input_size = (6,)
            def __init__(self, width=4):
                super().__init__()
                self.hidden, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            def forward(self, x):
                return self.head(self.hidden(x.float()).relu())
    """,
    "a batch of one": """
        class Net(nn.Module):
            input_size = (6,)
            def __init__(self, width=4):
                super().__init__()
                self.hidden, self.head = nn.Linear(6, width), nn.Linear(width, 3)
            def forward(self, x):
                return self.head(self.hidden(x.reshape(6)).relu())
    """,
}
SHAPES = {"tokens": [[2, 7]], "several inputs": [[3, 6], [3]], "single precision": [[2, 6]], "a batch of one": [[1, 6]]}


@pytest.mark.parametrize("name", SPECIAL)
def test_models_with_special_inputs(name, folder):
    text = "import torch\nfrom torch import nn\n" + textwrap.dedent(SPECIAL[name])
    write_net(folder, "special.py", text)
    write_weights("s.safetensors", net(text).state_dict())
    found = receive(source="./special.py=s.safetensors", target="./special.py", recipe="grow", width=8)
    assert found["inputs"]["source"] == found["inputs"]["target"] == SHAPES[name]
    assert found["output"]["error"] <= 1e-5
    assert found["precision"] == ("float32" if name == "single precision" else "float64")


# --------------------------------------------------------------------------------------------------------- not measured


def test_a_model_that_cannot_run_is_no_error(folder):
    failing = NET.replace(
        "x = self.body", "if x.device.type != 'meta': open('/no/such/folder/file')\n        x = self.body"
    )
    write_net(folder, "failing.py", failing)
    found = receive(target="./failing.py")
    assert found["skipped"] == (
        "a forward pass failed: FileNotFoundError: [Errno 2] No such file or directory: 'file'"  # no folders
    )
    assert found["derived"] == found["parameters"]
    assert found["exact"] == {"claimed": False, "tolerance": 1e-4, "holds": None}
    write_net(folder, "leaving.py", failing.replace("open('/no/such/folder/file')", "raise SystemExit"))
    assert "sys.exit()" in receive(target="./leaving.py")["skipped"]


@pytest.mark.usefixtures("folder")
def test_when_models_run(monkeypatch):
    assert receive(receipt=False)["skipped"] == "not asked for (--no-receipt)"
    monkeypatch.setattr(receipts, "RUNS_BELOW", 1e6)
    cost = multiply_adds(
        make_plan(TransferRequest(Side("./net.py", "source"), Side("./net.py", "target"), recipe="hmt")).source_graph
    )
    assert 2 * cost < 1e6
    assert "skipped" not in receive()
    monkeypatch.setattr(receipts, "RUNS_BELOW", 2 * cost)
    assert receive()["skipped"].startswith("the models are large: ")
    assert "skipped" not in receive(receipt=True)


def test_a_size_that_was_guessed(folder):
    write_net(folder, "sizeless.py", NET.replace("input_size = (3, 16, 16)", ""))
    found = receive(target="./sizeless.py")
    assert found["skipped"] == "the input size of the target is not known (--input-size C,H,W, or --receipt)"
    assert receive(target="./sizeless.py", receipt=True)["inputs"]["target"] == [[2, 3, 16, 16]]


# ------------------------------------------------------------------------------------------------------- cost and share


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: timm.create_model("resnet18", num_classes=10), (3, 64, 64)),
        (lambda: timm.create_model("mobilenetv3_small_100"), (3, 64, 64)),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.Conv2d(6, 5, 3, stride=2)), (4, 9, 9)),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 5, groups=2), nn.Flatten(), nn.Linear(6 * 12, 3)), (4, 16)),
    ],
)
def test_multiply_adds_are_half_of_what_torch_counts(build, size):
    counter = FlopCounterMode(display=False)
    with counter, torch.device("meta"):
        build().eval()(torch.zeros(2, *size))
    assert multiply_adds(traced(build, size)) == counter.get_total_flops() / 2


def test_the_share_of_parameters():
    graph = traced(lambda: Tied(width=6), (6,))
    weight, bias = (6, 6), (6,)
    plan = make_plan(
        TransferRequest(Side("netgraft:vgg11-glyphs", "source"), Side("netgraft:vgg11-glyphs", "target"), recipe="hmt")
    ).plan
    moves = (
        Move("first.weight", "a", weight, weight, (), "copied"),
        Move("last.weight", "a", weight, weight, (), "tied, counted once"),
        Move("middle.0.weight", "b", weight, (3, 6), (Step("cyclic", {"dim": 0, "size": 6}),), "stacked"),
        Move("first.bias", "", bias, bias, (Step("fill", {"value": 0.0}),), "set"),
    )
    kept = (Kept("middle.0.bias", bias, "kept"), Kept("last.bias", bias, "kept"))
    assert derived_share(replace(plan, moves=moves, kept=kept), graph) == (36 + 36, 36 + 36 + 3 * 6)
    assert derived_share(plan, traced(lambda: nn.BatchNorm2d(4), (4, 5, 5))) == (0, 8)  # no buffers


# ------------------------------------------------------------------------------------------------- what a recipe claims


def perturb(monkeypatch, by):
    """Let a transfer write something else than the plan says."""
    graft = job.graft

    def wrong(*args):
        result = graft(*args)
        return result | {"head.weight": result["head.weight"] * (1 + by)}

    monkeypatch.setattr(job, "graft", wrong)


@pytest.mark.usefixtures("folder")
def test_a_claim_that_does_not_hold(monkeypatch):
    assert receive(recipe="grow", width=8)["exact"] == {"claimed": True, "tolerance": 1e-4, "holds": True}
    assert receive(recipe="grow", options={"exact": True}, width=8)["exact"]["holds"]
    perturb(monkeypatch, 0.01)
    found = receive(recipe="grow", width=8)
    assert found["exact"] == {"claimed": True, "tolerance": 1e-4, "holds": False}
    (warning,) = found["warnings"]
    assert warning.startswith(
        "the recipe grow noted nothing that is not exact, but the output of the target is off by "
    )
    before = Path("out.safetensors").read_bytes()
    with pytest.raises(CheckFailed, match="although exact=true") as caught:
        receive(recipe="grow", options={"exact": True}, width=8, classes=5)
    assert caught.value.exit_code == 1
    assert Path("out.safetensors").read_bytes() == before
    assert not list(Path().glob(".netgraft-*"))
    assert receive(recipe="hmt", width=8)["exact"]["claimed"] is False


@pytest.mark.usefixtures("folder")
def test_a_claim_within_the_tolerance(monkeypatch):
    perturb(monkeypatch, 5e-5)
    found = receive(recipe="grow", options={"exact": True}, width=8)
    assert found["exact"]["holds"]
    assert 1e-6 < found["output"]["error"] < 1e-4


@pytest.mark.usefixtures("folder")
def test_a_claim_that_nobody_could_measure():
    found = receive(recipe="grow", options={"exact": True}, receipt=False, width=8)
    assert found["warnings"] == ["exactness was asked for, and could not be measured"]
    assert receive(recipe="grow", receipt=False, width=8)["warnings"] == []


# ----------------------------------------------------------------------------------------------------------- same bytes


def test_the_bytes_do_not_depend_on_threads(tmp_path):
    script = """if True:
        import sys, hashlib
        from pathlib import Path
        import torch
        from netgraft.evidence import receipt
        from netgraft.models.side import Side
        from netgraft.planning import TransferRequest
        from netgraft.transfer import transfer
        threads = int(sys.argv[1])
        torch.set_num_threads(threads)
        net = "netgraft:resnet20-glyphs"
        for bound in ("0", "1e12"):
            receipt.DOUBLE_BELOW = float(bound)
            out = Path(sys.argv[2]) / f"{threads}-{bound}.safetensors"
            options = {"matcher": "shuffled-chain"}
            transfer(TransferRequest(Side(net, "source"), Side(net, "target"), out, recipe="hmt", options=options))
            assert torch.get_num_threads() == threads
    """
    for threads in ("1", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", script, threads, str(tmp_path)], env=env, check=True)
    for bound, precision in (("0", "float32"), ("1e12", "float64")):
        files = [tmp_path / f"{threads}-{bound}.safetensors" for threads in ("1", "4")]
        assert files[0].read_bytes() == files[1].read_bytes()
        found = read_provenance(files[0])["receipt"]
        assert (found["precision"], found["output"]["error"] > 0.01) == (precision, True)


@pytest.mark.usefixtures("folder")
def test_nothing_else_changes():
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    planned = make_plan(
        TransferRequest(Side("./net.py=w.safetensors", "source"), Side("./net.py", "target"), recipe="hmt")
    )
    state = safetensors.torch.load_file("w.safetensors")
    copies = {key: tensor.clone() for key, tensor in state.items()}
    found = make_receipt(
        planned.plan,
        Party(planned.source, planned.source_graph, state),
        Party(planned.target, planned.target_graph, state),
    )
    assert found["output"]["error"] == 0.0
    assert all(torch.equal(state[key], copies[key]) and state[key].dtype == copies[key].dtype for key in state)
    after = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    first = Path("first.safetensors")
    sides = Side("./net.py=w.safetensors", "source"), Side("./net.py", "target", args={"width": 6})
    digests = set()
    for _ in range(3):
        transfer(TransferRequest(*sides, first, force=True, recipe="hmt"))
        digests.add(hashlib.sha256(first.read_bytes()).hexdigest())
    assert len(digests) == 1


# ----------------------------------------------------------------------------------------------------------- for people


@pytest.mark.usefixtures("folder")
def test_the_receipt_is_printed_and_shown():
    args = (
        "transfer",
        "--recipe",
        "hmt",
        "./net.py=w.safetensors",
        "./net.py",
        "--target-arg",
        "width=6",
        "-o",
        "out.safetensors",
        "-f",
    )
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    found = read_provenance("out.safetensors")["receipt"]
    count = sum(parameter.numel() for parameter in net(width=6).parameters())
    lines = [
        f"parity receipt: 100.0 % of the target's {count} parameters come from the source",
        f"  output: relative error {found['output']['error']:.2g}, random inputs 2x3x16x16, float64",
        "  activations: standard deviation target / source after 4 paired layers: "
        "median {median:.3g}, {min:.3g} to {max:.3g}".format(**found["ratios"]),
    ]
    assert "\n".join(lines) in result.stdout
    assert "\n".join(lines) in run("show", "out.safetensors").stdout
    assert "as exact as the recipe says" in run(*args, "--recipe", "grow").stdout
    claim = "exact: the target computes what the source computes (measured: relative error "
    assert claim in run(*args, "--recipe", "grow").stdout
    assert claim in run("show", "out.safetensors").stdout
    for unmeasured in (["--no-receipt"], ["--no-receipt", "--exact"], ["--dry-run"]):
        planned = run(*args, "--recipe", "grow", *unmeasured).stdout
        assert "\nplanned as exact; not measured (" in planned
        assert "exact: the target computes" not in planned
    skipped = "  not measured: not asked for (--no-receipt)\n"
    assert skipped in run(*args, "--no-receipt").stdout
    assert skipped in run("show", "out.safetensors").stdout


@pytest.mark.usefixtures("folder")
def test_a_claim_that_does_not_hold_is_a_warning_or_a_failed_check(monkeypatch):
    perturb(monkeypatch, 0.01)
    args = ("transfer", "./net.py=w.safetensors", "./net.py", "--recipe", "grow", "-o", "out.safetensors")
    result = run(*args, "--set", "exact=true")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not compute what the source does" in result.stderr
    assert not Path("out.safetensors").exists()
    result = run(*args)
    assert result.exit_code == 0
    assert "\nwarning: the recipe grow noted nothing that is not exact, but" in result.stdout
    assert "\nplanned as exact, but measured otherwise: relative error " in result.stdout
    assert "exact: the target computes" not in result.stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"),
        ((3,), "(3,)"),
        ([1, (2.5, None)], "[1, (2.5, None)]"),
        ({"b", "a", "c"}, "{'a', 'b', 'c'}"),
        ({"key": b"x"}, "{'key': b'x'}"),
        (len, "<builtin_function_or_method>"),
        ([nn.ReLU], "[<type>]"),
    ],
)
def test_arguments_are_recorded_as_literals(value, text):
    assert literal(value) == text
