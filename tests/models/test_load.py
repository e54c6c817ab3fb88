"""Library architectures and weights: every reference that is not a user's file, every file that is not sound."""

import json
import os
import pickle
import shutil
import struct
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from netgraft.errors import (
    BuildError,
    CorruptFile,
    HubUnreachable,
    ModelFileError,
    NonFiniteWeights,
    UnknownName,
    UsageError,
    WeightsMismatch,
)
from netgraft.models.model import hash_tensors, load_model, read_weights, require_weights
from netgraft.models.weights_file import read_weights_file

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
"""


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A safetensors file of timm's resnet10t with known weights."""
    file = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    torch.manual_seed(3)
    save_file(timm.create_model("resnet10t").state_dict(), file)
    return file


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A small architecture ``./net.py`` in the working directory, and a state_dict for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return load_model("./net.py", role="target").build().state_dict()


def read(file, reference="./net.py", **kwargs):
    return read_weights(load_model(reference, role="source", weights_file=Path(file), **kwargs))


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# ------------------------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "timm/resnet18.a1_in1k", "torchvision:resnet18"])
def test_targets_are_random_and_build_on_meta(name):
    model = load_model(name, role="target", args={"num_classes": 7})
    assert model.name == name
    assert model.weights is None
    assert model.input_size == (3, 224, 224)
    with torch.device("meta"):
        module = model.build()
    assert module.fc.weight.is_meta
    assert module.fc.out_features == 7
    with pytest.raises(UsageError, match="has no weights"):
        read_weights(model)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("test_vit", {}, (3, 160, 160)),
        ("test_vit", {"img_size": 96, "in_chans": 1}, (1, 96, 96)),
        ("torchvision:inception_v3", {}, (3, 299, 299)),
        ("torchvision:r3d_18", {}, (3, 16, 112, 112)),
        ("torchvision:fcn_resnet50", {}, (3, 520, 520)),
        ("torchvision:fasterrcnn_mobilenet_v3_large_fpn", {}, None),
        ("netgraft:resnet20-glyphs", {"in_chans": 3}, (3, 16, 16)),
    ],
)
def test_input_sizes(name, args, size):
    model = load_model(name, role="target", args=args)
    assert model.input_size == size
    with torch.device("meta"):
        model.build()
    assert load_model(name, role="target", args=args, input_size=(1, 2, 3)).input_size == (1, 2, 3)


@pytest.mark.parametrize("name", ["googlenet", "deeplabv3_mobilenet_v3_large"])
def test_torchvision_builds_what_its_weights_belong_to(name):
    with torch.device("meta"):
        module = load_model(f"torchvision:{name}", role="source").build()
    keys = module.state_dict().keys()
    assert any(key.startswith("aux") for key in keys) == (name != "googlenet")


def test_deprecated_names_do_not_warn():
    with torch.device("meta"):
        load_model("vit_huge_patch14_224_in21k", role="target").build()


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("resnet19", UnknownName, "(?s)Unknown model 'resnet19'.*resnet18"),
        ("resnet20-glyphs", UnknownName, "netgraft:resnet20-glyphs"),
        ("zzzzzzzzzzz", UnknownName, "hf-hub:"),
        ("resnet18.a1_in2k", UnknownName, r"(?s)tag 'a1_in2k'.*resnet18\.a1_in1k.*has the tags.*tv_in1k"),
        ("netgraft:resnet20-glyph", UnknownName, "resnet20-glyphs"),
        ("torchvision:resnet81", UnknownName, "resnet18"),
        ("torchvision:resnet18.IMAGENET", UnknownName, "IMAGENET1K_V1"),
        ("hf-hub:a/b/c", UsageError, "organisation/name"),
    ],
)
def test_unknown_names(reference, error, says):
    with pytest.raises(error, match=says):
        load_model(reference, role="source")


def test_a_name_that_is_a_file(net):  # noqa: ARG001
    with pytest.raises(UnknownName, match=r"\./net\.py"):
        load_model("net", role="target")


@pytest.mark.parametrize("name", ["resnet10t", "torchvision:resnet18", "netgraft:resnet20-glyphs"])
def test_arguments_of_libraries(name):
    with pytest.raises(UnknownName, match="--target-arg num_classes="):
        load_model(name, role="target", args={"num_clases": 3}).build()
    with pytest.raises(BuildError):
        load_model(name, role="target", args={"num_classes": "many"}).build()


@pytest.mark.parametrize(("name", "arg"), [("resnet10t", "pretrained"), ("torchvision:resnet18", "weights")])
def test_what_is_no_argument(name, arg):
    with pytest.raises(UsageError, match=f"{arg} is not an argument"):
        load_model(name, role="target", args={arg: True})


