"""The page about the papers names files, methods and options that exist, and no row is empty."""

import re
from pathlib import Path

import pytest
from support.command_line import run

from netgraft import plugins

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "netgraft/docs/papers.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
NAMES = sorted(set(re.findall(r"`([^`]+)`", "\n".join(row[1] for row in ROWS))))
FOLDERS = ("finetune.methods", "recipes", "matchers", "operators")


def test_no_row_is_empty():
    assert len(ROWS) > 40
    assert all(len(row) == 2 and all(row) for row in ROWS)
    assert PAGE.count("\n## ") == 5


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name])
def test_its_files_exist(name):
    file = name.split()[0]
    assert (ROOT / file).exists() or (ROOT / "netgraft" / file).exists()


@pytest.mark.parametrize("name", [name for name in NAMES if re.fullmatch(r"[a-z0-9_]+(-[a-z0-9]+)*(=\S+)?", name)])
def test_its_methods_and_options_exist(name):
    """A method, recipe, matcher or operator; an option of a method in the same row; or ``scratch`` of a benchmark."""
    known = {each for folder in FOLDERS for each in plugins.listing(folder)} | {"scratch"}
    beside = "\n".join(row[1] for row in ROWS if f"`{name}`" in row[1])
    methods = [each for each in plugins.listing("finetune.methods") if re.search(rf"`{each}[` ]", beside)]
    options = {o.name for each in methods for o in plugins.options(plugins.load("finetune.methods", each))}
    assert name in known or name.partition("=")[0] in options


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("--")])
def test_its_switches_exist(name):
    shown = run("finetune", "--help").stdout + run("methods", "--help").stdout
    assert name.split()[0] in shown
