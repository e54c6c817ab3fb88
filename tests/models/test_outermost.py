"""The one model among the classes of a file, by the code alone."""

import pytest

from netgraft.errors import BuildError, ModelFileError
from netgraft.models.model import load_model

HEAD = "from torch import nn\n"


def cls(name, arguments="", body="pass", base="nn.Module"):
    return (
        f"class {name}({base}):\n    def __init__(self{arguments}):\n        super().__init__()\n"
        f"        self.fc = nn.Linear(1, 1)\n        {body}\n"
    )


BLOCK = cls("Block", ", width")
FILES = {
    "a block that needs an argument": (BLOCK + cls("Net", "", "self.b = Block(3)"), "Net"),
    "a block that needs none": (cls("Block") + cls("Net", "", "self.b = Block()"), "Net"),
    "a block that nothing uses": (BLOCK + cls("Net"), "Net"),
    "through a function": (BLOCK + "def make(n): return Block(n)\n" + cls("Net", "", "self.b = make(3)"), "Net"),
    "through a table": (BLOCK + "BLOCKS = {'b': Block}\n" + cls("Net", "", "self.b = BLOCKS['b'](3)"), "Net"),
    "three deep": (BLOCK + cls("Stage", "", "self.b = Block(3)") + cls("Net", "", "self.s = Stage()"), "Net"),
    "a class it is derived from": (cls("Base") + cls("Net", base="Base"), "Net"),
    "the network first": (cls("Net", "", "self.b = Block(3)") + BLOCK, "Net"),
    "under an if": ("if True:\n    class Block(nn.Module): pass\n" + cls("Net", "", "self.b = Block()"), "Net"),
    "made by a function": (
        BLOCK + cls("Net", ", block", "self.b = block(3)") + "def net():\n    model = Net(Block)\n    return model\n",
        "Net",
    ),
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "net.py").write_text(HEAD + text)
        return "./net.py"

    return write


def load(reference, **args):
    return load_model(reference, role="target", args=args)


@pytest.mark.parametrize("kind", FILES)
def test_the_outermost_class_is_taken_and_said(write, kind):
    text, name = FILES[kind]
    model = load(write(text))
    assert type(model.build()).__name__ == name
    assert "is taken, not " in model.notes[0]
    assert model.notes[0].startswith(name.lower() if "function" in kind and "made" in kind else name)


def test_arguments_decide_between_unrelated_classes(write):
    path = write(cls("One", ", width=1") + cls("Two", ", depth=1"))
    assert type(load(path, depth=3).build()).__name__ == "Two"
    with pytest.raises(ModelFileError, match=r"(?s)2 models.*net\.py:One, \./net\.py:Two"):
        load(path)


def test_one_class_is_nothing_to_say(write):
    assert load(write(cls("Net"))).notes == ()


def test_functions_that_make_it_are_named(write):
    text = BLOCK + cls("Net", ", block", "self.b = block(3)")
    text += "def small(): return Net(Block)\ndef large(): return Net(Block)\ndef train(): Net(Block)\n"
    with pytest.raises(ModelFileError, match=r"Type one of \./net\.py:small, \./net\.py:large\.$"):
        load(write(text))
    with pytest.raises(BuildError, match="needs the argument width"):
        load(write(cls("Part") + cls("Net", ", width", "self.b = Part()")))


def test_two_networks_of_one_block(write):
    text = BLOCK + cls("One", "", "self.b = Block(3)") + cls("Two", "", "self.b = Block(3)")
    with pytest.raises(ModelFileError, match=r"(?s)2 models.*Type one of \./net\.py:One, \./net\.py:Two\."):
        load(write(text))
