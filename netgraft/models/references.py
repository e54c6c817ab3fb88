"""What the user typed for a model, taken apart: no torch, no timm, and no file is executed.

``resnet18.a1_in1k`` - ``timm/resnet18`` - ``hf-hub:org/name`` - ``torchvision:resnet18`` - ``./my_arch.py`` -
``./my_arch.py:Net`` - ``pkg.mod:factory`` - a directory with ``config.json`` - ``netgraft:resnet20-glyphs``; each may
be followed by ``=weights.safetensors``, or ``=weights.pth::PREFIX`` for the tensors under a prefix.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from netgraft.errors import ModelFileError, UnknownName, UsageError

Kind = Literal["timm", "hf-hub", "torchvision", "netgraft", "file", "module", "directory"]
Role = Literal["source", "target"]

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar")

PREFIXES: dict[str, Kind] = {
    "hf-hub:": "hf-hub",
    "hf_hub:": "hf-hub",
    "torchvision:": "torchvision",
    "netgraft:": "netgraft",
    "local-dir:": "directory",
    "timm:": "timm",
    "timm/": "timm",
}
_PYTHON_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>.*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Reference:
    """A model reference; ``text`` is what was typed, without the weights file."""

    text: str
    kind: Kind
    name: str  # timm name with its tag, hub id, torchvision or embedded name, path, or module
    attribute: str = ""  # the class or function behind the colon of a file or module
    weights: Path | None = None  # the file behind "=", with "::PREFIX" where a part of it is meant


def parse_reference(text: str) -> Reference:
    """The parts of a reference. Existing paths win over names.

    Raises UsageError, UnknownName (a prefix), or ModelFileError (a path where nothing is).
    """
    text = text.strip()
    if "=" not in text or Path(text).expanduser().exists():
        return _parse_architecture(text)
    architecture, weights = _split_weights(text)
    if not architecture or not weights:
        raise UsageError(
            "A reference with '=' is an architecture followed by its weights file.",
            where=text,
            hint="For example resnet18=weights.safetensors.",
        )
    return replace(_parse_architecture(architecture), weights=Path(weights).expanduser())


def split_prefix(weights: Path) -> tuple[Path, str]:
    """``w.pth::encoder_q`` as the file and the prefix of the tensors that are meant; an existing file is no prefix."""
    file, colons, prefix = str(weights).partition("::")
    if not colons or not file.endswith(WEIGHTS_SUFFIXES) or weights.exists():
        return weights, ""
    return Path(file), prefix


def parse_arg(text: str) -> tuple[str, object]:
    """``k=v`` as (name, value): a Python literal, true or false, or else the bare word itself. Nothing is evaluated."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError("An argument is written name=value.", where=repr(text), hint="For example num_classes=10.")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if re.search(r"[()\[\]{}'\"]", value):
            raise UsageError(
                f"The value of {name} is not a Python literal.",
                where=text,
                hint="""Numbers, True, None, words, (1, 2), [1, 2], {"key": 1} and "quoted text" are; calls are not.""",
            ) from error
        return name, value


def parse_input_size(text: str) -> tuple[int, ...]:
    """``3,224,224`` (or ``3x224x224``) as a shape without the batch axis, of any rank."""
    parts = re.split(r"[,x]", text.strip().strip("()").replace(" ", "").removesuffix(","))
    if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0 for part in parts):
        raise UsageError(
            "An input size is positive whole numbers, without the batch axis.",
            where=repr(text),
            hint="For example --input-size 3,224,224.",
        )
    return tuple(int(part) for part in parts)


def close_names(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """The known names that ``name`` may have meant, best first."""
    return difflib.get_close_matches(name, list(known), n=5, cutoff=cutoff)


def near_files(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files beside the missing ``path`` with one of these endings: the ones with a similar name first."""
    if not path.parent.is_dir():
        return []
    names = sorted(file.name for file in path.parent.iterdir() if file.name.endswith(suffixes))
    close = close_names(path.name, names)
    shown = [*close, *(name for name in names if name not in close)][:5]
    prefix = "" if str(path.parent) == "." else f"{path.parent}/"
    return [f"{prefix}{name}" for name in shown]


def _split_weights(text: str) -> tuple[str, str]:
    """Split at the first "=" that has a file behind it (folders may have "=" in their names), else at the first."""
    splits = [(text[: match.start()], text[match.end() :]) for match in re.finditer("=", text)]
    for architecture, weights in splits:
        if split_prefix(Path(weights).expanduser())[0].is_file():
            return architecture, weights
    return splits[0]


def _parse_architecture(text: str) -> Reference:
    if not text:
        raise UsageError(
            "The model reference is empty.", hint="For example resnet18, ./my_arch.py or ./my_arch.py:Net."
        )
    if match := _PYTHON_FILE.fullmatch(text):
        if match["attribute"] is not None and not match["attribute"].isidentifier():
            hint = f"Type {match['path']}:Net, or {match['path']} alone if it defines one model."
            raise UsageError("Behind the colon stands the name of a class or function.", where=text, hint=hint)
        return Reference(text, "file", match["path"], match["attribute"] or "")
    path = Path(text).expanduser()
    looks_like_path = text.startswith((".", "/", "~")) or text.endswith("/") or path.is_absolute()
    if path.is_dir() and (looks_like_path or "/" in text or (path / "config.json").is_file()):
        return Reference(text, "directory", str(path))
    if path.is_file() or text.endswith(WEIGHTS_SUFFIXES):
        if text.endswith(WEIGHTS_SUFFIXES):
            what, hint = "A weights file alone does not say which architecture it belongs to.", f"Type ARCH={text}"
        else:
            what, hint = "This file is not a model.", "A model is a .py file, a name, or a directory with config.json."
        raise UsageError(what, where=text, hint=f"{hint}, for example resnet18={text}." if "ARCH" in hint else hint)
    for prefix, kind in PREFIXES.items():
        if text.startswith(prefix):
            if not text.removeprefix(prefix):
                raise UsageError(f"A name is missing behind {prefix!r}.", where=text)
            return Reference(text, kind, text.removeprefix(prefix))
    if looks_like_path:
        near = near_files(path, (".py",))
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise ModelFileError("There is no such file or directory.", where=text, hint=hint)
    if match := _MODULE.fullmatch(text):
        return Reference(text, "module", match["module"], match["attribute"])
    if ":" in text:
        raise UnknownName("model source", text.partition(":")[0] + ":", PREFIXES, where=text)
    if "/" in text:
        hint = f"Type hf-hub:{text} for a model on the hub, ./{text} for a file or directory."
        raise UsageError(f"There is no file or directory {text!r}.", hint=hint)
    return Reference(text, "timm", text)
