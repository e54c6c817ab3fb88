"""State_dicts under prefixes and in mappings: found, said, and refused where a choice would be a guess."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from netgraft.errors import UsageError, WeightsMismatch
from netgraft.models.model import load_model, read_weights

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A small architecture ``./net.py`` in the working directory, and a state_dict for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return dict(load_model("./net.py", role="target").build().state_dict())


def read(content, file="w.pth", prefix="", reference="./net.py"):
    (save_file if file.endswith(".safetensors") else torch.save)(content, file)
    return read_weights(load_model(reference, role="source", weights_file=Path(f"{file}{prefix}")))


def put(prefix, tensors, plus=0):
    return {prefix + key: tensor + plus for key, tensor in tensors.items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def body(tensors):
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}


LONE = torch.tensor(69.8)
KINDS = {  # name -> (what is in the file, words of the remarks)
    "ddp": (lambda sd: put("module.", sd), "taken off the keys: module"),
    "lightning": (lambda sd: {"state_dict": put("model.", sd), "epoch": 1}, "under state_dict/model are taken"),
    "lightning, compiled": (lambda sd: {"state_dict": put("model._orig_mod.", sd)}, "taken off the keys: _orig_mod"),
    "ddp inside": (lambda sd: put("net.module.", sd), "under net are taken"),
    "fsdp": (lambda sd: put("_fsdp_wrapped_module.", sd), "_fsdp_wrapped_module"),
    "deepspeed": (lambda sd: {"module": sd, "optimizer": {"state": {0: {"exp_avg": LONE}}}}, "ignored: optimizer"),
    "nested twice": (lambda sd: {"run": {"model": {"weights": sd}}}, "under run/model/weights are taken"),
    "lone tensor beside": (lambda sd: {"state_dict": sd, "best_acc1": LONE}, "ignored: best_acc1"),
    "lone tensor within": (lambda sd: {"epoch": torch.tensor([3]), **sd}, "ignored: epoch"),
    "optimizer beside": (lambda sd: sd | {"optimizer": {"state": {0: {"exp_avg": sd["fc.weight"]}}}}, "optimizer"),
    "loss with weights": (
        lambda sd: {"state_dict": put("model.", sd) | {"criterion.weight": torch.ones(3)}},
        "ignored: state_dict/criterion",
    ),
    "thop": (lambda sd: sd | {"total_ops": LONE, "block.total_ops": LONE}, "ignored: total_ops, block.total_ops"),
    "old table": (lambda sd: sd | {"block.position_ids": torch.arange(4)[None]}, "ignored: block.position_ids"),
    "openmmlab": (
        lambda sd: {"state_dict": {("head." if k.startswith("fc") else "backbone.") + k: t for k, t in sd.items()}},
        "missing there is taken from under state_dict/head",
    ),
    "prefix on the body alone": (
        lambda sd: {k if k.startswith("fc") else f"backbone.{k}": t for k, t in sd.items()},
        "missing there is taken from at the top",
    ),
    "plain and ema": (lambda sd: {"params": sd, "params_ema": put("", sd, 1)}, "params is taken, not the average"),
    "online and ema": (
        lambda sd: put("online_model.", sd) | put("ema_model.", sd, 1) | {"initted": torch.tensor(True)},
        "(--source-weights w.pth::ema_model takes it)",
    ),
    "ema within": (lambda sd: sd | put("ema.module.", sd, 1), "the top is taken, not the average in ema"),
    "ema alone": (lambda sd: {"model_ema": put("module.", sd)}, "an average of the weights (EMA)"),
    "two equal ones": (lambda sd: {"student": sd, "teacher": sd}, "ignored: teacher"),
    "list": (lambda sd: {"nets": [sd]}, "under nets/0 are taken"),
    "masked": (lambda sd: sd | {"block.mask_token": torch.ones(1, 4)}, "ignored: block.mask_token"),
    "old DataParallel": (
        lambda sd: {k.replace("block.", "block.module."): t for k, t in sd.items()},
        "taken off the keys: module",
    ),
    "decoder beside": (lambda sd: put("encoder.", sd) | {"decoder.weight": torch.ones(2, 2)}, "ignored: decoder"),
    "second head": (lambda sd: sd | {"projector.0.weight": torch.ones(2, 4)}, "ignored: projector.0.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_is_said(net, kind):
    content, words = KINDS[kind]
    found = read(content(net))
    assert same(found.tensors, net)
    assert words in " ".join(found.origin.notes)


def test_safetensors_with_a_prefix(net):
    found = read(put("model.", net), "w.safetensors")
    assert same(found.tensors, net)
    assert "under model are taken" in found.origin.notes[0]


def test_nothing_is_said_where_nothing_is_taken_off(net):
    assert read(net).origin.notes == ()


# ------------------------------------------------------------------------------------------------------------- two fit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("state_dict/encoder_q", "state_dict/encoder_k"),
        ("student/backbone", "teacher/backbone"),
        ("online_network", "target_network"),
        ("state_dict", "model"),
    ],
)
def test_two_that_fit_are_not_guessed(net, one, other):
    content = {}
    for name, plus in ((one, 0), (other, 1)):
        top, _, rest = name.partition("/")
        content[top] = content.get(top, {}) | put(f"module.{rest}." if rest else "", net, plus)
    with pytest.raises(WeightsMismatch, match=r"2 parts of the file fit \./net\.py") as caught:
        read(content)
    assert caught.value.hint == f"Type --source-weights w.pth::{one} or --source-weights w.pth::{other}"
    assert same(read(content, prefix=f"::{one}").tensors, net)
    assert same(read(content, prefix=f"::{other}").tensors, put("", net, 1))


def test_a_prefix_as_it_stands_in_the_file(net):
    content = {"state_dict": put("module.encoder_q.", net) | put("module.encoder_k.", net, 1)}
    for typed in ("state_dict.module.encoder_k", "state_dict/module.encoder_k.", "state_dict/encoder_k"):
        found = read(content, prefix=f"::{typed}")
        assert same(found.tensors, put("", net, 1))
        assert found.origin.description == f"w.pth::{typed}"
        assert found.origin.file == "w.pth"
    torch.save(content, "w.pth")
    model = load_model("./net.py=w.pth::state_dict/encoder_k", role="target")
    assert same(read_weights(model).tensors, put("", net, 1))
    with pytest.raises(WeightsMismatch, match=r"Type \./net\.py=w\.pth::state_dict/encoder_q or"):
        read_weights(load_model("./net.py=w.pth", role="target"))
    with pytest.raises(WeightsMismatch, match=r"--source-weights w\.pth::state_dict/encoder_q or"):
        read(content, prefix="::state_dict")
    with pytest.raises(UsageError, match=r"(?s)no tensors under encoder_z.*stand under state_dict"):
        read(content, prefix="::encoder_z")


def test_a_file_with_colons_in_its_name_is_a_file(net):
    assert same(read(net, "a.pth::b.pth").tensors, net)


# ------------------------------------------------------------------------------------------------------ a head, or more


@pytest.mark.parametrize(
    "content",
    [
        body,
        lambda sd: {"state_dict": put("module.", body(sd))},
        lambda sd: put("backbone.", body(sd)) | {"head.mlp.0.weight": torch.ones(2, 4)},
        lambda sd: put("encoder_q.", body(sd) | {"fc.0.weight": torch.ones(4, 4), "fc.2.weight": torch.ones(2, 4)}),
    ],
)
def test_a_head_that_is_missing_is_drawn_and_said(net, content):
    found = read(content(net))
    assert same(body(found.tensors), body(net))
    again = read(content(net))
    assert same(found.tensors, again.tensors)
    assert found.tensors["fc.weight"].abs().sum() > 0
    assert "has no fc.weight, fc.bias: this head is drawn at random" in " ".join(found.origin.notes)


WRAPPING = (
    NET.replace("class Net", "class Inner")
    + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.net = Inner()\n"
)


def test_a_network_that_the_architecture_wraps(net, tmp_path):
    (tmp_path / "wrapped.py").write_text(WRAPPING)
    found = read({"model": net}, reference="./wrapped.py")
    assert same(found.tensors, put("net.", net))
    assert "they go to net of the architecture" in " ".join(found.origin.notes)
    found = read({"model": body(net)}, reference="./wrapped.py")
    assert same(body(net), {k.removeprefix("net."): t for k, t in found.tensors.items() if "fc" not in k})
    assert "has no net.fc.weight, net.fc.bias" in " ".join(found.origin.notes)
    (tmp_path / "deeper.py").write_text(WRAPPING.replace("Inner()", "nn.ModuleList([Inner()])"))
    assert same(read(net, reference="./deeper.py").tensors, put("net.0.", net))
    (tmp_path / "headed.py").write_text(WRAPPING.rstrip() + "\n        self.out = nn.Linear(3, 2)\n")
    found = read(net, reference="./headed.py")
    assert same(net, {k.removeprefix("net."): t for k, t in found.tensors.items() if k.startswith("net.")})
    assert "has no out.weight, out.bias" in " ".join(found.origin.notes)
    (tmp_path / "middle.py").write_text(WRAPPING.replace("self.net", "self.first = nn.Linear(2, 2)\n        self.net"))
    with pytest.raises(WeightsMismatch):
        read(net, reference="./middle.py")


def test_two_bodies_without_a_head_are_not_guessed(net):
    with pytest.raises(WeightsMismatch, match=r"w\.pth::teacher or"):
        read({"teacher": body(net), "student": put("", body(net), 1)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sd: {k: t for k, t in sd.items() if not k.startswith("block.1")}, r"Missing: block\.1\.weight"),
        (lambda sd: {k: t for k, t in sd.items() if k != "fc.bias"}, r"Missing: fc\.bias"),
        (lambda sd: {k: t for k, t in sd.items() if k.startswith("stem.0")}, "Missing"),
        (lambda sd: sd | {"block.2.weight": torch.ones(4, 4)}, r"Unexpected: block\.2\.weight"),
        (lambda sd: {"extra.weight": torch.ones(4, 4)} | sd, r"Unexpected: extra\.weight"),  # before the last layer
        (lambda sd: sd | {"table": torch.ones(4)}, "Unexpected: table"),
        (lambda sd: put("model.", sd | {"fc.weight": torch.ones(9, 4), "fc.bias": torch.ones(9)}), "classes=9"),
        (lambda sd: put("model.", sd | {"block.0.weight": torch.ones(4, 4, 5, 5)}), r"w\.pth, under model, does not"),
        (lambda sd: put("layers.", {k: t for k, t in sd.items() if "block" not in k}), "Missing"),
    ],
)
def test_another_network_is_refused(net, change, says):
    with pytest.raises(WeightsMismatch, match=says):
        read(change(net))


def test_a_layer_of_the_same_name_further_in_is_no_copy(net):
    """``block.0.fc.weight`` ends as ``fc.weight`` does: that makes ``block.0`` no copy of the network."""
    with pytest.raises(WeightsMismatch, match=r"Unexpected: block\.0\.fc\.weight"):
        read(net | {"block.0.fc.weight": torch.ones(3, 4), "block.0.fc.bias": torch.ones(3)})


def test_names_of_wrappers_that_the_architecture_has(net, tmp_path):
    (tmp_path / "wrapped.py").write_text(
        NET.replace("class Net", "class Inner")
        + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.module = Inner()\n"
    )
    found = read(put("module.", net), reference="./wrapped.py")
    assert same(found.tensors, put("module.", net))
    assert found.origin.notes == ()