def test_directories(tmp_path, resnet):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        load_model(str(folder), role="target")
    cfg = {"num_classes": 1000, "input_size": [3, 99, 99], "from_the_future": 1}
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": cfg}))
    model = load_model(str(folder), role="source")
    assert model.input_size == (3, 99, 99)
    with pytest.raises(UsageError, match="no weights file in"):
        require_weights(model)
    shutil.copy(resnet, folder / "model.safetensors")
    read = read_weights(load_model(str(folder), role="source"))
    assert same(read.tensors, load_file(resnet))
    older = {"architecture": "resnet10t", "num_classes": 5, "input_size": [1, 8, 8], "model_args": {"in_chans": 1}}
    (folder / "config.json").write_text(json.dumps(older))
    with torch.device("meta"):
        module = load_model(f"local-dir:{folder}", role="target").build()
    assert (module.fc.out_features, module.conv1[0].in_channels) == (5, 1)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ("{", ModelFileError, "cannot be read"),
        ("[]", ModelFileError, "not in timm's format"),
        ('{"architectures": ["BertModel"]}', ModelFileError, "not in timm's format"),
        ('{"architecture": "resnet10"}', UnknownName, "resnet10t"),
    ],
)
def test_directories_of_others(tmp_path, config, error, says):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=says):
        load_model(str(tmp_path), role="target")


