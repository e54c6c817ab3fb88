"""Writes a file whole or not at all: nothing half-written, nothing overwritten that was not to be."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from netgraft.errors import OutputError


@contextmanager
def written(
    path: str | Path,
    what: str = "file",
    *,
    replace: bool = True,  # a file that exists; False: it is refused, also one that appears meanwhile
    follow: bool = False,  # a symbolic link stays and what it points to is written; False: the link is replaced
) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends, and is gone if the block raises.

    It is written beside the target and is on the disk before it is renamed. A new file has the mode that the umask
    gives, one that replaces another has that one's. Raises OutputError for every OSError, also one of the block's;
    ``what`` names the file in its text.
    """
    target = Path(os.path.realpath(path)) if follow else Path(path)
    temporary = target.with_name(f".netgraft-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as file:
            _keep_mode(descriptor, target)
            yield file
            file.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(temporary, target)
        else:
            _put_new(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise OutputError(f"The {what} exists.", where=str(path)) from error
        if isinstance(error, OSError):
            where = f"{path}: {error.strerror or error}"
            raise OutputError(f"The {what} could not be written.", where=where) from error
        raise
    _sync_folder(target.parent)


def _keep_mode(descriptor: int, target: Path) -> None:
    """The mode of the file that is replaced, before there is anything to read."""
    with suppress(OSError):
        old = os.lstat(target).st_mode
        if stat.S_ISREG(old) and hasattr(os, "fchmod"):
            os.fchmod(descriptor, stat.S_IMODE(old))


def _put_new(temporary: Path, target: Path) -> None:
    """Rename the file. Raises FileExistsError where the name is taken."""
    try:
        os.link(temporary, target)  # the only renaming that never replaces
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(temporary, target)
    else:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; the file is in place, so a file system that cannot do this is no error."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
