"""What a method says that it needs, read without running it, and refusing where it is missing. No torch."""

from __future__ import annotations

import ast

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.protocol import Category, Need
from netgraft.finetune.settings import TrainingSettings
from netgraft.plugins import Description

FOLDER = "finetune.methods"
"""Where methods are, for ``netgraft.plugins``."""

BASELINES = "finetune.baselines"
"""Where those are that fit no network, only features: classes for Python."""

_WHY = {
    Need.START: "an initialisation to start from and stay near",
    Need.SOURCE_MODEL: "the source network",
    Need.SOURCE_GRADIENTS: "the source network, for gradients through it",
    Need.SOURCE_DATA: "images of the source's task",
    Need.PAIRS: "layers of a source paired with the target's",
    Need.SAME_CLASSES: "a source network with the target's classes",
    Need.UNLABELLED: "images without labels",
}


def needs_of(method: Description) -> tuple[Need, ...]:
    """Those in its class variable ``needs``, in the order of their declaration."""
    names = {node.attr for node in ast.walk(_variable(method, "needs")) if isinstance(node, ast.Attribute)}
    return tuple(need for need in Need if need.name in names)


def rule_of(method: Description) -> str:
    """The combine rule that it has where the user names none."""
    rule = _variable(method, "combine")
    return str(rule.value) if isinstance(rule, ast.Constant) and rule.value else "total"


def category_of(method: Description) -> Category | None:
    """Where the survey puts it; None where its file does not say. Raises UnknownName for what is no category."""
    category = _variable(method, "category")
    if not isinstance(category, ast.Constant) or category.value is None:
        return None
    if category.value not in tuple(Category):
        raise UnknownName("category", str(category.value), tuple(Category), where=f"the method {method.name}")
    return Category(category.value)


def _variable(method: Description, name: str) -> ast.expr:
    return ast.parse(method.variables.get(name, "") or "None", mode="eval").body


def check_needs(settings: TrainingSettings, method: Description) -> None:
    """Raise UsageError naming everything that the method needs and the user has not given."""
    given = {
        Need.START: settings.init is not None or "=" in settings.target,
        Need.SOURCE_MODEL: settings.source is not None,
        Need.SOURCE_GRADIENTS: settings.source is not None,
        Need.SOURCE_DATA: settings.source_data is not None,
        Need.PAIRS: settings.source is not None,
        Need.SAME_CLASSES: settings.source is not None,
        Need.UNLABELLED: settings.unlabelled is not None,
    }
    missing = [need for need in needs_of(method) if not given[need]]
    if missing:
        what = f"The method {method.name} needs {' and '.join(_WHY[need] for need in missing)}."
        add = " ".join(dict.fromkeys(need.value.partition(" (")[0].partition(" whose")[0] for need in missing))
        raise UsageError(what, where="it is not given", hint=f"Add {add}")
