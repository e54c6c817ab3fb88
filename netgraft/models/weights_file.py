"""Tensors out of a weights file: safetensors, or a PyTorch pickle with ``weights_only=True`` and nothing else."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from netgraft.errors import CorruptFile, UsageError
from netgraft.files.checkpoint import read_header
from netgraft.models.construct import brief
from netgraft.models.references import WEIGHTS_SUFFIXES, near_files
from netgraft.models.state_dicts import under

_DEPTH = 8  # mappings within mappings: more than training scripts nest, and an end where one holds itself


def check_weights_file(path: Path) -> None:
    """Raise UsageError unless a weights file may lie at ``path``, CorruptFile if it is empty or a stand-in."""
    if path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if file.name.endswith(WEIGHTS_SUFFIXES))
        hint = f"Did you mean {' or '.join(files[:5])}?" if files else ""
        raise UsageError("The weights are a directory, not a file.", where=str(path), hint=hint)
    if not path.name.endswith(WEIGHTS_SUFFIXES):
        hint = f"Weights are read from {', '.join(WEIGHTS_SUFFIXES)}."
        raise UsageError(f"A weights file cannot end in {path.suffix or path.name!r}.", where=str(path), hint=hint)
    if not path.is_file():
        near = near_files(path, WEIGHTS_SUFFIXES)
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError("There is no such weights file.", where=str(path), hint=hint)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UsageError(f"The weights file cannot be read: {error.strerror}.", where=str(path)) from error
    if not start:
        raise CorruptFile("The weights file is empty.", where=str(path), hint="Download or write the file again.")
    if start.startswith(b"version https://git-lfs"):
        hint = "Fetch what it points to: git lfs pull."
        raise CorruptFile("This is a Git LFS pointer, not the weights themselves.", where=str(path), hint=hint)
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        hint = "Download the file itself, not the page about it."
        raise CorruptFile("This is a web page, not a weights file.", where=str(path), hint=hint)


def read_weights_file(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file's tensors on the CPU under the keys it gives them, and remarks for the user.

    A key tells how the file nests its tensor: ``state_dict/module.conv.weight``. With ``prefix`` only those under it,
    named by what follows it. Raises UsageError or CorruptFile.
    """
    check_weights_file(path)
    notes: tuple[str, ...] = ()
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors, notes = _flatten(_read_pickle(path), path)
    if not prefix:
        return tensors, notes
    if found := under(tensors, prefix):
        return found, notes
    tops = dict.fromkeys(key.partition(".")[0] for key in tensors)
    hint = f"Its tensors stand under {', '.join([*tops][:8])}."
    raise UsageError(f"The file has no tensors under {prefix}.", where=str(path), hint=hint)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    read_header(path)
    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except Exception as error:  # SafetensorError, or a type that this PyTorch lacks
        raise CorruptFile(f"The file cannot be read as safetensors: {brief(error)}", where=str(path)) from error


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := _refused_globals(path, error):
            raise CorruptFile(
                f"Loading the file would run code that weights do not need: {', '.join(refused)}.",
                where=str(path),
                hint="netgraft never does. If you trust the file, load it where it was made and save the tensors "
                'alone: torch.save(model.state_dict(), "weights.pth").',
            ) from error
        what = f"The file cannot be read as PyTorch weights: {brief(error)}"
        raise CorruptFile(what, where=str(path), hint="Download or write the file again.") from error
    except Exception as error:  # torch.load raises nearly anything on bytes it does not expect
        hint = "Download or write the file again."
        if "TorchScript" in str(error):
            hint = "It is a TorchScript program; save its tensors alone: torch.save(program.state_dict(), FILE)."
        raise CorruptFile(
            f"The file cannot be read as PyTorch weights: {brief(error)}", where=str(path), hint=hint
        ) from error


def _refused_globals(path: Path, error: Exception) -> list[str]:
    """The names that ``weights_only`` refused."""
    found = re.findall(r"GLOBAL ([\w.]+)", str(error))
    with contextlib.suppress(Exception):  # it does not read the older format
        found += torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [*dict.fromkeys(found)]


def _flatten(content: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of what a training script saved, and a remark on what lies beside a state_dict and is none."""
    if not isinstance(content, Mapping):
        what = f"The file holds {_article(type(content).__name__)}, not a state_dict."
        raise CorruptFile(what, where=str(path), hint="Write it with torch.save(model.state_dict(), FILE).")
    tensors = dict(_tensors(content, "", _DEPTH))
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:8])
        hint = "Write it with torch.save(model.state_dict(), FILE)."
        raise CorruptFile("The file holds no tensors.", where=f"{path}: keys {keys}" if keys else str(path), hint=hint)
    others = [str(key) for key, value in content.items() if not isinstance(value, (Tensor, Mapping))]
    if others and any(isinstance(value, Tensor) for value in content.values()):
        return tensors, (f"{path.name}: left out what is not a tensor: {', '.join(others[:5])}.",)
    return tensors, ()


def _tensors(content: Mapping[object, object], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings and lists by their keys, with a slash behind every one, down to ``depth``."""
    for key, value in content.items():
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth:
            yield from _tensors(value, f"{prefix}{key}/", depth - 1)


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
