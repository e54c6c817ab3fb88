"""The methods as the survey of deep transfer learning orders them (Tan et al. 2018, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from netgraft import plugins
from netgraft.errors import UsageError
from netgraft.finetune.needs import BASELINES, FOLDER, category_of
from netgraft.finetune.protocol import Category
from netgraft.report.text import table

OTHER = "other"
TITLES = {
    Category.INSTANCES: "images of the source train too, by weights of their own",
    Category.MAPPING: "images of both domains are mapped to where they are alike",
    Category.NETWORK: "parts of a trained network are used again, or guide the training",
    Category.ADVERSARIAL: "features in which an adversary cannot tell the source from the target",
    OTHER: "their files name no category",
}
"""What the methods of a category have in common."""


class CategorisedMethod(NamedTuple):
    """How a method is named, by the user or in Python, and what it does."""

    use: str  # "--method ddc", "netgraft.finetune.baselines.tca"
    summary: str


def by_category() -> dict[str, list[CategorisedMethod]]:
    """Every method and baseline in its place, in the survey's order. Nothing is imported, no file is run."""
    found: dict[str, list[CategorisedMethod]] = {name: [] for name in TITLES}
    for folder in (FOLDER, BASELINES):
        for name, plugin in plugins.listing(folder).items():
            use = f"--method {name}" if folder == FOLDER else plugin.module
            found[_category(folder, name) or OTHER].append(CategorisedMethod(use, plugin.summary.replace("``", "")))
    return {category: methods for category, methods in found.items() if methods or category != OTHER}


def _category(folder: str, name: str) -> Category | None:
    try:
        return category_of(plugins.describe(folder, name))
    except UsageError:  # an installed package's file may be out of reach
        return None


def categories_text(found: Mapping[str, Sequence[CategorisedMethod]]) -> Iterator[str]:
    for category, methods in found.items():
        yield f"{category}: {TITLES[category]}"
        yield from table(("name", "what it does"), methods, indent="  ")
        yield ""
    yield "More about one: netgraft methods NAME. Names without --method are modules for Python: help(NAME)."


def categories_list(found: Mapping[str, Sequence[CategorisedMethod]]) -> Iterator[str]:
    """An item of a list in Markdown for each category, with the names alone: the README's."""
    for category, methods in found.items():
        typed, imported = (
            [f"`{m.use.rpartition(end)[2]}`" for m in methods if m.use.startswith("--") == (end == " ")] for end in " ."
        )
        groups = [", ".join(group) for group in (typed, imported) if group]
        yield f"- *{category}*: {TITLES[category]}: {'; in Python '.join(groups)}."


def categories_document(found: Mapping[str, Sequence[CategorisedMethod]]) -> dict[str, list[dict[str, str]]]:
    return {category: [method._asdict() for method in methods] for category, methods in found.items()}
