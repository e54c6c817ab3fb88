"""A written checkpoint is what its ledger says, and one that was changed is found out."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.command_line import NET, link_examples, run, state, write_net, write_weights

from netgraft.evidence.checks import Whereabouts, verify
from netgraft.files.checkpoint import read_header, read_provenance, write_checkpoint
from netgraft.models.side import Side
from netgraft.planning import TransferRequest
from netgraft.report import ledger
from netgraft.transfer import transfer

OUT = "out.safetensors"
CHECKS = [
    "header",
    "values",
    "target architecture",
    "loading",
    "source architecture",
    "source weights",
    "tensors",
    "receipt",
]
MODELS = ("--source", "./net.py", "--target", "./net.py", "--source-weights", "w.safetensors")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    write_weights("w.safetensors")
    return tmp_path


def write(*more, recipe="hmt", source="./net.py=w.safetensors", target="./net.py", width=6):
    """A checkpoint that keeps some tensors, stacks some and copies some."""
    args = ("--recipe", recipe, "--target-arg", f"width={width}", "--target-arg", "classes=7", "--seed", "3")
    result = run("transfer", "--recipe", "hmt", source, target, *args, "-o", OUT, "-f", *more)
    assert result.exit_code == 0, result.stderr


def examined(*args, code, models=MODELS):
    """Outcomes by check, the tensors at fault by check, and what is said on stderr."""
    result = run("verify", OUT, *models, *args, "--format", "json")
    assert result.exit_code == code, result.stderr + result.stdout
    document = json.loads(result.stdout)
    assert (document["file"], document["passed"]) == (OUT, code == 0)
    found = {check["check"]: check for check in document["checks"]}
    failed = [name for name in found if found[name]["outcome"] == "failed"]
    if code:
        assert f"out.safetensors is not what its ledger says: {', '.join(failed)}." in result.stderr
    return found


def failures(found):
    return {name: check["tensors"] for name, check in found.items() if check["outcome"] == "failed"}


def skipped(found):
    return {name: check["detail"] for name, check in found.items() if check["outcome"] == "skipped"}


def rewrite(change):
    """The same tensors with other metadata."""
    provenance = read_provenance(OUT)
    change(provenance)
    write_checkpoint(OUT, safetensors.torch.load_file(OUT), provenance, force=True)


def replace_bytes(old, new, count=1):
    content = Path(OUT).read_bytes()
    assert content.count(old) >= 1
    assert len(old) == len(new)
    Path(OUT).write_bytes(content.replace(old, new, count))


# -------------------------------------------------------------------------------------------------------------- passing


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("recipe", ["hmt", "grow"])
def test_what_was_written_passes(recipe):
    write(recipe=recipe)
    found = examined(code=0)
    assert list(found) == CHECKS
    assert {check["outcome"] for check in found.values()} == {"passed"}
    assert found["tensors"]["detail"] == f"{len(state())} made again, bit for bit"
    result = run("verify", OUT, *MODELS)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["check", "result"]
    assert [line.split("  ")[0] for line in lines[1:9]] == CHECKS
    assert lines[-1] == "8 ok, 0 failed, 0 not checked"


@pytest.mark.usefixtures("folder")
def test_the_weights_file_in_the_reference_is_found_again():
    write()
    found = examined(code=0, models=("--source", "./net.py=w.safetensors", "--target", "./net.py"))
    assert {check["outcome"] for check in found.values()} == {"passed"}


@pytest.mark.usefixtures("folder")
def test_a_random_source_and_a_target_with_weights():
    write_weights("own.safetensors", state(width=6, classes=7))
    write("--random-source", source="./net.py", target="./net.py=own.safetensors")
    found = examined(code=0, models=("--source", "./net.py", "--target", "./net.py=own.safetensors"))
    assert {check["outcome"] for check in found.values()} == {"passed"}
    found = examined(code=0, models=("--source", "./net.py", "--target", "./net.py"))
    assert found["tensors"]["outcome"] == "passed"
    assert found["tensors"]["detail"].endswith("what the target kept from own.safetensors was not checked")
    write_weights("own.safetensors", state(width=6, classes=7) | {"head.bias": torch.ones(7)})
    found = examined(code=1, models=("--source", "./net.py", "--target", "./net.py=own.safetensors"))
    assert found["tensors"]["detail"] == "the target's own weights have another sha256"


@pytest.mark.usefixtures("folder")
def test_by_name_nothing_needs_to_be_typed():
    args = ("--target-arg", "num_classes=10", "-o", OUT)
    assert run("transfer", "--recipe", "hmt", "netgraft:resnet20-glyphs", "netgraft:vgg11-glyphs", *args).exit_code == 0
    found = examined(code=0, models=())
    assert {check["outcome"] for check in found.values()} == {"passed"}
    assert examined("--offline", code=0, models=()) == found


@pytest.mark.usefixtures("folder")
def test_arguments_and_sizes_are_recorded(tmp_path):
    text = NET.replace("classes=5)", "classes=5, extra=(), name='')").replace(
        "super().__init__()", "super().__init__(); assert extra == (1, 'a') and name == 'true'"
    )
    write_net(tmp_path, "other.py", text.replace("input_size = (3, 16, 16)", ""))
    side = Side("./other.py", "target", args={"extra": (1, "a"), "name": "true", "width": 6}, input_size=(3, 20, 12))
    transfer(
        TransferRequest(
            Side("./net.py", "source", weights=Path("w.safetensors").resolve()), side, Path(OUT), recipe="hmt"
        )
    )
    provenance = read_provenance(OUT)
    assert provenance["request"]["target"] == {
        "args": ["extra=(1, 'a')", "name='true'", "width=6"],
        "input_size": [3, 20, 12],
        "weights": "none",
    }
    assert provenance["receipt"]["inputs"]["target"] == [[2, 3, 20, 12]]
    assert str(tmp_path) not in json.dumps(provenance)
    models = ("--source", "./net.py", "--target", "./other.py", "--source-weights", "w.safetensors")
    assert {check["outcome"] for check in examined(code=0, models=models).values()} == {"passed"}


# ------------------------------------------------------------------------------------------------------------- tampered


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("key", ["body.weight", "head.bias", "norm.num_batches_tracked"])
def test_one_value_changed(key):
    write()
    entry = read_header(OUT)[1][key]
    content = bytearray(Path(OUT).read_bytes())
    content[entry.offset] ^= 1  # the last bit of the first value
    Path(OUT).write_bytes(content)
    found = examined(code=1)
    assert failures(found) == {"tensors": [key]}
    kept = key == "head.bias"  # the target's own
    assert ("drawn with seed 3" in found["tensors"]["detail"]) == kept
    result = run("verify", OUT, *MODELS)
    assert result.exit_code == 1
    assert f"FAILED  1 differ from what the plan gives{', 1 of them' if kept else f': {key}'}" in result.stdout
    assert result.stdout.splitlines()[-1] == "7 ok, 1 failed, 0 not checked"


@pytest.mark.usefixtures("folder")
def test_a_value_that_is_no_number():
    write()
    tensors = safetensors.torch.load_file(OUT)
    tensors["stem.bias"][2] = float("nan")
    write_checkpoint(OUT, tensors, read_provenance(OUT), force=True)
    failed = failures(examined(code=1))
    assert failed["values"] == failed["tensors"] == ["stem.bias"]
    rewrite(lambda provenance: provenance["request"].update(allow_nonfinite=True))
    assert "values" not in failures(examined(code=1))


@pytest.mark.usefixtures("folder")
def test_nan_that_was_allowed():
    write_weights("w.safetensors", state() | {"stem.bias": torch.full((4,), float("nan"))})
    write("--allow-nonfinite")
    found = examined(code=0)
    assert list(skipped(found)) == ["values"]
    assert found["values"]["tensors"] == ["stem.bias"]


@pytest.mark.usefixtures("folder")
def test_a_key_renamed():
    write()
    replace_bytes(b'"body.weight":{', b'"bodY.weight":{')
    failed = failures(examined(code=1))
    assert failed["header"] == ["bodY.weight", "body.weight"]
    assert failed["tensors"] == ["body.weight"]
    assert "loading" in failed


@pytest.mark.usefixtures("folder")
def test_a_tensor_reshaped_or_of_another_type():
    write()
    replace_bytes(b'"shape":[12,6,3,3]', b'"shape":[6,12,3,3]')
    failed = failures(examined(code=1))
    assert failed["header"] == failed["tensors"] == ["body.weight"]
    write()
    tensors = safetensors.torch.load_file(OUT)
    write_checkpoint(OUT, tensors | {"norm.bias": tensors["norm.bias"].double()}, read_provenance(OUT), force=True)
    failed = failures(examined(code=1))
    assert failed == {"loading": ["norm.bias"], "tensors": ["norm.bias"]}


@pytest.mark.usefixtures("folder")
def test_metadata_changed():
    write()
    rewrite(lambda provenance: provenance["request"].update(seed=4))
    found = examined(code=1)
    assert failures(found) == {"tensors": ["head.weight", "head.bias"]}
    assert "2 of them the target's own, drawn with seed 4" in found["tensors"]["detail"]
    write()
    rewrite(lambda provenance: provenance["plan"]["kept"].pop())
    assert failures(examined(code=1))["header"] == ["head.bias"]
    write()
    rewrite(lambda provenance: provenance["plan"]["moves"][0]["steps"].clear())
    found = examined(code=1)
    assert list(failures(found)) == ["tensors"]
    assert found["tensors"]["detail"].startswith("cannot be made again: ")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda receipt: receipt.update(derived=receipt["derived"] + 1), "another number: derived"),
        (lambda receipt: receipt["output"].update(error=0.5), "the error of the output is "),
        (lambda receipt: receipt["layers"][1].update(ratio=receipt["layers"][1]["ratio"] * 1.2), "other activations"),
        (
            lambda receipt: receipt.update(inputs={"source": [[2, 3, 8, 8]], "target": []}),
            "the models take other inputs",
        ),
    ],
)
def test_a_receipt_changed(change, text):
    args = ("./net.py=w.safetensors", "./net.py", "--target-arg", "width=6", "-o", OUT)
    assert run("transfer", "--recipe", "hmt", *args).exit_code == 0
    assert read_provenance(OUT)["receipt"]["output"]["error"] not in (0, 0.5)
    rewrite(
        lambda provenance: provenance["receipt"]["output"].update(error=provenance["receipt"]["output"]["error"] * 1.02)
    )
    assert failures(examined(code=0)) == {}  # another machine may round in another way
    rewrite(lambda provenance: change(provenance["receipt"]))
    found = examined(code=1)
    assert list(failures(found)) == ["receipt"]
    assert text in found["receipt"]["detail"]
    assert found["receipt"]["tensors"] == (["norm"] if text == "other activations" else [])


@pytest.mark.usefixtures("folder")
def test_a_receipt_that_was_not_measured():
    write("--no-receipt")
    why = "nothing was measured: not asked for (--no-receipt)"
    assert skipped(examined(code=0)) == {"receipt": why}
    rewrite(lambda provenance: provenance["receipt"].update(parameters=1))
    assert failures(examined(code=1)) == {"receipt": []}
    rewrite(lambda provenance: provenance.pop("receipt"))
    assert skipped(examined(code=0)) == {"receipt": "there is none"}


# ------------------------------------------------------------------------------------------------ the world has changed


@pytest.mark.usefixtures("folder")
def test_other_source_weights():
    write()
    weights = state()
    weights["stem.weight"][0, 0, 0, 0] += 1
    write_weights("w.safetensors", weights)
    found = examined(code=1)
    failed = failures(found)
    assert failed["tensors"] == ["stem.weight"]
    assert "w.safetensors has the sha256 " in found["source weights"]["detail"]
    torch.save(state(), "same.pth")  # another file with the same tensors
    found = examined(code=1, models=(*MODELS[:-1], "same.pth"))
    assert list(failures(found)) == ["source weights"]
    write_weights("w.safetensors", state(width=5))
    found = examined(code=1)
    assert list(failures(found)) == ["source weights"]
    assert list(skipped(found)) == ["tensors", "receipt"]


def test_a_changed_architecture(folder):
    write(target="./my.py") if write_net(folder, "my.py") else None
    models = ("--source", "./net.py=w.safetensors", "--target", "./my.py")
    write_net(
        folder, "my.py", NET.replace("nn.Conv2d(width, 2 * width, 3, padding=1)", "nn.Conv2d(width, 2 * width, 5)")
    )
    found = examined(code=1, models=models)
    assert failures(found) == {"target architecture": ["body.weight"], "loading": []}
    assert list(skipped(found)) == ["tensors", "receipt"]
    write_net(folder, "my.py", NET.replace("self.norm(self.stem(x)).relu()", "self.norm(self.stem(x)).relu() * 2"))
    found = examined(code=1, models=models)
    assert failures(found) == {"target architecture": []}  # it still loads, and computes something else
    write_net(folder, "my.py", NET.replace("self.stem = ", "raise ValueError; self.stem = "))
    assert list(failures(examined(code=1, models=models))) == ["target architecture"]


def test_a_changed_source(folder):
    write()
    write_net(folder, "src.py", NET.replace("self.norm(self.stem(x))", "self.stem(x)"))
    found = examined(
        code=1, models=("--source", "./src.py", "--target", "./net.py", "--source-weights", "w.safetensors")
    )
    assert list(failures(found)) == ["source architecture"]


@pytest.mark.usefixtures("folder")
def test_code_runs_only_where_it_is_named():
    marker = "import pathlib; pathlib.Path('ran').touch()\n"
    Path("net.py").write_text(marker + NET)
    write()
    Path("net.py").write_text("# changed\n" + marker + NET)
    Path("ran").unlink()
    found = examined(code=0, models=())
    assert not Path("ran").exists()
    why = "./net.py would be executed, and metadata is not trusted: add --target ./net.py if you do"
    assert skipped(found)["target architecture"] == why
    assert list(skipped(found)) == [
        "target architecture",
        "source architecture",
        "source weights",
        "tensors",
        "receipt",
    ]
    rewrite(lambda provenance: provenance["plan"].update(target="os:system"))
    rewrite(lambda provenance: provenance["request"]["target"].update(args=["command='touch ran'"]))
    assert "os:system would be executed" in skipped(examined(code=0, models=()))["target architecture"]
    assert not Path("ran").exists()
    assert examined(code=0, models=MODELS[-2:])["source weights"]["outcome"] == "passed"  # the file's sha256 alone


@pytest.mark.usefixtures("folder")
def test_operators_of_ones_own_do_not_run():
    write()
    Path("evil.py").write_text("import pathlib; pathlib.Path('ran').touch()\n")
    rewrite(lambda provenance: provenance["plan"]["moves"][0]["steps"].append({"operator": "./evil.py", "options": {}}))
    assert skipped(examined(code=0)) == {"tensors": "the operators ./evil.py would be executed"}
    assert not Path("ran").exists()


@pytest.mark.usefixtures("folder")
def test_references_that_are_gone():
    args = ("--target-arg", "num_classes=10", "-o", OUT)
    assert run("transfer", "--recipe", "hmt", "netgraft:resnet20-glyphs", "netgraft:vgg11-glyphs", *args).exit_code == 0
    rewrite(lambda provenance: provenance["plan"].update(target="netgraft:vgg12-glyphs", source="./gone"))
    found = examined(code=0, models=())
    assert skipped(found)["target architecture"] == "Unknown netgraft net 'vgg12-glyphs'."
    assert skipped(found)["source architecture"] == "There is no such file or directory."
    models = ("--source", "netgraft:resnet20-glyphs", "--target", "netgraft:vgg11-glyphs")
    assert failures(examined(code=0, models=models)) == {}


@pytest.mark.usefixtures("folder")
def test_weights_that_would_have_to_be_downloaded():
    write_weights("r.safetensors", timm.create_model("resnet10t").state_dict())
    args = ("resnet10t=r.safetensors", "./net.py", "-o", OUT)
    assert run("transfer", "--recipe", "hmt", *args).exit_code == 0
    Path("r.safetensors").unlink()
    found = examined("--offline", code=0, models=("--target", "./net.py"))
    why = {"source weights": "r.safetensors: add --source-weights FILE"}
    assert skipped(found).items() >= why.items()
    rewrite(lambda provenance: provenance["request"]["source"].update(weights="pretrained"))
    found = examined("--offline", code=0, models=("--target", "./net.py"))
    assert skipped(found)["source weights"] == "r.safetensors: not at hand"


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("folder")
def test_bad_input():
    def refused(*args, text):
        result = run("verify", *args)
        assert (result.exit_code, result.stdout) == (2, ""), result.stdout
        assert text in result.stderr
        assert "internal error" not in result.stderr

    refused("nothing.safetensors", text="cannot be read")
    refused("w.safetensors", text="not written by netgraft")
    Path("broken.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-1])
    refused("broken.safetensors", text="not a whole .safetensors file")
    write()
    refused(OUT, "--target", "./gone.py", text="no such Python file")
    refused(OUT, *MODELS[:-1], "gone.safetensors", text="no such weights file")
    refused(OUT, "--source", "a:b:c", text="Unknown model source")
    for change in (
        lambda provenance: provenance.pop("request"),
        lambda provenance: provenance["request"].update(seed="0"),
        lambda provenance: provenance["request"]["source"].update(input_size="big"),
        lambda provenance: provenance["source"].update(sha256=None),
        lambda provenance: provenance.update(receipt={}),
        lambda provenance: provenance["receipt"].update(precision=3),
        lambda provenance: provenance["receipt"].update(layers="none"),
        lambda provenance: provenance["plan"].pop("moves"),
    ):
        write()
        rewrite(change)
        refused(OUT, *MODELS, text="netgraft plan" if "moves" not in read_provenance(OUT)["plan"] else "metadata")


@pytest.mark.usefixtures("folder")
def test_from_python():
    write()
    provenance = read_provenance(OUT)
    where = Whereabouts("./net.py", "./net.py", Path("w.safetensors"))
    steps = []
    checks = verify(Path(OUT), provenance, ledger.recorded_plan(provenance, Path(OUT)), where, progress=steps.append)
    assert [check.name for check in checks] == CHECKS
    assert [step.split()[0] for step in steps] == ["tracing", "tracing", "reading", "grafting", "measuring"]


def test_examples_in_the_help(folder):
    link_examples(folder)
    command = (
        "transfer",
        "--recipe",
        "hmt",
        "netgraft:resnet20-glyphs",
        "examples/my_arch.py",
        "-o",
        "init.safetensors",
    )
    assert run(*command).exit_code == 0
    _, _, listed = run("verify", "--help").stdout.partition("Examples:\n")
    lines = [line.split()[1:] for line in listed.splitlines() if line.strip()]
    assert len(lines) == 3
    for args in lines:
        assert run(*args).exit_code == 0
