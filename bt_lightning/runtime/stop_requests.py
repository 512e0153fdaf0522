"""Requests that a run stops, which `jobs stop` leaves on the disk and in the store.

Each place is looked at by a thread of its own: neither a store that hangs nor a dead disk delays
the other, or the job.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final

from typing_extensions import Self

from bt_lightning.errors import CheckpointCorruptError, StoreError
from bt_lightning.localdir.job_record_file import delete_stop_local, read_stop_local
from bt_lightning.runtime.store_timeout import within_store_timeout
from bt_lightning.store.catalog.job_records import delete_stop_request, read_stop_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.job_record import StopRequest
    from bt_lightning.store.interface import Store

DISK_S: Final = 1.0
STORE_S: Final = 5.0
"""Seconds between two looks: a store is asked for one small object 17,000 times a day."""
_FAILED_S: Final = 30.0
_DELETE_S: Final = 5.0


class StopRequests:
    """Looks for a request to stop one run of a job, from `__enter__` to `__exit__`."""

    def __init__(self, run: str, found: Callable[[StopRequest], None]) -> None:
        """Nothing is looked at yet. A request that does not name `run` is of another run.

        `found` is called for each request, by a thread of this object: one that kills may follow
        one that waits.
        """
        self.request: StopRequest | None = None
        """The newest request that was found."""
        self._run = run
        self._found = found
        self._ending = threading.Event()
        self._deletions: list[Callable[[], None]] = []

    def watch_directory(self, root: Path) -> None:
        """Look into a checkpoint directory from now on."""
        self._deletions.append(lambda: delete_stop_local(root))  # one of an earlier run as well
        self._start(lambda: read_stop_local(root), DISK_S)

    def watch_store(self, store: Store, prefix: str) -> None:
        """Look into the job and node at `prefix` of a store; nobody else uses `store`."""
        self._start(
            lambda: read_stop_request(store, prefix),
            STORE_S,
            lambda: delete_stop_request(store, prefix),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking, and delete the requests."""
        self._ending.set()
        for delete in self._deletions:
            with contextlib.suppress(OSError, StoreError):  # it names a run that is over
                within_store_timeout(_DELETE_S, delete, "the store")

    def _start(
        self,
        read: Callable[[], StopRequest | None],
        every_s: float,
        delete: Callable[[], None] | None = None,
    ) -> None:
        def look() -> None:
            wait_s, last = every_s, None
            while not self._ending.wait(wait_s):
                try:
                    request = read()
                except (OSError, StoreError, CheckpointCorruptError):
                    wait_s = max(_FAILED_S, every_s)
                    continue
                wait_s = every_s
                if request is not None and request.run == self._run and request != last:
                    if last is None and delete is not None:
                        self._deletions.append(delete)
                    last = request
                    self.request = request
                    self._found(request)

        threading.Thread(target=look, daemon=True, name="bt_lightning stop requests").start()
