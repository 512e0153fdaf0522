"""The threads that send the parts of one upload; all have ended when it ends."""

from __future__ import annotations

import collections
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.store.s3.operations import Stopped
from bt_lightning.store.s3.request_errors import SLOW_DOWN, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bt_lightning.store.bandwidth_limit import Bandwidth
    from bt_lightning.store.s3.concurrency import Concurrency
    from bt_lightning.store.s3.part_plan import Part

P = TypeVar("P", bound="Part")


class PartSenders:
    """One run over the parts of an upload. The first error ends it, and is raised by `run`."""

    def __init__(self, concurrency: Concurrency, bandwidth: Bandwidth | None = None) -> None:
        self._concurrency = concurrency
        self._bandwidth = bandwidth
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._running = 0
        self._error: BaseException | None = None

    def run(self, parts: Iterable[P], do: Callable[[P], None]) -> None:
        """Call `do` with each part once, in any order, and return when all are done.

        Raises what `do` raised, after every thread has ended.
        """
        waiting = collections.deque(parts)
        threads: list[threading.Thread] = []
        try:
            with self._changed:
                while (waiting and not self._stop.is_set()) or self._running:
                    for _ in range(min(self._concurrency.width - self._running, len(waiting))):
                        if self._stop.is_set():
                            break
                        thread = threading.Thread(
                            target=self._work, args=(waiting, do), name="bt-s3-send", daemon=True
                        )
                        try:
                            thread.start()
                        except RuntimeError:  # the limit of threads is reached
                            if not self._running:
                                raise
                            break  # the threads that run do all parts, slower
                        self._running += 1
                        threads.append(thread)
                    self._changed.wait()
        finally:
            self._stop.set()  # an interrupt of this thread stops the others at their next piece
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _work(self, waiting: collections.deque[P], do: Callable[[P], None]) -> None:
        try:
            while (part := self._next(waiting)) is not None:
                do(part)
                with self._changed:
                    self._concurrency.finished()
                    self._changed.notify()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            with self._changed:
                if self._error is None:
                    self._error = error
                self._stop.set()
                self._running -= 1
                self._changed.notify()

    def _next(self, waiting: collections.deque[P]) -> P | None:
        with self._changed:
            if self._stop.is_set() or not waiting or self._running > self._concurrency.width:
                self._running -= 1
                self._changed.notify()
                return None
            return waiting.popleft()

    def throttle(self, most: int) -> int:
        """Wait until bytes may be sent; return how many, at most `most`.

        Raises `Stopped` when the run has ended.
        """
        if self._bandwidth is not None:
            most, wait = self._bandwidth.take(most, time.monotonic())
            self.rest(wait)
        if self._stop.is_set():
            raise Stopped
        with self._changed:
            if self._concurrency.sent(most, time.monotonic()):
                self._changed.notify_all()
        return most

    def rest(self, seconds: float) -> None:
        """Wait that many seconds, or until the run ends."""
        self._stop.wait(seconds)

    def record_failure(self, failure: Failure, began: float) -> None:
        """Use fewer connections if the failure of a request that began at `began` asks for it."""
        if failure.code in SLOW_DOWN:
            with self._changed:
                self._concurrency.slow_down(began, time.monotonic())
