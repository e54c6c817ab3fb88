"""The methods that the laws are tested with: netgraft's own, installed packages', the example, and yours.

    NETGRAFT_METHOD=./own_method.py pytest tests/finetune -k own_method

takes a file of yours too (``own_method.py:Class`` where it has several; several files with commas between them). The
laws are test_every_method.py and ``test_every_method`` of test_processes.py.
"""

import os
from pathlib import Path

import pytest

from netgraft import plugins

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "own_method.py")


def tested_methods():
    """Names, and absolute paths of files, in the order of the tests."""
    files = [file for file in os.environ.get("NETGRAFT_METHOD", "").split(",") if file]
    return [*plugins.listing("finetune.methods"), *dict.fromkeys([EXAMPLE, *map(_absolute, files)])]


def _absolute(file):
    path, py, name = file.partition(".py")
    return str(Path(f"{path}{py}").absolute()) + name


def label(name):
    """The method in a test's name: ``own_method`` for ``/some/where/own_method.py``."""
    return Path(name).name.replace(".py", "")


METHODS = tested_methods()


def each_method(names=METHODS):
    """Run the test, or the fixture's tests, once for each method."""
    return pytest.mark.parametrize("name", names, ids=map(label, names))
