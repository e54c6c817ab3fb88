"""The whole way: a source and a target by name, a checkpoint on disk."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

import netgraft
from netgraft.errors import CheckFailed, NonFiniteWeights, NothingToTransfer, OutputError
from netgraft.files import checkpoint
from netgraft.files.checkpoint import read_provenance
from netgraft.models.side import Side
from netgraft.plan import Plan
from netgraft.planning import TransferRequest, make_plan
from netgraft.trace import trace
from netgraft.transfer import transfer

ROOT = Path(__file__).parents[1]
MY_ARCH = ROOT / "examples" / "my_arch.py"
NETS = """
    from torch import nn

    class Convolutions(nn.Sequential):
        input_size = (3, 8, 8)
        def __init__(self, width=4, depth=3):
            layers = []
            for i in range(depth):
                layers += [nn.Conv2d(3 if i == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            super().__init__(*layers)

    class Perceptron(nn.Sequential):
        input_size = (6,)
        def __init__(self, width=5):
            super().__init__(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
"""


def randomised(module):
    """The module with every tensor drawn anew, statistics of norms too, so that a copy of the wrong one shows."""
    rng = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.1)
        else:
            tensor.random_(1, 1000, generator=rng)
    return module


def save(module, path):
    safetensors.torch.save_file(module.state_dict(), path)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "init.safetensors"


@pytest.fixture
def file(tmp_path):
    """A file with two small architectures."""
    path = tmp_path / "nets.py"
    path.write_text(textwrap.dedent(NETS))
    return path


@pytest.fixture
def pair(file):
    """A source of convolutions with random weights, and a wider, deeper target."""
    source = Side(f"{file}:Convolutions", "source", random=True)
    return source, Side(f"{file}:Convolutions", "target", args={"width": 6, "depth": 4})


# ----------------------------------------------------------------------------------------- the same architecture


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11_bn", "densenet121", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_tiny"]
)
def test_the_same_architecture_gives_the_source_bit_for_bit(name, tmp_path, out):
    with torch.device("meta"):
        module = timm.create_model(name)
    weights = save(randomised(module.to_empty(device="cpu")), tmp_path / "source.safetensors")
    del module
    planned = transfer(
        TransferRequest(Side(name, "source", weights=weights), Side(name, "target"), out, fail_under=100, recipe="hmt")
    )
    assert not planned.plan.kept
    with safe_open(weights, "pt") as theirs, safe_open(out, "pt") as ours:
        assert set(ours.keys()) == set(theirs.keys())
        for key in theirs.keys():  # noqa: SIM118
            a, b = theirs.get_tensor(key), ours.get_tensor(key)
            assert a.dtype == b.dtype
            assert torch.equal(a, b), key
    weights.unlink()  # half a gigabyte, for the largest
    out.unlink()


# ------------------------------------------------------------------------------------------- what the files are for


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    torch.manual_seed(0)
    return save(timm.create_model("resnet18"), tmp_path_factory.mktemp("source") / "r18.safetensors")


def test_a_file_saved_from_timm_initialises_ones_own_architecture(resnet18, out):
    source = Side("resnet18", "source", weights=resnet18)
    planned = transfer(TransferRequest(source, Side(str(MY_ARCH), "target"), out, recipe="hmt"))
    model = planned.target.build()
    model.load_state_dict(safetensors.torch.load_file(out), strict=True)
    model.eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 32)).isfinite().all()
    assert planned.plan.source_share > 0.5
    theirs = safetensors.torch.load_file(resnet18)["conv1.weight"]  # [64, 3, 7, 7]
    expected = torch.nn.functional.interpolate(theirs, (5, 5), mode="bilinear", align_corners=False)[:24, :1]
    torch.testing.assert_close(model.stem.weight.detach(), expected)


def test_timm_loads_a_file_for_a_timm_target(resnet18, out):
    args = {"num_classes": 7}
    transfer(
        TransferRequest(
            Side("resnet18", "source", weights=resnet18), Side("resnet10t", "target", args=args), out, recipe="hmt"
        )
    )
    model = timm.create_model("resnet10t", checkpoint_path=str(out), **args)
    written = safetensors.torch.load_file(out)
    assert all(torch.equal(tensor, written[key]) for key, tensor in model.state_dict().items())
    assert model.state_dict().keys() == written.keys()


def test_an_embedded_source_needs_nothing_else(out):
    planned = transfer(
        TransferRequest(Side("netgraft:resnet20-glyphs", "source"), Side(str(MY_ARCH), "target"), out, recipe="hmt")
    )
    planned.target.build().load_state_dict(safetensors.torch.load_file(out), strict=True)
    assert read_provenance(out)["source"]["hashed"] == "file"


# ------------------------------------------------------------------------------------------------- what is kept


def kept_and_moved(path, plan):
    tensors = safetensors.torch.load_file(path)
    return {k.key: tensors[k.key] for k in plan.kept}, {m.key: tensors[m.key] for m in plan.moves}


def test_kept_tensors_are_the_targets_own_initialisation_and_the_seed_decides_it(pair, out):
    plan = transfer(TransferRequest(*pair, out, seed=3, recipe="hmt")).plan
    kept, moved = kept_and_moved(out, plan)
    assert kept
    assert moved
    torch.manual_seed(3)
    own = pair[1].load().build().state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in kept.items())
    transfer(TransferRequest(*pair, out, seed=4, force=True, recipe="hmt"))
    other_kept, other_moved = kept_and_moved(out, plan)
    assert not torch.equal(kept["9.weight"], other_kept["9.weight"])
    assert all(torch.equal(tensor, other_moved[key]) for key, tensor in moved.items())


def test_a_target_with_weights_keeps_those(pair, tmp_path, out):
    source, target = pair
    theirs = save(randomised(target.load().build()), tmp_path / "own.safetensors")
    plan = transfer(
        TransferRequest(source, Side(target.reference, "target", args=target.args, weights=theirs), out, recipe="hmt")
    ).plan
    kept, _ = kept_and_moved(out, plan)
    own = safetensors.torch.load_file(theirs)
    assert "10.running_mean" in kept
    assert all(torch.equal(tensor, own[key]) for key, tensor in kept.items())


def test_the_callers_random_state_is_untouched(pair, out):
    before = torch.get_rng_state()
    transfer(TransferRequest(*pair, out, recipe="hmt"))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------ metadata


def test_the_provenance_holds_the_plan(pair, out):
    planned = transfer(TransferRequest(*pair, out, options={"norms": "affine"}, recipe="hmt"))
    document = read_provenance(out)
    plan = Plan.from_json(document["plan"])
    assert plan == planned.plan
    plan.check_law(checkpoint.read_header(out)[1])
    chosen = {"matcher": "longest-chain", "norms": "affine", "head": "same-size"}
    assert plan.options == chosen | {"maps": [], "skip": []}
    assert (plan.source, plan.target) == (pair[0].reference, pair[1].reference)
    assert plan.source_fingerprint == trace(pair[0].load()).fingerprint() != plan.target_fingerprint
    assert document["version"] == netgraft.__version__
    assert "seed 0" in document["kept"]["description"]
    assert "random initialisation" in document["source"]["description"]


def test_the_provenance_names_the_sources_file(resnet18, out):
    transfer(
        TransferRequest(Side("resnet18", "source", weights=resnet18), Side(str(MY_ARCH), "target"), out, recipe="hmt")
    )
    origin = read_provenance(out)["source"]
    assert (origin["sha256"], origin["hashed"], origin["file"]) == (sha256(resnet18), "file", "r18.safetensors")


def test_a_plan_is_made_without_reading_a_weight(file, tmp_path):
    no_weights = Side(f"{file}:Convolutions", "source")
    planned = make_plan(
        TransferRequest(no_weights, Side(f"{file}:Convolutions", "target", args={"width": 6}), recipe="hmt")
    )
    assert planned.plan.moves
    assert names(tmp_path) == ["nets.py"]


# ------------------------------------------------------------------------------------------------- the same bytes


def test_ten_runs_give_the_same_bytes(tmp_path):
    """Five processes with other hash seeds, two runs in each with other numbers of threads."""
    script = """if True:
        import sys
        from pathlib import Path
        import torch
        from netgraft.models.side import Side
        from netgraft.planning import TransferRequest
        from netgraft.transfer import transfer
        for threads in sys.argv[2:]:
            torch.set_num_threads(int(threads))
            out = Path(sys.argv[1]) / f"{threads}.safetensors"
            sides = Side("netgraft:resnet20-glyphs", "source"), Side("examples/my_arch.py", "target")
            transfer(TransferRequest(*sides, out, recipe="hmt"))
    """
    digests = []
    for seed, threads in (("0", "12"), ("1", "24"), ("2", "41"), ("3", "14"), ("random", "21")):
        folder = tmp_path / seed
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads[0], "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", script, str(folder), *threads], cwd=ROOT, env=env, check=True)
        digests += [sha256(path) for path in folder.iterdir()]
    assert len(digests) == 10
    assert len(set(digests)) == 1


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_follows_the_umask(pair, out, umask, mode):
    before = os.umask(umask)
    try:
        transfer(TransferRequest(*pair, out, recipe="hmt"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == mode


# --------------------------------------------------------------------------------------------- refused or broken off


def test_too_little_coverage_writes_nothing(pair, out):
    percent = 100 * make_plan(TransferRequest(*pair, recipe="hmt")).plan.source_share
    assert 0 < percent < 100
    with pytest.raises(CheckFailed, match=rf"Only {percent:.1f} %") as caught:
        transfer(TransferRequest(*pair, out, fail_under=percent + 0.1, recipe="hmt"))
    assert caught.value.exit_code == 1
    assert names(out.parent) == []
    transfer(TransferRequest(*pair, out, fail_under=percent - 0.1, recipe="hmt"))
    assert names(out.parent) == [out.name]


def test_coverage_is_the_share_of_elements(pair):
    plan = make_plan(TransferRequest(*pair, recipe="hmt")).plan
    moved = sum(torch.Size(move.shape).numel() for move in plan.moves)
    total = sum(tensor.numel() for tensor in pair[1].load().build().state_dict().values())
    assert plan.source_share == pytest.approx(moved / total)


@pytest.mark.parametrize(
    ("source", "target", "where"),
    [
        ("Perceptron", "Convolutions", "layer 1 of the chain: linear 0 does not fit conv2d"),
        ("Convolutions", "Perceptron", "layer 1 of the chain: conv2d 0 does not fit linear"),
    ],
)
def test_models_without_a_common_layer(file, out, source, target, where):
    with pytest.raises(NothingToTransfer, match="no layer in common") as caught:
        transfer(
            TransferRequest(
                Side(f"{file}:{source}", "source", random=True), Side(f"{file}:{target}", "target"), out, recipe="hmt"
            )
        )
    assert where in caught.value.where
    assert "inspect-chains" in caught.value.hint
    assert names(out.parent) == []


def test_nothing_but_a_head_that_stays(tmp_path, out):
    one = tmp_path / "one.py"
    one.write_text(
        "import torch\n\ndef build(classes=3):\n    return torch.nn.Linear(6, classes)\n\ninput_size = (6,)\n"
    )
    with pytest.raises(NothingToTransfer) as caught:
        transfer(
            TransferRequest(
                Side(str(one), "source", random=True, input_size=(6,)),
                Side(str(one), "target", args={"classes": 4}, input_size=(6,)),
                out,
                recipe="hmt",
            )
        )
    assert "3 outputs in the source, 4 in the target" in caught.value.where


def test_weights_with_nan_are_refused_unless_allowed(pair, tmp_path, out):
    source, target = pair
    module = source.load().build()
    module[0].weight.data[0, 0] = float("nan")
    broken = save(module, tmp_path / "nan.safetensors")
    with pytest.raises(NonFiniteWeights):
        transfer(TransferRequest(Side(source.reference, "source", weights=broken), target, out, recipe="hmt"))
    assert names(out.parent) == []
    transfer(
        TransferRequest(
            Side(source.reference, "source", weights=broken, allow_nonfinite=True), target, out, recipe="hmt"
        )
    )
    assert safetensors.torch.load_file(out)["0.weight"].isnan().any()


def test_an_existing_output_is_refused_before_anything_is_loaded(pair, out):
    out.write_bytes(b"precious")
    steps = []
    with pytest.raises(OutputError, match="exists"):
        transfer(TransferRequest(*pair, out, recipe="hmt"), progress=steps.append)
    assert out.read_bytes() == b"precious"
    assert not steps
    transfer(TransferRequest(*pair, out, force=True, recipe="hmt"))
    assert out.read_bytes() != b"precious"


def test_the_output_cannot_be_the_input(pair, tmp_path):
    weights = save(pair[0].load().build(), tmp_path / "source.safetensors")
    before = sha256(weights)
    with pytest.raises(OutputError, match="one of the inputs"):
        transfer(
            TransferRequest(
                Side(pair[0].reference, "source", weights=weights), pair[1], weights, force=True, recipe="hmt"
            )
        )
    assert sha256(weights) == before


STEPS = ["tracing", "tracing", "reading", "initialising", "grafting", "measuring", "measuring", "writing"]


def test_progress(pair, out):
    steps = []
    transfer(TransferRequest(*pair, out, recipe="hmt"), progress=steps.append)
    assert [step.split()[0] for step in steps] == STEPS


@pytest.mark.parametrize("step", [*dict.fromkeys(STEPS), "a tensor"])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupt_leaves_nothing_behind(pair, out, step, existing, monkeypatch):
    written = []

    def interrupt(text):
        if text.startswith(step):
            raise KeyboardInterrupt

    def write_some(*arguments):
        written.append(arguments)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    write = checkpoint._write_tensor
    if step == "a tensor":
        monkeypatch.setattr(checkpoint, "_write_tensor", write_some)
    if existing:
        out.write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        transfer(TransferRequest(*pair, out, force=existing, recipe="hmt"), progress=interrupt)
    assert names(out.parent) == ([out.name] if existing else [])
    assert not existing or out.read_bytes() == b"precious"


def test_the_metadata_is_what_timm_and_safetensors_expect(pair, out):
    transfer(TransferRequest(*pair, out, recipe="hmt"))
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["netgraft"]) == read_provenance(out)
