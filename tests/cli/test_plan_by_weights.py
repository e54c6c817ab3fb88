"""``netgraft plan`` takes what ``transfer`` takes: with weights at hand it makes the very plan of the transfer."""

import json

import pytest
from support.command_line import run, state, write_net, write_weights

from netgraft.files.checkpoint import read_provenance

CHOOSING = ("--recipe", "grow", "--set", "shrink=importance", "--target-arg", "width=4")
SPREAD = "channels are chosen by their weights when these are read; this plan spreads them evenly"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    loud = state(width=8)
    loud["stem.weight"][[1, 4, 6, 7]] *= 100
    write_weights(tmp_path / "w.safetensors", loud)
    return tmp_path


def plan(source, *args):
    result = run("plan", source, "net.py", *CHOOSING, "--source-arg", "width=8", *args, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["plan"]


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("net.py", ["--source-weights", "w.safetensors"]),
        ("net.py=w.safetensors", []),
        ("net.py", ["--random-source"]),
    ],
)
def test_the_plan_is_that_of_the_transfer(source, given):
    args = [*CHOOSING, "--source-arg", "width=8", *given]
    written = run("transfer", source, "net.py", *args, "-o", "out.safetensors")
    assert written.exit_code == 0, written.stderr
    planned = plan(source, *given)
    assert planned == read_provenance("out.safetensors")["plan"]
    assert SPREAD not in planned["warnings"]
    steps = {move["key"]: move["steps"] for move in planned["moves"]}["stem.weight"]
    if "--random-source" not in given:
        assert steps[0]["options"]["index"] == [[1, 1], [4, 1], [6, 2]]
    dry = run("transfer", source, "net.py", *args, "--dry-run", "--format", "json")
    assert json.loads(dry.stdout)["plan"] == planned


def test_without_weights_it_says_what_it_does_instead():
    assert SPREAD in plan("net.py")["warnings"]


def test_weights_that_no_recipe_asks_for_are_not_read():
    result = run("plan", "net.py", "net.py", "--recipe", "hmt", "--source-weights", "w.safetensors")
    assert result.exit_code == 0  # of another width than net.py has: only reading them would show it


def test_weights_that_hold_no_numbers(folder):
    broken = state(width=8)
    broken["stem.weight"][0] = float("nan")
    write_weights(folder / "w.safetensors", broken)
    args = [*CHOOSING, "--source-arg", "width=8", "--source-weights", "w.safetensors"]
    assert run("plan", "net.py", "net.py", *args).exit_code == 2
    assert run("plan", "net.py", "net.py", *args, "--allow-nonfinite").exit_code == 0
