"""What is read of a plug-in's file without running it, against what Python says of its class."""

import inspect

import pytest

from netgraft import plugins
from netgraft.errors import UnknownName, UsageError
from netgraft.plugins import REQUIRED, Option, describe

FOLDERS = ("matchers", "recipes", "passes", "operators", "finetune.methods", "data.generators")
EVERY = [(folder, name) for folder in FOLDERS for name in plugins.listing(folder)]


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_every_plugin_of_netgraft(folder, name):
    """Defaults and help that are computed come as they are written; what is compared is the rest."""
    cls, described = plugins.load(folder, name), describe(folder, name)
    assert described.doc == (inspect.getdoc(cls) or "")
    assert [(o.name, o.type) for o in described.options] == [(o.name, o.type) for o in plugins.options(cls)]


OWN = '''
raise SystemExit("this file ran")
from netgraft.finetune.toolbox import mmd as discrepancy
from netgraft.finetune.toolbox.bilevel.matching import Match as M
from netgraft.finetune.toolbox.domains import DomainAdaptation

Mode = Literal["a", 2]

class _Hidden: ...

class Own(DomainAdaptation):
    """First.

    Second.
    """

    size: int
    mode: Mode = "a"
    match: M | None = None
    estimator: discrepancy.Estimator = field(default="linear", metadata={"help": "how"})
    flag: bool = field(metadata={"unit": "none", "help": "whether"}, default=not False)
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[str, ...] = ()
    labels: Literal["source"] = "source"
    LIMIT: ClassVar[int] = 3
    combine: ClassVar[str]
    other = 4
'''


def test_an_own_file_is_not_run(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    described = describe("finetune.methods", str(file))
    assert described.doc == "First.\n\nSecond."
    each = "BatchNorm by each domain's own statistics (the target's are kept), or by those of both"
    assert described.options == (
        Option("labels", "one of source", "source", ""),
        Option("norm", "one of each, joint", "each", each),
        Option("size", "int", REQUIRED, ""),
        Option("mode", "one of a, 2", "a", ""),
        Option("match", "one of one-to-one, all or none", None, ""),
        Option("estimator", "one of linear, unbiased, biased", "linear", "how"),
        Option("flag", "true or false", "not False", "whether"),
        Option("pair", "int,float", (1, 2.0), ""),
        Option("many", "comma-separated strs", (), ""),
    )
    assert described.variables == {
        "needs": "frozenset({Need.SOURCE_DATA})",
        "plain_when": "None",
        "LIMIT": "3",
        "combine": "",
    }


def test_a_class_by_name(tmp_path):
    file = tmp_path / "own.py"
    file.write_text('class One:\n    """The first."""\nclass Two:\n    """The second."""\n')
    assert describe("matchers", f"{file}:Two").doc == "The second."
    with pytest.raises(UsageError, match="one public class; here: One, Two"):
        describe("matchers", str(file))
    with pytest.raises(UsageError, match="one public class"):
        describe("matchers", f"{file}:Three")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="matcher's file cannot be read"):
        describe("matchers", str(tmp_path / "none.py"))
    (tmp_path / "broken.py").write_text("class")
    with pytest.raises(UsageError, match="cannot be read"):
        describe("finetune.methods", str(tmp_path / "broken.py"))
    with pytest.raises(UnknownName, match="plian") as caught:
        describe("finetune.methods", "plian")
    assert "netgraft methods" in caught.value.hint


def test_of_an_installed_package(tmp_path, monkeypatch):
    """The class that its entry point names, of several; nothing of the package is imported."""
    package = tmp_path / "their_methods"
    package.mkdir()
    (package / "__init__.py").write_text('class A:\n    """One."""\nclass B:\n    """Another."""\nraise SystemExit\n')
    info = tmp_path / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[netgraft.finetune.methods]\nother = their_methods:B\nlost = nowhere:C\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert describe("finetune.methods", "other").doc == "Another."
    with pytest.raises(UsageError, match="without importing"):
        describe("finetune.methods", "lost")
