"""What a command does not need, it does not import: torch takes seconds, timm more."""

import pytest
from support.command_line import write_weights
from support.imports import HEAVY, imported


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), 0),
        (("--help",), 0),
        (("--version",), 0),
        (("transfer", "--help"), 0),
        (("models",), 0),
        (("recipes",), 0),
        (("matchers",), 0),
        (("trasnfer",), 2),
        (("transfer", "--recipe", "hmt", "resnet18"), 2),
        (("transfer", "--recipe", "hmt", "resnet18", "resnet18"), 2),
        (("transfer", "--recipe", "hmt", "a", "b", "-o", "c", "--format", "jsno"), 2),
        (("transfer", "--recipe", "hmt", "a", "b", "-o", "c", "--target-arg", "x"), 2),
        (("recipes", "hmtt"), 2),
    ],
)
def test_light_commands(args, code):
    assert imported(*args, code=code) & set(HEAVY) == set()


@pytest.mark.parametrize("args", [("recipes", "hmt"), ("matchers", "longest-chain")])
def test_plugins_are_loaded_without_torch(args):
    assert imported(*args) & {"torch", "timm", "torchvision", "numpy"} == set()


def test_timm_only_where_a_reference_needs_it(tmp_path):
    write_weights(tmp_path / "w.safetensors")
    for args in (
        ("show", str(tmp_path / "w.safetensors")),
        (
            "transfer",
            "--recipe",
            "hmt",
            "netgraft:resnet20-glyphs",
            "netgraft:no-such-net",
            "-o",
            str(tmp_path / "out.safetensors"),
        ),
    ):
        assert imported(*args, code=2) & {"timm", "torchvision", "huggingface_hub"} == set()