# ------------------------------------------------------------------------------------------------------- without a hub


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No connection, wherever the tests run, and nothing in the caches."""
    import socket

    def refuse(*_args, **_kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", _with_cache(str(tmp_path / "hub")))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def _with_cache(folder):
    from huggingface_hub import hf_hub_download

    return lambda *args, **kwargs: hf_hub_download(*args, **{**kwargs, "cache_dir": folder})


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit.r160_in1k", "torchvision:resnet18"])
@pytest.mark.usefixtures("no_network")
def test_hub_unreachable(name):
    start = time.monotonic()
    with pytest.raises(HubUnreachable) as caught:
        read_weights(load_model(name, role="source"))
    assert time.monotonic() - start < 8
    text = str(caught.value)
    for way_out in (
        "no connection",
        "--source-weights FILE",
        f"{name}=FILE",
        "--random-source",
        "netgraft:resnet20-glyphs",
    ):
        assert way_out in text
    from huggingface_hub import constants

    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_network")
def test_hub_configuration_unreachable():
    with pytest.raises(HubUnreachable, match=r"(?s)configuration of hf-hub:netgraft-tests/none.*folder"):
        load_model("hf-hub:netgraft-tests/none", role="target")


def test_no_pretrained_weights():
    name = next(n for n in timm.list_models() if n not in {p.partition(".")[0] for p in timm.list_pretrained()})
    model = load_model(name, role="source")
    with pytest.raises(UsageError, match=r"(?s)no pretrained weights.*--source-weights"):
        require_weights(model)


# ------------------------------------------------------------------------------------------------------------- weights


def test_a_safetensors_file(resnet):
    read_ = read(resnet, "resnet10t")
    expected = timm.create_model("resnet10t").state_dict()
    assert list(read_.tensors) == list(expected)
    assert same(read_.tensors, {key: load_file(resnet)[key] for key in expected})
    assert (read_.origin.hashed, read_.origin.file, read_.origin.notes) == ("file", "resnet10t.safetensors", ())
    assert len(read_.origin.sha256) == 64
    assert same(read_weights(load_model(f"resnet10t={resnet}", role="source")).tensors, read_.tensors)


def test_random_weights_follow_the_seed():
    state = torch.get_rng_state()
    one, two, other = (
        read_weights(load_model("resnet10t", role="source", random_weights=True, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert one.origin == two.origin
    assert one.origin.sha256 != other.origin.sha256
    assert one.origin.hashed == "tensors"


def test_hash_tensors():
    one = {"a": torch.zeros(2), "b": torch.ones(3)}
    assert hash_tensors(one) == hash_tensors(dict(reversed(one.items())))
    assert hash_tensors(one) != hash_tensors({"a": torch.zeros(2), "b": torch.ones(1, 3)})
    assert hash_tensors(one) != hash_tensors({"a": torch.zeros(2, dtype=torch.int32), "b": torch.ones(3)})
    assert hash_tensors({"a": torch.tensor(1, dtype=torch.bfloat16)})


def test_embedded_weights_become_float32():
    read_ = read_weights(load_model("netgraft:resnet20-glyphs", role="source"))
    assert read_.tensors["conv1.weight"].dtype == torch.float32
    with pytest.raises(WeightsMismatch, match="--source-arg num_classes=26"):
        read_weights(load_model("netgraft:resnet20-glyphs", role="source", args={"num_classes": 3}))


def test_types_and_layout_are_the_architectures(net):
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in net.items()}
    half["conv.weight"] = half["conv.weight"].to(memory_format=torch.channels_last)
    torch.save(half, "w.pth")
    tensors = read("w.pth").tensors
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {key: t.dtype for key, t in net.items()}
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert torch.equal(tensors["fc.weight"], net["fc.weight"].half().float())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes(net, suffix, wrapper, prefix):
    content = {prefix + key: tensor for key, tensor in net.items()}
    if wrapper:
        import argparse

        content = {wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=1)}
    torch.save(content, f"w{suffix}")
    read_ = read(f"w{suffix}")
    assert same(read_.tensors, net)
    assert ("EMA" in " ".join(read_.origin.notes)) == bool(wrapper and "ema" in wrapper)


def test_plain_weights_win_over_their_average(net):
    torch.save({"state_dict_ema": {k: t + 1 for k, t in net.items()}, "state_dict": net}, "w.pth")
    read_ = read("w.pth")
    assert same(read_.tensors, net)
    assert "state_dict is taken, not the average" in read_.origin.notes[0]


def test_averaged_and_partly_compiled_models(net):
    swa = {f"module.{k}".replace("conv.", "conv._orig_mod."): t for k, t in net.items()} | {
        "n_averaged": torch.tensor(3)
    }
    torch.save(swa, "w.pth")
    assert same(read("w.pth").tensors, net)


def test_missing_batch_counters_and_ties(net, tmp_path):
    torch.save({k: t for k, t in net.items() if "num_batches" not in k}, "w.pth")
    assert same(read("w.pth").tensors, net)
    (tmp_path / "tied.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(2, 2)\n        self.b = nn.Linear(2, 2)\n        self.b.weight = self.a.weight\n"
    )
    model = load_model("./tied.py", role="target").build().state_dict()
    save_file({k: t for k, t in model.items() if k != "b.weight"}, "tied.safetensors")
    assert same(read("tied.safetensors", "./tied.py").tensors, model)


def test_timm_converts_what_it_knows(tmp_path):
    model = timm.create_model("test_vit", num_classes=5)
    file = tmp_path / "vit.pth"
    torch.save({"model": {f"module.{k}": t for k, t in model.state_dict().items()}}, file)
    read_ = read(file, "test_vit", args={"img_size": 96, "num_classes": 5})
    assert read_.tensors["pos_embed"].shape != model.pos_embed.shape
    assert torch.equal(read_.tensors["head.weight"], model.head.weight)
    assert "timm converted" in read_.origin.notes[-1]
    with pytest.raises(WeightsMismatch, match="--source-arg num_classes=5"):
        read(file, "test_vit")
    broken = {k: t for k, t in model.state_dict().items() if not k.startswith("blocks.1.mlp")}
    torch.save(broken, file)
    with pytest.raises(WeightsMismatch, match=r"Missing: blocks\.1\.mlp"):
        read(file, "test_vit", args={"num_classes": 5})


def test_another_head(net):
    torch.save(net, "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        read("w.pth", args={"classes": 9})
    assert "fc.weight [3, 4] there, [9, 4] in ./net.py" in str(caught.value)
    assert "--source-arg classes=3" in str(caught.value)


def test_other_keys_and_shapes(net):
    other = {k: t for k, t in net.items() if k != "conv.bias"} | {"extra": torch.ones(2), "bn.bias": torch.ones(7)}
    torch.save(other, "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        read("w.pth")
    text = str(caught.value)
    for part in ("w.pth does not fit ./net.py", "1 missing, 1 unexpected, 1 of another shape", "conv.bias", "extra"):
        assert part in text
    assert "bn.bias [7] there, [4] in ./net.py" in text
    torch.save(net | {"bn.num_batches_tracked": torch.tensor(1.5)}, "w.pth")
    with pytest.raises(WeightsMismatch):
        read("w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite(net, value):
    net["fc.weight"][0, 0] = value
    save_file(net, "w.safetensors")
    model = load_model("./net.py=w.safetensors", role="source")
    with pytest.raises(NonFiniteWeights, match=r"(?s)1 tensor of w.safetensors holds.*fc\.weight \(1 of 12 values\)"):
        read_weights(model)
    assert same(
        {k: t.nan_to_num() for k, t in read_weights(model, allow_nonfinite=True).tensors.items()},
        {k: t.nan_to_num() for k, t in net.items()},
    )


# ---------------------------------------------------------------------------------------------------------- sick files


class Evil:
    """A pickle of it creates a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickles_are_refused(net, tmp_path, legacy):
    trace = tmp_path / "executed"
    torch.save({"state_dict": net, "evil": Evil(trace)}, "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptFile, match=r"(?s)would run code.*(posix|nt)\.mkdir"):
        read("w.pth")
    assert not trace.exists()
    torch.load("w.pth", weights_only=False)
    assert trace.exists()


def test_plain_pickles_are_refused(net, tmp_path):  # noqa: ARG001
    trace = tmp_path / "executed"
    Path("w.pth").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(CorruptFile):
        read("w.pth")
    assert not trace.exists()


def test_whole_models_are_refused_by_name(net):  # noqa: ARG001
    torch.save(torch.nn.Linear(2, 2), "w.pth")
    with pytest.raises(CorruptFile, match=r"(?s)torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"):
        read("w.pth")


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("w.safetensors", b"", CorruptFile, "empty"),
        ("w.pth", b"", CorruptFile, "empty"),
        ("w.safetensors", b"abc", CorruptFile, "safetensors"),
        ("w.safetensors", struct.pack("<Q", 2**62) + b"{}", CorruptFile, "header"),
        ("w.safetensors", struct.pack("<Q", 200_000_000) + b"{}", CorruptFile, "header"),
        ("w.safetensors", struct.pack("<Q", 5000) + b"{}" * 9, CorruptFile, "safetensors"),
        ("w.safetensors", struct.pack("<Q", 4) + b"{]}[", CorruptFile, "safetensors"),
        ("w.pth", b"garbage" * 100, CorruptFile, "cannot be read"),
        ("w.pth", b"PK\x03\x04" + b"\0" * 100, CorruptFile, "cannot be read"),
        ("w.bin", b"version https://git-lfs.github.com/spec/v1\n", CorruptFile, "git lfs pull"),
        ("w.bin", b"<!DOCTYPE html><html>", CorruptFile, "web page"),
        ("w.npz", b"x", UsageError, r"cannot end in '\.npz'"),
        ("w", b"x", UsageError, "cannot end in"),
    ],
)
def test_sick_files(net, name, content, error, says):  # noqa: ARG001
    Path(name).write_bytes(content)
    with pytest.raises(error, match=says):
        read(name)


