"""Calls that one thread asks another thread to make, between two units of that thread's work."""

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

START_TIMEOUT_S = 1800.0
"""Seconds that a caller waits at most for the unit under way, such as an upload, to end."""


class ThreadCall(Generic[W]):
    """One function to call with the other thread's `W`, and its result."""

    def __init__(self, function: Callable[[W], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: Exception | None = None
        self.result: Future[Any] = Future()

    def run(self, target: W) -> Exception | None:
        """Call the function; return what it raised. The caller gets the outcome by `deliver`."""
        try:
            self._value = self._function(target)
        except (CheckpointError, OSError) as error:
            self._error = error
        return self._error

    def deliver(self) -> None:
        """Give the caller the result or the error."""
        if self._error is not None:
            self.result.set_exception(self._error)
        else:
            self.result.set_result(self._value)


class ThreadCalls(Generic[W]):
    """A queue of calls, guarded by `changed`, which is notified of each change."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._queue: deque[ThreadCall[W]] = deque()
        self._closed = False

    @property
    def waiting(self) -> bool:
        """Whether a call is queued; the caller holds `changed`."""
        return bool(self._queue)

    def wait(self, function: Callable[[W], T], limit_s: float = START_TIMEOUT_S) -> T:
        """Have the other thread call `function`, and return what that returns.

        Waits for the start at most `limit_s` seconds, then until the function returns.

        Raises:
            StoreTransientError: it did not start in time, or the other thread is ending.
            CheckpointError, OSError: what `function` raised.
        """
        call: ThreadCall[W] = ThreadCall(function)
        result: Future[T] = call.result
        with self._changed:
            if not self._closed:
                self._queue.append(call)
                self._changed.notify_all()
                started = lambda: result.running() or result.done() or self._closed  # noqa: E731
                self._changed.wait_for(started, limit_s)
        if not result.running() and result.cancel():
            msg = (
                f"the worker was still busy with other work after {limit_s:.0f} s"
                if not self._closed
                else "the worker is ending"
            )
            raise StoreTransientError(msg)
        return result.result()

    def take(self) -> ThreadCall[W] | None:
        """Take the next call whose caller still waits, as started; the caller holds `changed`."""
        while self._queue:
            call = self._queue.popleft()
            if call.result.set_running_or_notify_cancel():
                self._changed.notify_all()
                return call
        return None

    def close(self) -> None:
        """Refuse all further calls, and those queued; the caller holds `changed`."""
        self._closed = True
        self._queue.clear()
        self._changed.notify_all()
