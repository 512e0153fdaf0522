"""Reads the training project out of a `config.py`, as `truss train push` does."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from bt_lightning.config_file.truss_stubs import stand_ins
from bt_lightning.errors import ConfigNotFoundError, InvalidSettingError
from bt_lightning.truss_definitions import TrainingProject, as_definition
from bt_lightning.truss_definitions.coercion import TRUSS_ROOTS
from bt_lightning.truss_definitions.definition import twin

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator


def load_config(path: str | os.PathLike[str]) -> TrainingProject:
    """The training project that a `config.py` defines: the file that `truss train push` takes.

    The file is run, in this process and with its rights: load only what you would run. It is no
    `__main__` there, its name is that of the file without `.py`, and the working directory stays.
    Exactly one global has to be a `TrainingProject`, of truss or of ours. Where truss is not
    installed, its modules are stood in for while the file runs. `sys.path` and the modules that
    could be found only by what the file added to it are put back afterwards.

    Not to be called by two threads at once.

    Raises:
        ConfigNotFoundError: there is no such file.
        InvalidSettingError: it cannot be read or run, or defines none or several, or one that
            cannot be used.
    """
    file = Path(path).absolute()
    code = _compiled(file)
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    with _importable_truss() as missing:
        _run(code, module, file, missing)
    names = [name for name in dir(module) if _is_project(getattr(module, name))]
    if len(names) != 1:
        found = f"{len(names)} globals that are a TrainingProject ({', '.join(names)})"
        msg = (
            f"{file} has {found if names else 'no global that is a TrainingProject'}, expected"
            " one: write `project = TrainingProject(name=..., job=...)` at the top level, once"
        )
        raise InvalidSettingError(msg)
    try:
        return as_definition(getattr(module, names[0]), TrainingProject)
    except InvalidSettingError as error:
        msg = f"{file}: {error.message}"
        raise InvalidSettingError(msg) from error


def _compiled(file: Path) -> CodeType:
    """The code of a file; compiled anew each time, so that no cached one of before is run."""
    try:
        return compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except FileNotFoundError as error:
        msg = f"there is no file {file}, expected a config such as `truss train push` takes"
        raise ConfigNotFoundError(msg) from error
    except OSError as error:
        msg = f"{file} cannot be read ({error.strerror}), expected a Python file: name the file"
        raise InvalidSettingError(msg) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # all of compile()
        line, reason = getattr(error, "lineno", None), getattr(error, "msg", None)
        where = f"{file}, line {line}" if line else str(file)
        msg = f"{where}: {reason or error}; expected a Python file that defines a TrainingProject"
        raise InvalidSettingError(msg) from error


def _run(code: CodeType, module: ModuleType, file: Path, missing: Collection[str]) -> None:
    try:
        exec(code, vars(module))  # noqa: S102 - a config is code, and its user's own
    except (Exception, SystemExit) as error:
        msg = f"{file}, line {_line(error, file)}: {_reason(error)}"
        if missing and isinstance(error, ImportError | AttributeError):
            msg += f" (without {' and '.join(sorted(missing))}, which stand-ins took the place of)"
        raise InvalidSettingError(msg) from error


def _line(error: BaseException, file: Path) -> int:
    """The line of the file that was running when `error` was raised."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _reason(error: BaseException) -> str:
    """What an error says; of pydantic without the values, which may be secrets."""
    if isinstance(error, InvalidSettingError):
        return error.message
    details: Any = getattr(error, "errors", None)
    if type(error).__name__ == "ValidationError" and callable(details):
        title = getattr(error, "title", "")
        return "; ".join(
            f"{'.'.join([title, *map(str, item['loc'])])}: {item['msg']}" for item in details()
        )
    return f"{type(error).__name__}: {error}"


def _is_project(value: object) -> bool:
    kind = twin(type(value))
    return kind is not None and issubclass(kind, TrainingProject)


@contextmanager
def _importable_truss() -> Iterator[Collection[str]]:
    """Let truss be imported, stood in for if need be; yields the packages that are missing."""
    missing = {name for name in TRUSS_ROOTS if not _is_installed(name)}
    made = stand_ins(missing)
    path, known = list(sys.path), set(sys.modules)
    sys.modules.update(made)
    try:
        yield missing
    finally:
        added = [entry for entry in sys.path if entry not in path]
        new = sys.modules.keys() - known
        roots = {root for root in new if "." not in root and _is_found_in(root, added)}
        for name in new:
            if name in made or name.partition(".")[0] in roots:
                del sys.modules[name]
        sys.path[:] = path


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return True
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # None: any folder of that name


def _is_found_in(name: str, folders: list[str]) -> bool:
    """Whether a module that was imported came from one of the entries of `sys.path`."""
    spec = PathFinder.find_spec(name, folders) if folders else None
    loaded = getattr(sys.modules[name], "__spec__", None)
    return spec is not None and loaded is not None and spec.origin == loaded.origin
