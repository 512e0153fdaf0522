"""What starts in a test loads only what it uses of what is installed.

torchmetrics, which Lightning imports, finds neither matplotlib nor transformers, and Lightning no
file system of a cloud that nobody has imported: they are two thirds of the time that a script takes
until it trains. Whoever imports them himself gets them. Python imports this module when it starts,
as its folder is in `PYTHONPATH`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

HIDDEN = ("matplotlib", "transformers")
"""From torchmetrics, while it is imported."""
_WHOSE = "torchmetrics"
_CLOUDS = ("adlfs", "gcsfs", "s3fs")
"""From Lightning, which imports them to ask whether a path is one of theirs."""
_ASKS = "package_available"


class _Finder:
    def __init__(self, *, for_tests: bool) -> None:
        self._clouds = () if for_tests else _CLOUDS  # tests of all kinds have one process

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self._clouds and _is_asked_for():
            raise ModuleNotFoundError(name)
        if name != _WHOSE:
            return None
        import importlib.util

        place = sys.meta_path.index(self)  # type: ignore[arg-type]
        del sys.meta_path[place]
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(place, self)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_alone(module: ModuleType) -> None:
                with _hidden():
                    load(module)

            spec.loader.exec_module = load_alone  # type: ignore[method-assign]
        return spec


def _is_asked_for() -> bool:
    """Whether somebody asks if it is installed, and does not import it."""
    frame = sys._getframe()
    for _ in range(6):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_code.co_name == _ASKS:
            return True
    return False


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Neither modules nor packages of these names are found."""
    from importlib.metadata import Distribution, PackageNotFoundError

    found = Distribution.__dict__["from_name"]

    def from_name(cls: type[Distribution], name: str) -> Any:
        if name in hidden:
            raise PackageNotFoundError(name)
        return found.__func__(cls, name)

    hidden = [name for name in HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    Distribution.from_name = classmethod(from_name)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Distribution.from_name = found  # type: ignore[method-assign]
        for name in hidden:
            del sys.modules[name]


sys.meta_path.insert(0, _Finder(for_tests=__name__ != "sitecustomize"))  # type: ignore[arg-type]
