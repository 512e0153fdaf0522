"""The loader of a `config.py`, which runs it and returns its training project."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from bt_lightning.config_file.truss_stubs import stub_modules
from bt_lightning.errors import ConfigNotFoundError, InvalidSettingError
from bt_lightning.truss_definitions import TrainingProject, as_definition
from bt_lightning.truss_definitions.coercion import TRUSS_ROOTS
from bt_lightning.truss_definitions.definition import own_class

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator


def load_config(path: str | os.PathLike[str]) -> TrainingProject:
    """Return the training project that a `config.py` defines, as `truss train push` reads it.

    Runs the file in this process, with its rights: load only what you would run. Its `__name__` is
    the file's name without `.py`, not `__main__`, and the working directory stays. Exactly one
    global must be a `TrainingProject`, of truss or of this package. Without truss, stubs of its
    modules are importable while the file runs. Afterwards `sys.path` is restored, and modules that
    were found only by the file's additions to it are removed.

    Not to be called by two threads at once.

    Raises:
        ConfigNotFoundError: there is no such file.
        InvalidSettingError: it cannot be read or run, or does not define exactly one valid project.
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
    """The code of a file, compiled at each call: no cached bytecode is used."""
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
            msg += f" (without {' and '.join(sorted(missing))}, for which stubs were used)"
        raise InvalidSettingError(msg) from error


def _line(error: BaseException, file: Path) -> int:
    """The line of the file that ran when `error` was raised."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _reason(error: BaseException) -> str:
    """The text of an error; of a pydantic error without the values, which may be secrets."""
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
    kind = own_class(type(value))
    return kind is not None and issubclass(kind, TrainingProject)


@contextmanager
def _importable_truss() -> Iterator[Collection[str]]:
    """Make truss importable in the block, by stubs if need be; yield the missing packages."""
    missing = {name for name in TRUSS_ROOTS if not _is_installed(name)}
    stubs = stub_modules(missing)
    path, known_modules = list(sys.path), set(sys.modules)
    sys.modules.update(stubs)
    try:
        yield missing
    finally:
        added = [entry for entry in sys.path if entry not in path]
        new = sys.modules.keys() - known_modules
        roots = {root for root in new if "." not in root and _is_found_in(root, added)}
        for name in new:
            if name in stubs or name.partition(".")[0] in roots:
                del sys.modules[name]
        sys.path[:] = path


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return True
    spec = find_spec(package)
    # without an origin it is a namespace package: any folder of that name
    return spec is not None and spec.origin is not None


def _is_found_in(name: str, folders: list[str]) -> bool:
    """Whether an imported module came from one of `folders`."""
    spec = PathFinder.find_spec(name, folders) if folders else None
    loaded = getattr(sys.modules[name], "__spec__", None)
    return spec is not None and loaded is not None and spec.origin == loaded.origin
