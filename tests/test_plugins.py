"""The folder is the registry: listing without importing, loading by name, file or package, options from text."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import netgraft
from netgraft import plugins
from netgraft.errors import NetgraftError, UnknownName, UsageError
from netgraft.plugins import REQUIRED, Option, create, listing, load, options

OWN = '''
"""Words about the module."""
from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal, Optional

from netgraft.plan import Step  # imported, so not this file's


class _Mode(StrEnum):
    NEAR = "near"
    FAR = "far"


@dataclass(frozen=True)
class Own:
    """My own matcher.

    More words.
    """

    beta: float = field(default=0.5, metadata={"help": "how much"})
    steps: int = 3
    loud: bool = False
    title: str = "plain"
    rule: Literal["first", "last", 2] = "first"
    mode: _Mode = _Mode.NEAR
    limit: Optional[int] = None
    either: int | str | None = 0
    size: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    names: tuple[str, ...] = ()
    maps: tuple[tuple[str, str], ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    anything: Any = None
    hidden: int = field(default=1, init=False)
    constant: ClassVar[int] = 5

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"beta cannot be negative: {self.beta}")
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own_matcher.py"
    path.write_text(OWN)
    return str(path)


def file(tmp_path, text, name="other.py"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


PLAIN = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass {0}:\n    size: int = 1\n"


# -------------------------------------------------------------------------------------------------------------- listing


def test_listing_imports_nothing():
    script = """if True:
        import sys
        from netgraft import plugins
        before = set(sys.modules)
        found = plugins.listing("operators")
        assert "cyclic" in found, found
        new = {name for name in sys.modules if name not in before and name.startswith(("netgraft", "torch", "timm"))}
        assert not new and "torch" not in sys.modules, new
    """
    root = str(Path(netgraft.__file__).parents[1])
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": root}, check=True)


def test_listing_reads_names_and_summaries(tmp_path, monkeypatch):
    folder = tmp_path / "matchers"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit")
    (folder / "_shared.py").write_text("raise SystemExit")
    (folder / "notes.txt").write_text("no plug-in")
    (folder / "longest_chain.py").write_text(OWN + "raise SystemExit")
    (folder / "by_shape.py").write_text(
        '"""Module words.\n\nMore."""\nclass _Hidden:\n    """No."""\nclass ByShape: ...'
    )
    (folder / "silent.py").write_text("class Silent: ...")
    (folder / "broken.py").write_text("class")
    monkeypatch.setattr(plugins.registry, "HERE", tmp_path)
    found = listing("matchers")
    assert {name: plugin.summary for name, plugin in found.items()} == {
        "broken": "(cannot be read)",
        "by-shape": "Module words.",
        "longest-chain": "My own matcher.",
        "silent": "",
    }
    assert list(found) == sorted(found)
    assert found["by-shape"].module == "netgraft.matchers.by_shape"
    assert found["by-shape"].path == folder / "by_shape.py"
    assert {plugin.name for plugin in found.values()} == set(found)


def test_a_folder_that_does_not_exist_lists_nothing():
    assert listing("finetune.methods.none") == {}


# -------------------------------------------------------------------------------------------------------------- loading


def test_load_by_name():
    cls = load("operators", "cyclic")
    assert cls.__module__ == "netgraft.operators.cyclic"
    assert load("operators", "cyclic") is cls
    assert cls(dim=0, size=3) == create("operators", "cyclic", {"dim": 0, "size": 3})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cyclik", "Did you mean cyclic?"), ("_x", ""), ("", ""), ("zzz", "`netgraft operators` lists them all")],
)
def test_an_unknown_name(name, hint):
    with pytest.raises(UnknownName, match="Unknown operator") as caught:
        load("operators", name)
    assert hint in caught.value.hint
    assert "`netgraft operators`" in caught.value.hint


def test_an_unknown_matcher_names_the_listing_command():
    with pytest.raises(UnknownName, match="Unknown matcher 'longest_chains'") as caught:
        load("matchers", "longest_chains")
    assert "`netgraft matchers`" in caught.value.hint
    assert "./own_matcher.py" in caught.value.hint


def test_an_own_file(own, monkeypatch):
    cls = load("matchers", own)
    assert cls.__name__ == "Own"
    assert load("matchers", own) is cls
    assert load("matchers", f"{own}:Own") is cls
    monkeypatch.chdir(Path(own).parent)
    assert load("matchers", "./own_matcher.py") is load("matchers", "own_matcher.py:Own")
    assert sorted(path.name for path in Path(own).parent.iterdir()) == ["own_matcher.py"]


def test_a_changed_file_runs_again(tmp_path):
    path = file(tmp_path, PLAIN.format("First"))
    assert load("matchers", path).__name__ == "First"
    file(tmp_path, PLAIN.format("Second"))
    assert load("matchers", path).__name__ == "Second"


def test_a_file_with_two_classes_needs_a_name(tmp_path):
    path = file(tmp_path, PLAIN.format("One") + PLAIN.format("Two") + PLAIN.format("_Three"))
    with pytest.raises(UsageError, match="One, Two") as caught:
        load("matchers", path)
    assert caught.value.hint == f"Name one: {path}:One"
    assert load("matchers", f"{path}:Two").__name__ == "Two"
    with pytest.raises(UnknownName, match="Unknown class 'Too'") as caught:
        load("matchers", f"{path}:Too")
    assert "Two" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "here: none"),
        ("from netgraft.plan import Step", "here: none"),
        ("class Plain:\n    pass", "not a dataclass"),
        ("class Broken", "SyntaxError"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_file_that_holds_no_plugin(tmp_path, text, says):
    path = file(tmp_path, text)
    modules = set(sys.modules)
    for _ in range(2):  # the second time is no different
        with pytest.raises(UsageError) as caught:
            load("recipes", path)
        assert says in str(caught.value)
        assert path in str(caught.value)
    left = [name for name in set(sys.modules) - modules if name.startswith("netgraft_own")]
    assert bool(left) == (not says.endswith(("Error", "SystemExit", "anywhere")))


def test_an_interrupt_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        load("recipes", file(tmp_path, "raise KeyboardInterrupt"))


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "folder.py").mkdir()
    for name in ("missing.py", "missing.py:Class", "folder.py"):
        with pytest.raises(UsageError, match="There is no recipe file"):
            load("recipes", str(tmp_path / name))


# --------------------------------------------------------------------------------------------------- installed packages


@pytest.fixture
def installed(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "ngx_pack").mkdir(parents=True)
    (site / "ngx_pack-1.0.dist-info").mkdir()
    (site / "ngx_pack-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ngx-pack\nVersion: 1.0\n")
    (site / "ngx_pack-1.0.dist-info" / "entry_points.txt").write_text(
        "[netgraft.operators]\n"
        "packed = ngx_pack.packed:Packed\nwhole = ngx_pack.packed\ncyclic = ngx_pack.packed:Packed\n"
        "gone = ngx_pack.gone:Gone\nneedy = ngx_pack.needy:Needy\n"
    )
    (site / "ngx_pack" / "__init__.py").write_text("")
    (site / "ngx_pack" / "packed.py").write_text(
        'from dataclasses import dataclass\n@dataclass\nclass Packed:\n    """From a package."""\n    size: int = 1\n'
    )
    (site / "ngx_pack" / "needy.py").write_text("import ngx_absent.part\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    importlib.invalidate_caches()
    yield site
    for name in [name for name in sys.modules if name.startswith("ngx_pack")]:
        del sys.modules[name]


def test_installed_packages_are_listed_without_importing_them(installed):
    found = listing("operators")
    assert list(found) == sorted(found)
    assert found["packed"].summary == "From a package."
    assert found["packed"].module == "ngx_pack.packed:Packed"
    assert found["packed"].path == installed / "ngx_pack" / "packed.py"
    assert (found["gone"].summary, found["gone"].path) == ("from ngx-pack", None)
    assert "ngx_pack" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_installed_packages_are_loaded():
    assert create("operators", "packed", {"size": "4"}).size == 4
    assert load("operators", "whole") is load("operators", "packed")
    assert load("operators", "cyclic").__module__ == "netgraft.operators.cyclic"
    assert listing("operators")["cyclic"].module == "netgraft.operators.cyclic"
    with pytest.raises(UsageError, match="operator gone cannot be imported"):
        load("operators", "gone")
    with pytest.raises(UsageError, match="cannot be imported") as caught:
        load("operators", "needy")
    assert "pip install ngx_absent" in caught.value.hint
    with pytest.raises(UnknownName) as caught:
        load("operators", "paked")
    assert "packed" in caught.value.hint


# -------------------------------------------------------------------------------------------------------------- options


def test_options_of_a_class(own):
    found = {option.name: option for option in options(load("matchers", own))}
    assert found["beta"] == Option("beta", "float", 0.5, "how much")
    assert {name: option.type for name, option in found.items()} == {
        "beta": "float",
        "steps": "int",
        "loud": "true or false",
        "title": "str",
        "rule": "one of first, last, 2",
        "mode": "one of near, far",
        "limit": "int or none",
        "either": "int or str or none",
        "size": "comma-separated ints",
        "pair": "int,float",
        "names": "comma-separated strs",
        "maps": "comma-separated NAME=NAME",
        "table": "dict[str, int]",
        "anything": "Any",
    }
    assert found["table"].default == {}
    assert [option.default for option in options(load("operators", "cyclic"))] == [REQUIRED, REQUIRED]


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("beta", "1e-3", 0.001),
        ("beta", 2, 2.0),
        ("steps", " 7 ", 7),
        ("loud", "true", True),
        ("loud", "No", False),
        ("loud", True, True),
        ("title", " kept as it is ", " kept as it is "),
        ("rule", "last", "last"),
        ("rule", "2", 2),
        ("rule", 2, 2),
        ("mode", "far", "far"),
        ("limit", "none", None),
        ("limit", None, None),
        ("limit", "5", 5),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("either", "None", None),
        ("size", "3,4,5", (3, 4, 5)),
        ("size", "(3, 4,)", (3, 4)),
        ("size", "[3]", (3,)),
        ("size", "", ()),
        ("size", [3, 4], (3, 4)),
        ("pair", "3,4", (3, 4.0)),
        ("pair", (3, 4), (3, 4.0)),
        ("names", "a, b", ("a", "b")),
        ("maps", "a.b=c, d = e", (("a.b", "c"), ("d", "e"))),
        ("maps", [["a", "b=c"]], (("a", "b=c"),)),
        ("table", {"a": 1}, {"a": 1}),
        ("anything", [1], [1]),
    ],
)
def test_values_are_read_as_the_field_says(own, name, given, wanted):
    value = getattr(create("matchers", own, {name: given}), name)
    assert value == wanted
    assert isinstance(value, type(wanted))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("beta", "much", "float"),
        ("beta", True, "float"),
        ("beta", None, "float"),
        ("steps", "1.5", "int"),
        ("steps", 1.5, "int"),
        ("steps", True, "int"),
        ("loud", "perhaps", "true or false"),
        ("loud", 1, "true or false"),
        ("title", 3, "str"),
        ("rule", "middle", "one of first, last, 2"),
        ("rule", None, "one of first, last, 2"),
        ("mode", "middle", "one of near, far"),
        ("limit", "x", "int or none"),
        ("either", 1.5, "int or str or none"),
        ("size", "3,x", "comma-separated ints"),
        ("size", 3, "comma-separated ints"),
        ("size", [3, True], "comma-separated ints"),
        ("pair", "3", "int,float"),
        ("maps", "a", "comma-separated NAME=NAME"),
        ("maps", ["a=b", "c"], "comma-separated NAME=NAME"),
        ("pair", "3,4,5", "int,float"),
        ("table", "a=1", "dict[str, int]"),
    ],
)
def test_a_value_of_another_type_is_refused(own, name, given, expected):
    with pytest.raises(UsageError) as caught:
        create("matchers", own, {name: given})
    message = str(caught.value)
    assert f"option {name} cannot be {given!r}" in message
    assert f"expected {expected}" in message
    assert own in caught.value.where


@pytest.mark.parametrize(("name", "hint"), [("bta", "beta"), ("hidden", "Known:"), ("constant", "Known:")])
def test_an_unknown_option(own, name, hint):
    with pytest.raises(UnknownName, match=f"Unknown option '{name}'") as caught:
        create("matchers", own, {name: "1"})
    assert hint in caught.value.hint
    assert caught.value.where == f"matcher {own}"


def test_a_plugin_without_options(tmp_path):
    path = file(tmp_path, "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Bare: ...\n")
    assert create("matchers", path, {}) == load("matchers", path)()
    with pytest.raises(UnknownName) as caught:
        create("matchers", path, {"a": 1})
    assert caught.value.hint == "It has no options."


def test_a_missing_option():
    with pytest.raises(UsageError, match="option size is missing") as caught:
        create("operators", "cyclic", {"dim": 0})
    assert caught.value.hint == "Give it as size=<int>."


def test_a_refusal_by_the_plugin_itself_is_a_usage_error(own):
    with pytest.raises(UsageError, match=r"beta cannot be negative: -1\.0") as caught:
        create("matchers", own, {"beta": "-1"})
    assert caught.value.where == f"matcher {own}"


def test_annotations_that_cannot_be_resolved(tmp_path):
    text = "from __future__ import annotations\n" + PLAIN.format("Vague").replace("int", "Unheard")
    with pytest.raises(NetgraftError, match="unclear types"):
        create("matchers", file(tmp_path, text), {})
