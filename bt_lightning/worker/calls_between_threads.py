"""What one thread has another one do for it, between two units of its own work."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bt_lightning.errors import CheckpointError, StoreTransientError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

T = TypeVar("T")
W = TypeVar("W")

TURN_S = 1800.0
"""Longest wait for the unit under way: an upload of the checkpoint before, say."""


class ThreadCall(Generic[W]):
    """One thing to do with the `W` of the other thread."""

    def __init__(self, act: Callable[[W], Any]) -> None:
        self._act = act
        self._value: Any = None
        self._error: Exception | None = None
        self.result: Future[Any] = Future()

    def run(self, tool: W) -> Exception | None:
        """Do it; return what it raised. Who waits hears of it by `tell`."""
        try:
            self._value = self._act(tool)
        except (CheckpointError, OSError) as error:
            self._error = error
        return self._error

    def tell(self) -> None:
        """Let who waits go on."""
        if self._error is not None:
            self.result.set_exception(self._error)
        else:
            self.result.set_result(self._value)


class ThreadCalls(Generic[W]):
    """A queue of them, guarded by `changed`, which is notified when it changes."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._queue: deque[ThreadCall[W]] = deque()
        self._closed = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to do; `changed` is held."""
        return bool(self._queue)

    def wait(self, act: Callable[[W], T], limit_s: float = TURN_S) -> T:
        """Have `act` done, and wait for it; once it has begun, for as long as it takes.

        Raises:
            StoreTransientError: it did not begin within `limit_s` seconds, or never will.
            CheckpointError, OSError: what it raised.
        """
        errand: ThreadCall[W] = ThreadCall(act)
        result: Future[T] = errand.result
        with self._changed:
            if not self._closed:
                self._queue.append(errand)
                self._changed.notify_all()
                begun = lambda: result.running() or result.done() or self._closed  # noqa: E731
                self._changed.wait_for(begun, limit_s)
        if not result.running() and result.cancel():
            msg = (
                f"the worker has not come to it within {limit_s:.0f} s"
                if not self._closed
                else "the worker is leaving"
            )
            raise StoreTransientError(msg)
        return result.result()

    def take(self) -> ThreadCall[W] | None:
        """The next one that somebody still waits for, begun; `changed` is held."""
        while self._queue:
            errand = self._queue.popleft()
            if errand.result.set_running_or_notify_cancel():
                self._changed.notify_all()
                return errand
        return None

    def close(self) -> None:
        """No more will be done; `changed` is held."""
        self._closed = True
        self._queue.clear()
        self._changed.notify_all()
