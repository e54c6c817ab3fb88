"""Lists of what can be named: plug-ins with their options, models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import getdoc
from typing import Any

from netgraft import plugins
from netgraft.report.text import safe, table


def plugins_text(folder: str, found: Mapping[str, plugins.Plugin]) -> Iterator[str]:
    """One line per plug-in, and how to see more."""
    yield from table(("name", "what it does"), [(name, plugin.summary) for name, plugin in found.items()])
    yield ""
    kind = plugins.noun(folder)
    yield f"netgraft {folder} NAME shows a {kind}'s options. Your own: ./own_{kind}.py."


def plugins_document(found: Mapping[str, plugins.Plugin]) -> list[dict[str, str]]:
    return [{"name": name, "summary": plugin.summary} for name, plugin in found.items()]


def plugin_text(folder: str, name: str, cls: type[Any]) -> Iterator[str]:
    """A plug-in's docstring and options."""
    yield f"{plugins.noun(folder)} {safe(name)}"
    yield ""
    yield from (getdoc(cls) or "").splitlines()
    options = plugins.options(cls)
    if options:
        yield ""
        rows = [
            (o.name, o.type, "required" if o.default is plugins.REQUIRED else str(o.default), o.doc) for o in options
        ]
        yield from table(("option", "values", "default", ""), rows)


def plugin_document(name: str, cls: type[Any]) -> dict[str, Any]:
    options = [
        {"name": o.name, "type": o.type, "doc": o.doc}
        | ({} if o.default is plugins.REQUIRED else {"default": o.default})
        for o in plugins.options(cls)
    ]
    return {"name": name, "doc": getdoc(cls), "options": options}


def models_text(found: Mapping[str, Any], pattern: str | None) -> Iterator[str]:
    """Shipped models with their facts; names from timm and torchvision where a pattern was given."""
    embedded = found["netgraft"]
    if embedded:
        yield "shipped with netgraft (no download):"
        yield from table(("reference", "what it is"), embedded.items(), indent="  ")
        yield ""
    if pattern is None:
        yield "every architecture of timm and torchvision: netgraft models 'resnet*'"
        yield "your own: ./file.py, ./file.py:Class, package.module:factory; with weights: ARCH=weights.safetensors"
        return
    for title, names in (("timm", found["timm"]), ("torchvision", found["torchvision"])):
        if names:
            yield f"{title}:"
            yield from (f"  {safe(name)}" for name in names)
    if not any(found.values()):
        yield f"no model is called {safe(pattern)}"
