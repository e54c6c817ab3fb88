"""What the user types for models, arguments and input sizes."""

from pathlib import Path

import pytest

from netgraft.errors import ModelFileError, NetgraftError, UnknownName, UsageError
from netgraft.models.references import parse_arg, parse_input_size, parse_reference


@pytest.mark.parametrize(
    ("text", "kind", "name", "attribute"),
    [
        ("resnet18", "timm", "resnet18", ""),
        ("resnet18.a1_in1k", "timm", "resnet18.a1_in1k", ""),
        ("timm/resnet18.a1_in1k", "timm", "resnet18.a1_in1k", ""),
        ("timm:resnet18", "timm", "resnet18", ""),
        ("hf-hub:org/name", "hf-hub", "org/name", ""),
        ("hf_hub:org/name@main", "hf-hub", "org/name@main", ""),
        ("torchvision:resnet18", "torchvision", "resnet18", ""),
        ("netgraft:resnet20-glyphs", "netgraft", "resnet20-glyphs", ""),
        ("./my_arch.py", "file", "./my_arch.py", ""),
        ("./my_arch.py:Net", "file", "./my_arch.py", "Net"),
        ("folder/my_arch.py:Net", "file", "folder/my_arch.py", "Net"),
        ("pkg.mod:factory", "module", "pkg.mod", "factory"),
        ("mod:Net", "module", "mod", "Net"),
    ],
)
def test_forms(text, kind, name, attribute):
    reference = parse_reference(text)
    assert (reference.kind, reference.name, reference.attribute) == (kind, name, attribute)
    assert reference.text == text
    assert reference.weights is None
    with_weights = parse_reference(f"{text}=w.safetensors")
    assert with_weights.weights == Path("w.safetensors")
    assert (with_weights.text, with_weights.kind, with_weights.name) == (text, kind, name)


def test_directories_win_over_names_only_with_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert parse_reference("resnet18").kind == "timm"
    assert parse_reference("./resnet18").kind == "directory"
    (tmp_path / "resnet18" / "config.json").write_text("{}")
    assert parse_reference("resnet18").kind == "directory"


def test_weights_behind_paths_with_equal_signs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "net.py").touch()
    (folder / "w.pth").touch()
    assert parse_reference("lr=0.1/net.py").kind == "file"
    reference = parse_reference("lr=0.1/net.py:Net=lr=0.1/w.pth")
    assert (reference.text, reference.weights) == ("lr=0.1/net.py:Net", Path("lr=0.1/w.pth"))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", UsageError, "empty"),
        ("hf-hub:", UsageError, "missing"),
        ("resnet18=", UsageError, "ARCH|architecture"),
        ("=w.pth", UsageError, "architecture"),
        ("w.safetensors", UsageError, "resnet18=w.safetensors"),
        ("./net.py:", UsageError, "net.py:Net"),
        ("./net.py:a-b", UsageError, "class or function"),
        ("org/name", UsageError, "hf-hub:org/name"),
        ("hf-hubs:org/name", UnknownName, "Did you mean hf-hub:"),
        ("https://example.org/w", UnknownName, "model source"),
        ("./nowhere", ModelFileError, "no such file or directory"),
    ],
)
def test_what_cannot_be_understood(text, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        parse_reference(text)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="not a model"):
        parse_reference(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=3", 3),
        ("k=-1e-3", -1e-3),
        ("k=(1, 2)", (1, 2)),
        ("k=[1,2]", [1, 2]),
        ("k={'a': None}", {"a": None}),
        ("k=True", True),
        ("k=false", False),
        ("k=None", None),
        ("k=avg", "avg"),
        ("k='3'", "3"),
        ("k=", ""),
        ("k=a=b", "a=b"),
        (" k = 3 ", 3),
        ("k=1is", "1is"),
    ],
)
def test_args(text, value):
    assert parse_arg(text) == ("k", value)
    assert type(parse_arg(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["k", "=3", "a-b=3", "class=3", "k=[1,", "k=__import__('os').getcwd()", "k=(" * 500])
def test_args_that_are_not(text):
    with pytest.raises(UsageError):
        parse_arg(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3,224,224", (3, 224, 224)),
        ("3x32x32", (3, 32, 32)),
        ("(1, 8)", (1, 8)),
        ("16", (16,)),
        ("1,2,3,4", (1, 2, 3, 4)),
    ],
)
def test_input_sizes(text, size):
    assert parse_input_size(text) == size


@pytest.mark.parametrize("text", ["", "3,", "3,,2", "a", "3,-1", "0,3", "3.5", "²", "9" * 5000])
def test_input_sizes_that_are_not(text):
    if text == "3,":
        assert parse_input_size(text) == (3,)
        return
    with pytest.raises(NetgraftError):
        parse_input_size(text)
