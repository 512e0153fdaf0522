"""What is left of a save when its call has returned: the copy, and a look at what it leaves out."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.part_messages import MissPart
from bt_lightning.snapshot.copy_threads import copy_threads
from bt_lightning.snapshot.save_record import torn_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from bt_lightning.sharding.save_part import MissingCause
    from bt_lightning.snapshot.base_table import LeftOut
    from bt_lightning.snapshot.copy_and_torn_check import Capture
    from bt_lightning.snapshot.save_record import SaveRecord
    from bt_lightning.worker.worker_handle import Worker
    from bt_lightning.worker_messages import CommitImage

T = TypeVar("T")
_WAIT_S = 3600.0
"""As long as for a copy; what is verified later than that is found to be changed."""


class SaveFinisher:
    """Completes saves in their order and lets the worker commit them; makes no decisions.

    The methods are the training thread's. Copies are made by one thread, since an optimizer step
    may wait for them, and frozen weights are verified by another, which nothing waits for.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._copies = copy_threads(1, "bt_lightning snapshot")
        self._checks: ThreadPoolExecutor | None = None
        self._in_check: list[tuple[Future[None], LeftOut]] = []

    def finish(
        self,
        capture: Capture,
        message: CommitImage,
        record: SaveRecord,
        pages_ready: Future[None],
        left_out: LeftOut | None,
    ) -> Future[None]:
        """Complete the copy, verify what was left out, and send the commit message to the worker.

        The future has the error of either, `BaseChangedError` if something else was left out than
        the base; after one nothing is committed, and of a part all ranks are told.
        """
        returned = time.perf_counter()

        def copy() -> None:
            try:
                if not capture.done:
                    wait([pages_ready])  # copying into unpopulated pages is slower
                    capture.finish()
            except BaseException as error:
                self._miss(message, f"{type(error).__name__}: {error}", "failed")
                raise
            record.copy_ms = 1000 * max(0.0, capture.ended_at - returned)
            if left_out is None:
                commit()

        def commit() -> None:
            if capture.torn:
                self._miss(message, str(torn_error(record)), "torn")
            else:
                self._worker.commit(message)

        copied = self._copies.submit(copy)
        if left_out is None:
            return copied

        def check() -> None:
            copied.result()
            left_out.verify()
            commit()

        return self._check(check, left_out)

    def before_step(self) -> None:
        """Wait for the verification of weights that an optimizer step may change by now."""
        if not self._in_check:
            return
        self._in_check = [one for one in self._in_check if not one[0].done()]
        wait([future for future, left_out in self._in_check if left_out.trains], _WAIT_S)

    def beside_training(self, act: Callable[[], T]) -> Future[T]:
        """Run `act` on the copy thread."""
        return self._copies.submit(act)

    def verify(self, left_out: LeftOut) -> None:
        """Verify what the next save would leave out; the errors are in `left_out.changed`."""
        self._check(left_out.verify, left_out)

    def close(self) -> None:
        """End the threads, after all is complete."""
        self._copies.shutdown()
        if self._checks is not None:
            self._checks.shutdown()

    def _miss(self, message: CommitImage, why: str, cause: MissingCause) -> None:
        """Let the other ranks know at once, whatever the training thread is doing."""
        number, part = message.number, message.part
        if part is not None:
            self._worker.commit(MissPart(number=number, part=part, why=why, cause=cause))

    def _check(self, act: Callable[[], None], left_out: LeftOut) -> Future[None]:
        if self._checks is None:
            self._checks = copy_threads(1, "bt_lightning base")
        future = self._checks.submit(act)
        self._in_check.append((future, left_out))
        return future
