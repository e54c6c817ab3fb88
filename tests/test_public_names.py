"""A public class has a name of its own: who reads it somewhere knows which one is meant."""

import ast
from collections import defaultdict
from pathlib import Path

import netgraft

ROOT = Path(netgraft.__file__).parent
ROOMS = {"cli", "data", "evidence", "files", "lock", "models", "report", "score"}


def test_no_class_of_these_rooms_has_a_namesake_in_the_package():
    places = defaultdict(list)
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.relative_to(ROOT).parts)
    twice = {
        name: ["/".join(parts) for parts in found]
        for name, found in places.items()
        if len(found) > 1 and any(parts[0] in ROOMS for parts in found)
    }
    assert twice == {}
