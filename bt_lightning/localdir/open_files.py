"""Files that are read again and again, of which only so many stay open."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_OPEN = 128
"""A process may have 1,024, and a checkpoint of a thousand ranks has more files."""


@dataclass(slots=True)
class _Opened:
    descriptor: int
    users: int = 0


class OpenFiles:
    """Descriptors by name; the last used stay open, and all that are in use. Used by threads."""

    def __init__(self) -> None:
        self._opened: dict[str, _Opened] = {}
        """The last used last."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, name: str, open_it: Callable[[], int]) -> Iterator[int]:
        """Yield the descriptor of a file; `open_it` is called if it is not open."""
        with self._lock:
            known = self._opened.pop(name, None)
            one = known if known is not None else _Opened(open_it())
            one.users += 1
            self._opened[name] = one
            self._close_idle()
        try:
            yield one.descriptor
        finally:
            with self._lock:
                one.users -= 1

    def close(self) -> None:
        """Close all; nobody may use them any more."""
        while self._opened:
            os.close(self._opened.popitem()[1].descriptor)

    def _close_idle(self) -> None:
        many = len(self._opened) - _MOST_OPEN
        if many > 0:
            idle = [name for name, one in self._opened.items() if not one.users]
            for name in idle[:many]:
                os.close(self._opened.pop(name).descriptor)
