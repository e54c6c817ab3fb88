"""A user's own architecture: run ``./my_arch.py`` (or import ``pkg.mod``) once and find the model in it.

The file is executed code, like any Python program: netgraft does not sandbox it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from torch import Tensor, nn

from netgraft.errors import ModelFileError, NetgraftError, UnknownName
from netgraft.models.construct import brief, call_constructor, check_arguments, shown, user_line, with_meta_fallback
from netgraft.models.outermost import choose
from netgraft.models.references import PREFIXES, Reference, close_names, near_files

HOOKS = frozenset({"example_inputs"})
"""Functions of a user's file that netgraft calls for something else than the model."""


@dataclass(frozen=True)
class UserModel:
    """What a user's file says about its model."""

    build: Callable[[], nn.Module]
    input_size: tuple[int, ...] | None
    example_inputs: Callable[[], tuple[object, ...]] | None
    file: Path
    notes: tuple[str, ...] = ()  # which of several models was taken


def load_user_model(reference: Reference, args: Mapping[str, object], *, option: str) -> UserModel:
    """The model of a ``file`` or ``module`` reference.

    Raises ModelFileError, UnknownName (no such class, no such argument), BuildError (arguments are missing).
    """
    typed, file, folder = reference.name, Path(reference.name).expanduser(), None
    if reference.kind == "file":
        module, folder = _run_file(file), file.resolve().parent
    else:
        module = _import_module(reference)
        file = shown(Path(module.__file__ or typed))
    name, notes = (reference.attribute, ()) if reference.attribute else _find_model(module, typed, file, args)
    model = _get_model(module, name, typed, file)
    check_arguments(model, args, label=name, option=option, file=file)

    def build() -> nn.Module:
        with _beside(folder):
            return call_constructor(model, args, label=name, file=file)

    size = _read_size(model) or _read_size(module)
    return UserModel(with_meta_fallback(build), size, _find_example_inputs(module, file), file, notes)


def defines_model(reference: Reference, args: Mapping[str, object]) -> bool:
    """Whether the model of a ``file`` reference is a class or function that the file itself defines.

    The file is executed, its model is not called. Raises as ``load_user_model``.
    """
    file = Path(reference.name).expanduser()
    module = _run_file(file)
    name = reference.attribute or _find_model(module, reference.name, file, args)[0]
    model = _get_model(module, name, reference.name, file)
    return (isinstance(model, type) or inspect.isfunction(model)) and model.__module__ == module.__name__


# ----------------------------------------------------------------------------------------------------------- execution

_run: dict[Path, tuple[tuple[int, int], ModuleType]] = {}  # file -> (its stamp, its module)
_siblings: dict[Path, set[str]] = {}  # folder -> names of the modules imported from it


