"""Checkpoints out and back: one safetensors file with canonical bytes, written whole or not at all.

The file's metadata is ``{"format": "pt", "netgraft": "<canonical JSON>"}``. ``safetensors.save_file`` writes metadata
in random order and with mode 0600, so the header is written here: same inputs, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from netgraft.architecture.graph import to_jsonable
from netgraft.errors import CorruptFile, OutputError, UsageError
from netgraft.files.atomic import written

SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a checkpoint can hold: the types that safetensors loads back into PyTorch."""
_BITS = {name: 8 * dtype.itemsize for dtype, name in DTYPES.items()}
_BITS |= {"F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}  # in the format, readable here


class StoredTensor(NamedTuple):
    """Where a file holds a tensor."""

    dtype: str  # safetensors' name, such as "F32"
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the start of the file
    size: int  # in bytes


# -------------------------------------------------------------------------------------------------------------- writing


def check_output(path: str | Path, *, force: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Raise OutputError (UsageError for the suffix) unless a checkpoint can and may be written to ``path``."""
    path = Path(path)
    parent = path.parent
    if path.is_dir():
        hint = f"Name a file in it: -o {shlex.quote(str(path / f'init{SUFFIX}'))}"
        raise OutputError("The output is a folder.", where=str(path), hint=hint)
    if path.suffix != SUFFIX:
        name = path.with_suffix("") if path.suffix in (".pt", ".pth", ".bin", ".ckpt") else path
        hint = f"Type -o {shlex.quote(f'{name}{SUFFIX}')}"
        raise UsageError(f"The output must be a {SUFFIX} file.", where=str(path), hint=hint)
    if os.path.lexists(parent) and not parent.is_dir():
        raise OutputError("The output's folder is not a folder.", where=str(parent), hint="Choose another -o.")
    if not parent.is_dir():
        hint = f"Type mkdir -p {shlex.quote(str(parent))}"
        raise OutputError("The output's folder does not exist.", where=str(parent), hint=hint)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("The output's folder is not writable.", where=str(parent), hint="Choose another -o.")
    for other in inputs:
        if _same_file(path, other):
            where = f"{path} is {other}"
            raise OutputError("The output is one of the inputs.", where=where, hint="Choose another -o.")
    if os.path.lexists(path) and not force:
        raise OutputError(
            "The output exists.", where=str(path), hint="Add --force to replace it, or choose another -o."
        )


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    *,
    force: bool = False,
    inputs: Iterable[str | Path] = (),
) -> None:
    """Write exactly these tensors, one after the other, and ``provenance`` as metadata.

    Tied tensors are written once per key, so that a strict ``load_state_dict`` works. The file appears complete or not
    at all; a symbolic link at ``path`` is replaced, not followed. ``tensors`` may
    compute its values on access: each is asked for twice, first for its type and shape. Raises OutputError, UsageError.
    """
    path = Path(path)
    check_output(path, force=force, inputs=inputs)
    header, order = _header(tensors, provenance)
    with written(path, "checkpoint", replace=force) as file:
        file.write(header)
        for key in order:
            _write_tensor(file, tensors[key])
        if file.tell() != len(header) + sum(order.values()):
            raise OutputError("A tensor changed its shape while the checkpoint was written.", where=str(path))
        check_output(path, force=force)  # someone else may have written it meanwhile


def _header(tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and the size of every tensor in the order of the file: wide types first, then by key."""
    specs = {key: _spec(key, tensors[key]) for key in tensors}
    canonical = json.dumps(to_jsonable(provenance), sort_keys=True, separators=(",", ":"), allow_nan=False)
    document: dict[str, Any] = {"__metadata__": {"format": "pt", "netgraft": canonical}}
    order, end = {}, 0
    for key in sorted(specs, key=lambda key: (-_BITS[specs[key][0]], key)):
        dtype, shape = specs[key]
        order[key] = prod(shape) * _BITS[dtype] // 8
        document[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + order[key]]}
        end += order[key]
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise OutputError(f"The header has {len(text)} bytes; safetensors allows {MAX_HEADER}.")
    return len(text).to_bytes(8, "little") + text, order


def _spec(key: str, tensor: Tensor) -> tuple[str, list[int]]:
    if key == "__metadata__":
        raise OutputError("A tensor cannot be called __metadata__ in a safetensors file.")
    if tensor.dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        where = f"{key}: {tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise OutputError("A safetensors file cannot hold this tensor.", where=where)
    return DTYPES[tensor.dtype], list(tensor.shape)


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _same_file(path: Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


# -------------------------------------------------------------------------------------------------------------- reading


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """The metadata and the tensors' places of any safetensors file, without reading a tensor.

    Raises UsageError for a file that cannot be opened and CorruptFile for one that is not whole and sound: sizes are
    checked before anything is parsed, offsets must cover the file without gaps or overlaps.
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if total < 10 or length < 2 or length > MAX_HEADER:
                raise _corrupt(path, "it does not start with a header")
            if length > total - 8:
                raise _corrupt(path, f"its header needs {length} bytes and the file has {total}")
            text = file.read(length)
    except OSError as error:
        raise UsageError("The file cannot be read.", where=f"{path}: {error.strerror or error}") from error
    try:
        document = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "its header is not JSON") from error
    if not isinstance(document, dict):
        raise _corrupt(path, "its header is not an object")
    metadata = document.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "its metadata is not text by name")
    entries, end = {}, 8 + length
    for key, fields in document.items():
        entries[key] = _entry(path, key, fields, 8 + length)
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.size)):
        if entry.offset != end:
            raise _corrupt(path, "its tensors overlap or leave gaps")
        end += entry.size
    if end != total:
        raise _corrupt(path, f"its tensors end at byte {end} and the file has {total}")
    return metadata, entries


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What ``write_checkpoint`` was given as ``provenance``; raises UsageError for a file without any."""
    metadata, _ = read_header(path)
    if "netgraft" not in metadata:
        hint = "Only files written by `netgraft transfer` know where their tensors came from."
        raise UsageError("This safetensors file was not written by netgraft.", where=str(path), hint=hint)
    try:
        provenance = json.loads(metadata["netgraft"])
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "its netgraft metadata is not JSON") from error
    if not isinstance(provenance, dict):
        raise _corrupt(path, "its netgraft metadata is not an object")
    return provenance


def describe(path: str | Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Key, type (safetensors' name) and shape of every tensor, by key."""
    _, entries = read_header(path)
    return [(key, entry.dtype, entry.shape) for key, entry in sorted(entries.items())]


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's bytes; raises UsageError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError("The file cannot be read.", where=f"{path}: {error.strerror or error}") from error


def _corrupt(path: str | Path, why: str) -> CorruptFile:
    return CorruptFile(
        f"This is not a whole {SUFFIX} file: {why}.", where=str(path), hint="Download or write the file again."
    )


def _entry(path: str | Path, key: str, fields: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [*shape, begin, end]
        sound = all(type(number) is int and number >= 0 for number in numbers)
        sound = sound and prod(shape) * _BITS[dtype] == 8 * (end - begin)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise _corrupt(path, f"its header has a malformed entry for {key!r}")
    return StoredTensor(dtype, tuple(shape), start + begin, end - begin)
