"""Where the survey puts each method, and how that is listed."""

import json
from pathlib import Path

import pytest
from support.command_line import run

from netgraft import plugins
from netgraft.errors import UnknownName
from netgraft.finetune.needs import BASELINES, FOLDER, category_of
from netgraft.finetune.protocol import Category
from netgraft.report import categories
from netgraft.report.categories import by_category, categories_list

OWN = [(folder, name) for folder in (FOLDER, BASELINES) for name in plugins.listing(folder)]


@pytest.mark.parametrize(("folder", "name"), OWN)
def test_every_one_has_its_place(folder, name):
    described = plugins.describe(folder, name)
    assert category_of(described) in tuple(Category)
    assert category_of(described) == plugins.load(folder, name).category
    assert all(option.doc for option in described.options)


def test_places_are_those_of_the_survey():
    """Its sections 3.1 to 3.4 name these."""
    listed = by_category().items()
    found = {category: {use.split()[-1].split(".")[-1] for use, _ in methods} for category, methods in listed}
    assert list(found)[:4] == ["instances", "mapping", "network", "adversarial"]
    assert {"tradaboost", "tradaboost_r2", "expboost_r2", "task_tradaboost", "mtlf"} <= found["instances"]
    assert {"tca", "jgsa", "ddc", "dan", "jan"} <= found["mapping"]
    assert {"frozen", "plain"} <= found["network"]
    assert {"dann", "cdan", "adda"} <= found["adversarial"]
    assert sum(len(methods) for methods in by_category().values()) == len(OWN)


def test_it_is_listed():
    out = run("methods", "--by", "category").stdout
    lines = "instances:", "--method tradaboost ", "mapping:", "baselines.tca ", "network:", "--method plain "
    places = [out.index(line) for line in lines]
    assert places == sorted(places)
    document = json.loads(run("methods", "--by", "category", "--format", "json").stdout)
    assert {"use": "--method ddc", "summary": plugins.listing(FOLDER)["ddc"].summary} in document["mapping"]
    assert "Its category in the survey of Tan et al. 2018: adversarial." in run("methods", "dann").stdout
    assert json.loads(run("methods", "dann", "--format", "json").stdout)["category"] == "adversarial"
    refused = run("methods", "dann", "--by", "category")
    assert refused.exit_code == 2
    assert "one category" in refused.stderr


def test_methods_without_a_category_stand_apart(monkeypatch):
    """Those of installed packages may name none."""
    monkeypatch.setattr(categories, "category_of", lambda method: None if method.name == "kd" else category_of(method))
    assert [use for use, _ in by_category()["other"]] == ["--method kd"]


OWN_METHOD = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    '''Mine.'''
    needs: ClassVar[frozenset] = frozenset()
    category: ClassVar[str] = {category}
"""


def test_a_method_may_have_none_and_none_but_these(tmp_path):
    path = tmp_path / "mine.py"
    for category, expected in (("None", None), ("'mapping'", Category.MAPPING)):
        path.write_text(OWN_METHOD.format(category=category))
        assert category_of(plugins.describe(FOLDER, str(path))) == expected
    path.write_text(OWN_METHOD.format(category="'maping'"))
    with pytest.raises(UnknownName, match="mapping"):
        category_of(plugins.describe(FOLDER, str(path)))


def test_the_readme_has_the_list():
    """Every method in its place; ``categories_list`` writes it anew."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    start = readme.index("- *instances*")
    found = " ".join(readme[start : readme.index("\n\n", start)].split())
    assert found == " ".join(" ".join(categories_list(by_category())).split())