def _run_file(file: Path) -> ModuleType:
    """The module of a Python file: executed once, unless it changed since."""
    if file.is_dir() or not file.exists():
        near = near_files(file, (".py",))
        hint = f"Did you mean {' or '.join(near)}?" if near else "There is no other .py file in its folder."
        raise ModelFileError("There is no such Python file.", where=str(file), hint=hint)
    path = file.resolve()
    stat = path.stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    if path in _run and _run[path][0] == stamp:
        return _run[path][1]
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"netgraft_user_file_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelFileError("This is not a Python file.", where=str(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and typing look classes up there
    try:
        with _beside(path.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _failed_import(error, file) from error
        raise
    _run[path] = (stamp, module)
    return module


def _import_module(reference: Reference) -> ModuleType:
    """The module ``pkg.mod``, looked up as Python does, and in the working directory."""
    name = reference.name
    try:
        with _on_path(str(Path.cwd())):
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            hint = "It must be installed or lie in the working directory; for a file type ./my_arch.py:Net."
            if near := close_names(f"{name}:", PREFIXES, 0.7):
                hint = f"Did you mean {near[0]}{reference.attribute}?"
            raise ModelFileError(
                f"There is no Python module {error.name!r}.", where=reference.text, hint=hint
            ) from error
        spec = None
        with _on_path(str(Path.cwd())):
            try:
                spec = importlib.util.find_spec(name)
            except Exception:  # a parent package does not import: the error in hand says why
                spec = None
        file = Path(spec.origin) if spec and spec.origin else None
        raise _failed_import(error, shown(file) if file else None, name=name) from error


def _failed_import(error: BaseException, file: Path | None, name: str = "") -> ModelFileError:
    label = str(file) if file else name
    if isinstance(error, SyntaxError):
        place = Path(error.filename) if error.filename else None
        place = file if place is None or (file and place == file.resolve()) else shown(place)
        where = f"{place}:{error.lineno}: {(error.text or '').strip()}"
        return ModelFileError(f"{label} is not valid Python: {error.msg}.", where=where)
    hint = ""
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        hint = "The file is part of a package: type package.module:Net from the folder that holds the package."
    elif isinstance(error, SystemExit):
        hint = 'Put the script\'s part behind `if __name__ == "__main__":`.'
    return ModelFileError(f"{label} does not run: {brief(error)}", where=user_line(error, file) or label, hint=hint)


@contextmanager
def _beside(folder: Path | None) -> Iterator[None]:
    """``import blocks`` finds ``blocks.py`` in the folder, and not one of the same name beside another user's file."""
    if folder is None:
        yield
        return
    for other, names in _siblings.items():
        if other != folder:
            for name in [n for n in names if _holds(folder, n)]:
                sys.modules.pop(name, None)
                names.discard(name)
    before = set(sys.modules)
    try:
        with _on_path(str(folder)):
            yield
    finally:
        new = {name for name in set(sys.modules) - before if _lies_in(sys.modules[name], folder)}
        _siblings.setdefault(folder, set()).update(new)


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _holds(folder: Path, module: str) -> bool:
    top = module.partition(".")[0]
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and folder in Path(file).parents and "site-packages" not in Path(file).parts


# ---------------------------------------------------------------------------------------------------- finding the model


def _find_model(module: ModuleType, typed: str, file: Path, args: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
    """The name of the one model, and a remark where it was chosen.

    ``build``, else the only public module class defined here, else the class that the others are parts of (or the only
    function that returns it, if it needs arguments that are not given), else the only function.
    """
    public = [str(name) for name in getattr(module, "__all__", vars(module)) if not str(name).startswith("_")]
    own = {n: v for n in public if getattr(v := vars(module).get(n), "__module__", None) == module.__name__}
    classes = [name for name, value in own.items() if isinstance(value, type) and issubclass(value, nn.Module)]
    functions = [name for name, value in own.items() if inspect.isfunction(value) and name not in HOOKS]
    if callable(vars(module).get("build")):
        return "build", ()
    candidates = classes or functions
    if len(classes) > 1:
        candidates = choose(inspect.getsource(module), classes, functions, lambda name: _is_complete(own[name], args))
    if len(candidates) == 1:
        others = [name for name in classes if name != candidates[0]]
        remark = f"{candidates[0]} is taken, not {', '.join(others[:5])}" if others else ""
        return candidates[0], (remark,) if remark else ()
    where = str(file)
    if not candidates:
        imported = [
            name for name in public if isinstance(v := vars(module).get(name), type) and issubclass(v, nn.Module)
        ]
        hint = "Define one public torch.nn.Module subclass, or a function build() that returns one."
        if imported:
            hint = f"Classes it imports do not count; name one: {' or '.join(f'{typed}:{name}' for name in imported)}."
        raise ModelFileError("The file defines no model.", where=where, hint=hint)
    kinds = "models" if classes else "functions and no model"
    hint = f"Type one of {', '.join(f'{typed}:{name}' for name in candidates)}."
    if args and not classes:
        hint += " Or call one of them build."
    raise ModelFileError(f"The file defines {len(candidates)} {kinds}.", where=where, hint=hint)


def _is_complete(model: object, args: Mapping[str, object]) -> bool:
    """Whether it can be called with these arguments, as far as its signature tells."""
    try:
        check_arguments(cast(Callable[..., object], model), args, label="", option="", file=None)
    except NetgraftError:
        return False
    return True


def _get_model(module: ModuleType, name: str, typed: str, file: Path) -> Callable[..., object]:
    """The class or function called ``name``."""
    where = str(file)
    if not hasattr(module, name):
        known = [
            n
            for n, v in vars(module).items()
            if (inspect.isfunction(v) or (isinstance(v, type) and issubclass(v, nn.Module))) and not n.startswith("_")
        ]
        near = close_names(name, known) or known[:5]
        hint = f"Did you mean {' or '.join(f'{typed}:{other}' for other in near)}?" if near else ""
        raise UnknownName("class or function", name, known, where=where, hint=hint)
    value: object = getattr(module, name)
    if isinstance(value, nn.Module):
        raise ModelFileError(
            f"{name} is a model that has been built already ({type(value).__name__}).",
            where=where,
            hint="netgraft builds it afresh: name its class, or a function that returns it.",
        )
    if isinstance(value, type) and not issubclass(value, nn.Module):
        raise ModelFileError(f"{name} is a class, but not a subclass of torch.nn.Module.", where=where)
    if not callable(value):
        raise ModelFileError(f"{name} is {type(value).__name__}, not a class or function.", where=where)
    return value


def _read_size(owner: object) -> tuple[int, ...] | None:
    """``input_size`` of a class or module if it is a shape; the name may mean anything in a user's code."""
    size = getattr(owner, "input_size", None)
    if isinstance(size, (tuple, list)) and size and all(type(n) is int and n > 0 for n in size):
        return tuple(size)
    return None


def _find_example_inputs(module: ModuleType, file: Path) -> Callable[[], tuple[object, ...]] | None:
    hook = getattr(module, "example_inputs", None)
    if hook is None or not callable(hook):
        return None

    def example_inputs() -> tuple[object, ...]:
        try:
            inputs = hook()
        except (Exception, SystemExit) as error:
            what = f"example_inputs() failed: {brief(error)}"
            raise ModelFileError(what, where=user_line(error, file)) from error
        if isinstance(inputs, Tensor):
            return (inputs,)
        if not isinstance(inputs, (tuple, list)):
            what = f"example_inputs() returned {type(inputs).__name__}, not a tuple of the forward pass's inputs."
            raise ModelFileError(what, where=str(file))
        return tuple(inputs)

    return example_inputs
