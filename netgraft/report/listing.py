"""Lists of what can be named: plug-ins with their options, models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from netgraft import plugins
from netgraft.report.text import safe, table

SETTABLE = ("recipes", "finetune.methods")
"""Folders of plug-ins whose options are given with --set."""


def plugins_text(folder: str, found: Mapping[str, plugins.Plugin]) -> Iterator[str]:
    """One line per plug-in, and how to see more."""
    yield from table(("name", "what it does"), [(name, _plain(plugin.summary)) for name, plugin in found.items()])
    yield ""
    kind = plugins.noun(folder)
    plural = "passes" if kind == "pass" else f"{kind}s"
    option = {"generator": "--images"}.get(kind, f"--{kind}")
    more = f"More about one: netgraft {plural} NAME."
    yield more if folder == "operators" else f"{more} A {kind} of your own: {option} ./own_{kind}.py."


def plugins_document(found: Mapping[str, plugins.Plugin]) -> list[dict[str, str]]:
    return [{"name": name, "summary": plugin.summary} for name, plugin in found.items()]


def plugin_text(folder: str, plugin: plugins.Description, notes: Sequence[str] = ()) -> Iterator[str]:
    """A plug-in's docstring, ``notes`` about it, and its options."""
    yield f"{plugins.noun(folder)} {safe(plugin.name)}"
    yield ""
    yield from (safe(_plain(line)) for line in plugin.doc.splitlines())
    yield ""
    if notes:
        yield from notes
        yield ""
    if not plugin.options:
        yield "It has no options."
        return
    rows = [(o.name, o.type, _default(o), o.doc) for o in plugin.options]
    yield from table(("option", "values", "default", ""), rows)
    if folder in SETTABLE:
        yield ""
        yield f"Set one with --set, for example --set {rows[0][0]}={rows[0][2]}."


def _default(option: plugins.Option) -> str:
    return "required" if option.default is plugins.REQUIRED else str(option.default)


def plugin_document(plugin: plugins.Description) -> dict[str, Any]:
    options = [
        {"name": o.name, "type": o.type, "doc": o.doc}
        | ({} if o.default is plugins.REQUIRED else {"default": o.default})
        for o in plugin.options
    ]
    return {"name": plugin.name, "doc": plugin.doc, "options": options}


def models_text(found: Mapping[str, Any], pattern: str | None) -> Iterator[str]:
    """Models of netgraft with their facts; names from timm and torchvision where a pattern was given."""
    if found["netgraft"]:
        yield "of netgraft, no model hub needed:"
        yield from table(("name", "what it is"), found["netgraft"].items(), indent="  ")
    for title in ("timm", "torchvision"):
        if found[title]:
            yield f"{title}:"
            yield from (f"  {safe(name)}" for name in found[title])
    if pattern is None:
        yield ""
        yield "Architectures of timm and torchvision: netgraft models 'resnet*'"
        yield "Sets of pretrained weights (tags):     netgraft models 'resnet18.*'"
        yield "Files of your own and other forms:     netgraft --help"


def _plain(text: str) -> str:
    """Docstrings without the marks of their markup."""
    return text.replace("``", "")
