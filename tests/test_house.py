"""Laws of the house as a whole, read from its files: nothing is imported."""

import ast
from collections import defaultdict
from pathlib import Path

import grimp
import networkx as nx

import netgraft

ROOT = Path(netgraft.__file__).parent


def test_the_name_of_a_public_class_says_which_one_it_is():
    found = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    assert found
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_the_face_of_a_room_is_no_more_than_that():
    """Imports, a text, ``__all__`` and names for what is imported: functions and classes stand in files with a name."""
    for path in sorted(ROOT.rglob("__init__.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        logic = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If, ast.For, ast.While))]
        lazy = path.parent == ROOT and [getattr(node, "name", "") for node in logic] in ([], ["__getattr__"])
        assert lazy or not logic, f"{path.relative_to(ROOT)} holds {ast.unparse(logic[0])[:60]}"


def test_no_module_imports_itself_by_way_of_others():
    """Between rooms the contracts see to it; this holds within them too, and for imports of types alone."""
    graph = grimp.build_graph("netgraft", cache_dir=None)
    arrows = nx.DiGraph((one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one))
    assert len(arrows) > 200
    assert [circle for circle in nx.strongly_connected_components(arrows) if len(circle) > 1] == []
