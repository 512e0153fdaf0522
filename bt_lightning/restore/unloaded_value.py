"""A placeholder for a hyperparameter that was not loaded; any use raises with the reason."""

from __future__ import annotations

from typing import NoReturn

from bt_lightning.errors import UnsafeLoadError


class UnloadedValue:
    """A hyperparameter that was left out of a load; using it raises `UnsafeLoadError`.

    A resume reads no hyperparameters, so it must not fail for one that only pickle can restore.
    """

    def __init__(self, path: str, reason: str) -> None:
        object.__setattr__(self, "_text", f"{path} was not loaded: {reason}")

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_text')}>"

    def __reduce__(self) -> NoReturn:
        self._raise()

    def _raise(self) -> NoReturn:
        raise UnsafeLoadError(object.__getattribute__(self, "_text"))

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)  # code that looks for a protocol's method must not find one
        self._raise()

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Raise."""
        self._raise()

    def __getitem__(self, _: object) -> NoReturn:
        self._raise()

    def __iter__(self) -> NoReturn:
        self._raise()

    def __len__(self) -> int:  # noqa: PLE0303 - there is nothing to count
        self._raise()

    def __bool__(self) -> bool:  # noqa: PLE0304 - it is neither
        self._raise()
