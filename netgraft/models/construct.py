"""Call a constructor: its arguments checked beforehand, its failures told with the line of the user's file."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from netgraft.errors import BuildError, NetgraftError, UnknownName
from netgraft.models.references import close_names


def check_arguments(
    function: Callable[..., object], args: Mapping[str, object], *, label: str, option: str, file: Path | None
) -> None:
    """Raise BuildError if ``function`` needs arguments that ``args`` lacks, UnknownName if ``args`` has others.

    ``label`` is what the user calls the function, ``option`` (``--target-arg``) is what passes arguments to it.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # written in C, or a strange callable: calling it will tell
        return
    parameters = signature.parameters.values()
    where = f"{label}{signature}" + (f" in {_line_of(function, file)}" if file else "")
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in args:
            if name not in named:
                raise unknown_argument(name, named, option=option, where=where)
    missing = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if nameless := [p.name for p in missing if p.kind is p.POSITIONAL_ONLY]:
        raise BuildError(
            f"{label} takes positional-only arguments: {', '.join(nameless)}.",
            where=where,
            hint="Write a function build() in the file that passes them.",
        )
    if needed := [p.name for p in missing if p.name not in args]:
        plural = "s" if len(needed) > 1 else ""
        raise BuildError(
            f"{label} needs the argument{plural} {', '.join(needed)}.",
            where=where,
            hint=f"Add {' '.join(f'{option} {name}=VALUE' for name in needed)}.",
        )


def unknown_argument(name: str, known: Iterable[str], *, option: str, where: str) -> UnknownName:
    """The error for an argument that does not exist, with what to type instead."""
    known = list(known)
    if close := close_names(name, known, 0.6):
        hint = f"Did you mean {' or '.join(f'{option} {other}=...' for other in close)}?"
    else:
        hint = f"It takes {', '.join(known)}." if known else "It takes no arguments."
    return UnknownName("argument", name, known, where=where, hint=hint)


def explain_keyword(
    error: Exception, args: Mapping[str, object], plain: Callable[[], nn.Module], *, option: str, where: str
) -> UnknownName | None:
    """The error for an argument that an inner constructor refused; ``plain`` builds the model without arguments."""
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if match is None or match[1] not in args:
        return None
    with torch.device("meta"):
        known = [*inspect.signature(type(plain()).__init__).parameters][1:]
    known = [*dict.fromkeys(["num_classes", *known])]
    return unknown_argument(match[1], [n for n in known if n not in ("args", "kwargs")], option=option, where=where)


def call_constructor(
    function: Callable[..., object], args: Mapping[str, object], *, label: str, file: Path | None
) -> nn.Module:
    """What ``function(**args)`` returns; BuildError if it raises or does not return a module."""
    try:
        module = function(**args)
    except NetgraftError:
        raise
    except (Exception, SystemExit) as error:
        raise BuildError(f"{label} could not be built: {brief(error)}", where=user_line(error, file)) from error
    if not isinstance(module, nn.Module):
        raise BuildError(
            f"{label} returned {type(module).__name__}, not a torch.nn.Module.", where=str(file) if file else ""
        )
    return module


def call_library(function: Callable[..., nn.Module], *args: object, **kwargs: object) -> nn.Module:
    """``function(...)`` of timm or torchvision, without its warnings about its own past and future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def with_meta_fallback(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """``build``, able to work under ``torch.device("meta")`` even if the constructor computes with tensors' values.

    Such a constructor runs on the CPU, and the module is moved.
    """

    def build_anywhere() -> nn.Module:
        if torch.get_default_device().type != "meta":
            return build()
        try:
            return build()
        except BuildError:
            with torch.device("cpu"):
                return build().to("meta")

    return build_anywhere


def brief(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, SystemExit):
        return "it calls sys.exit()"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def brief_without_paths(error: BaseException) -> str:
    """The same without folders and addresses in memory, for what is stored and must not differ from run to run."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x...", brief(error))
    return re.sub(r"(?<!\w)(?:/[\w.+~-]+)+/", "", text)


def user_line(error: BaseException, file: Path | None) -> str:
    """``file:line: text`` of the innermost frame in the user's file, or at least in its folder; else the file."""
    if file is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    paths = [Path(frame.filename) for frame in frames]
    resolved, folder = file.resolve(), file.resolve().parent
    own = [f for f, path in zip(frames, paths, strict=True) if path == resolved]
    beside = [
        f for f, path in zip(frames, paths, strict=True) if folder in path.parents and "site-packages" not in path.parts
    ]
    if not (own or beside):
        return str(file)
    frame = (own or beside)[-1]
    place = file if own else shown(Path(frame.filename))
    return f"{place}:{frame.lineno}: {frame.line}"


def shown(path: Path) -> Path:
    """A path as short as it can be written from the working directory."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _line_of(function: Callable[..., object], file: Path) -> str:
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    code = getattr(target, "__code__", None)
    same = code is not None and Path(code.co_filename) == file.resolve()
    return f"{file}:{code.co_firstlineno}" if same and code is not None else str(file)