@pytest.mark.parametrize("keep", [9, 100, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_files(net, keep, suffix):
    (torch.save if suffix == ".pth" else save_file)(net, f"w{suffix}")
    whole = Path(f"w{suffix}").read_bytes()
    Path(f"w{suffix}").write_bytes(whole[: keep if keep > 1 else int(len(whole) * keep)])
    with pytest.raises(CorruptFile):
        read(f"w{suffix}")


def test_files_that_are_not_there(net, tmp_path):
    torch.save(net, "weights.pth")
    with pytest.raises(UsageError, match=r"(?s)no such weights file.*weights\.pth"):
        read("weight.pth")
    with pytest.raises(UsageError, match=r"(?s)a directory.*weights\.pth"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"), [([1, 2], "a list"), ({"epoch": 1}, "(?s)no tensors.*epoch"), (torch.ones(2), "a Tensor")]
)
def test_files_without_a_state_dict(net, content, says):  # noqa: ARG001
    torch.save(content, "w.pth")
    with pytest.raises(CorruptFile, match=says):
        read("w.pth")


def test_sparse_tensors(net):
    torch.save(net | {"fc.bias": net["fc.bias"].to_sparse()}, "w.pth")
    with pytest.raises(CorruptFile, match=r"fc\.bias"):
        read("w.pth")


def test_remarks_about_what_is_no_tensor(net):
    torch.save(net | {"epoch": 3}, "w.pth")
    tensors, notes = read_weights_file(Path("w.pth"))
    assert same(tensors, dict(net))
    assert "epoch" in notes[0]


def test_contradictions(net, tmp_path):
    torch.save(net, "w.pth")
    torch.save(net, "v.pth")
    with pytest.raises(UsageError, match="two weights files"):
        load_model("./net.py=w.pth", role="source", weights_file=Path("v.pth"))
    assert load_model("./net.py=w.pth", role="source", weights_file=tmp_path / "w.pth").weights
    with pytest.raises(UsageError, match="both a weights file and random"):
        load_model("./net.py=w.pth", role="source", random_weights=True)
