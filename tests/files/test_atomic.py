"""One writer: the old file or the new one, whole, whatever happens in between."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from netgraft.errors import OutputError
from netgraft.files.atomic import written


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(b"precious")
    return path


def names(folder):
    return sorted(os.listdir(folder))


def write(path, content=b"new", **options):
    with written(path, **options) as file:
        file.write(content)


@pytest.fixture(params=["fsync", "replace", "open", "link"])
def broken(request, monkeypatch):
    """The disk is full at one of the system's calls."""

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, request.param, fail)
    return request.param


def test_a_new_file_and_one_that_is_replaced(old):
    write(old)
    write(old.with_name("new.bin"), b"")
    assert (old.read_bytes(), names(old.parent)) == (b"new", ["new.bin", "old.bin"])


def test_nothing_is_seen_before_the_end(old):
    with written(old) as file:
        file.write(b"x" * 100_000)
        assert old.read_bytes() == b"precious"
    assert old.read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(1), MemoryError()], ids=repr)
@pytest.mark.parametrize("replace", [True, False])
def test_what_raises_in_the_block_leaves_nothing_behind(tmp_path, old, error, replace):
    path = old if replace else tmp_path / "new.bin"

    def fail():
        with written(path, replace=replace) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (old.read_bytes(), names(tmp_path)) == (b"precious", ["old.bin"])


@pytest.mark.parametrize("replace", [True, False])
def test_a_full_disk(tmp_path, old, broken, replace, monkeypatch):
    path = old if replace else tmp_path / "new.bin"
    if broken == "link" or (broken == "replace" and not replace):  # there is another way
        write(path, replace=replace)
        monkeypatch.undo()
        assert path.read_bytes() == b"new"
    else:
        with pytest.raises(OutputError, match=r"The lock could not be written(?s:.*)No space left"):
            write(path, what="lock", replace=replace)
        monkeypatch.undo()
        assert (old.read_bytes(), names(tmp_path)) == (b"precious", ["old.bin"])


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_full_when_the_last_bytes_are_flushed(old):
    script = f"""
import resource
from netgraft.errors import OutputError
from netgraft.files.atomic import written
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    with written({str(old)!r}) as file:
        file.write(bytes(200))
except OutputError as error:
    print(error.what)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "The file could not be written.\n"
    assert (old.read_bytes(), names(old.parent)) == (b"precious", ["old.bin"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("when", ["block", "fsync", "replace"])
def test_a_killed_process_leaves_the_old_file(old, when):
    """SIGKILL: the temporary file stays, under a name that nobody takes for the result."""
    script = f"""
import os, signal
from netgraft.files.atomic import written
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if {when!r} != "block": setattr(os, {when!r}, die)
with written({str(old)!r}) as file:
    file.write(b"half")
    if {when!r} == "block": die()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"precious"
    assert all(name == "old.bin" or (name[0] == "." and name.endswith(".tmp")) for name in names(old.parent))


# ------------------------------------------------------------------------------------------------------------ refusals


def test_an_existing_file_is_refused_when_told_to(old):
    with pytest.raises(OutputError, match="The checkpoint exists"):
        write(old, what="checkpoint", replace=False)
    assert (old.read_bytes(), names(old.parent)) == (b"precious", ["old.bin"])


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_refused(tmp_path, links, monkeypatch):
    """Also at the last moment, and on a file system without hard links."""
    path, real = tmp_path / "new.bin", os.link

    def link(source, target):
        path.write_bytes(b"precious")
        if not links:
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OutputError, match="exists"):
        write(path, replace=False)
    assert (path.read_bytes(), names(tmp_path)) == (b"precious", ["new.bin"])


@pytest.mark.parametrize("name", ["nowhere/new.bin", "old.bin/new.bin"])
def test_a_folder_that_is_none(old, name):
    with pytest.raises(OutputError, match="could not be written"):
        write(old.parent / name)
    assert names(old.parent) == ["old.bin"]


# ------------------------------------------------------------------------------------------------ links, modes, folders


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
@pytest.mark.parametrize("relative", [True, False])
def test_links(old, relative):
    link = old.with_name("link.bin")
    link.symlink_to("old.bin" if relative else old)
    write(link, b"followed", follow=True)
    assert (link.is_symlink(), old.read_bytes()) == (True, b"followed")
    write(link, b"replaced")
    assert (link.is_symlink(), link.read_bytes(), old.read_bytes()) == (False, b"replaced", b"followed")
    dangling = old.with_name("dangling.bin")
    dangling.symlink_to("made.bin")
    with pytest.raises(OutputError, match="exists"):
        write(dangling, replace=False)
    write(dangling, follow=True)
    assert dangling.is_symlink()
    assert names(old.parent) == ["dangling.bin", "link.bin", "made.bin", "old.bin"]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_modes(old, tmp_path):
    old.chmod(0o640)
    before = os.umask(0o077)
    try:
        write(old)
        write(tmp_path / "new.bin")
        (tmp_path / "link.bin").symlink_to(old)
        write(tmp_path / "link.bin")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert modes == {"old.bin": 0o640, "new.bin": 0o600, "link.bin": 0o600}


def test_the_file_and_then_its_folder_are_on_the_disk(old, monkeypatch):
    done = []

    def fsync(descriptor, real=os.fsync):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    def replace(*args, real=os.replace):
        done.append("replace")
        real(*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write(old, json.dumps({}).encode())
    assert done == ["file", "replace", "folder"]


def test_a_folder_that_cannot_be_synced_is_no_error(old, monkeypatch):
    def fsync(descriptor, real=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("not supported here")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(old)
    assert old.read_bytes() == b"new"
