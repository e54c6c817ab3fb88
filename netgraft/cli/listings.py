"""Commands that list what can be named: models, recipes, matchers, operators."""

from __future__ import annotations

from inspect import getdoc
from typing import Annotated

import typer

from netgraft import plugins
from netgraft.cli.app import Format, command, write_json, write_lines
from netgraft.cli.options import OutputFormat
from netgraft.errors import UnknownName


@command("netgraft models", "netgraft models 'resnet*'", "netgraft models 'resnet18.*'")
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Part of a name, or a name with *; with a dot in it, names with tags."),
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List models that SOURCE and TARGET can name.

    Without PATTERN those of netgraft itself; with PATTERN also those of timm and torchvision.
    """
    from netgraft.models.catalogue import catalogue
    from netgraft.report.listing import models_text

    found = catalogue(pattern)
    if not any(found.values()):
        known = [name for names in catalogue("*").values() for name in names]
        raise UnknownName("model", pattern or "", known, hint="")
    if format is Format.JSON:
        write_json(found)
    else:
        write_lines(models_text(found, pattern))


def _listing(folder: str, name: str | None, format: Format) -> None:
    from netgraft.report.listing import plugin_document, plugin_text, plugins_document, plugins_text

    if name is None:
        found = plugins.listing(folder)
        write_json(plugins_document(found)) if format is Format.JSON else write_lines(plugins_text(folder, found))
    else:
        cls = plugins.load(folder, name)
        plugin = plugins.Description(name, getdoc(cls) or "", tuple(plugins.options(cls)))
        write_json(plugin_document(plugin)) if format is Format.JSON else write_lines(plugin_text(folder, plugin))


@command("netgraft recipes", "netgraft recipes hmt")
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe, or the path of your own: ./own_recipe.py.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the recipes: how source weights become target weights.

    With NAME: what that recipe does, and its options for --set.
    """
    _listing("recipes", name, format)


@command("netgraft matchers", "netgraft matchers longest-chain")
def matchers(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A matcher, or the path of your own: ./own_matcher.py.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the matchers: which source layer goes to which target.

    With NAME: what that matcher does.
    """
    _listing("matchers", name, format)


@command("netgraft operators", "netgraft operators share")
def operators(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this operator's options.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the operators: what the steps of a plan do to a tensor."""
    _listing("operators", name, format)


@command("netgraft passes", "netgraft passes recalibrate")
def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this pass's options.")] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the passes: what may follow a recipe (--pass)."""
    _listing("passes", name, format)


@command("netgraft generators", "netgraft generators strokes")
def generators(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A generator, or the path of your own: ./own_generator.py.")
    ] = None,
    format: OutputFormat = Format.TEXT,
) -> None:
    """List the generators of images (--images).

    With NAME: what that generator draws.
    """
    _listing("data.generators", name, format)
