"""Wrappers of a store: `RetryingStore` retries transient errors, `LateStore` opens on first use."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import StoreTransientError
from bt_lightning.store.interface import AnsweredTooSlowlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from bt_lightning.store.interface import ObjectInfo, ReadProgress, Reuse, Source, Store

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 60.0


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` in a row; a random `jitter` of 0..1 spreads the writers."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 10)) * (0.5 + jitter / 2))


class RetryCount:
    """How often something was tried again. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self.value += 1


request_retries = RetryCount()
"""Requests to stores that this process repeated."""


class LateStore:
    """A `Store` that is opened at its first use: some connect when opened, which may fail."""

    def __init__(self, open_it: Callable[[], Store]) -> None:
        self._open = open_it

    @property
    def name(self) -> str:
        """The opened store's."""
        return self._open().name

    @property
    def distant(self) -> bool:
        """The opened store's."""
        return self._open().distant

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Open, then send."""
        self._open().send(source, key, reuse)

    def put(self, key: str, data: bytes) -> None:
        """Open, then put."""
        self._open().put(key, data)

    def put_new(self, key: str, data: bytes) -> None:
        """Open, then put."""
        self._open().put_new(key, data)

    def read(self, key: str) -> bytes | None:
        """Open, then read."""
        return self._open().read(key)

    def size(self, key: str) -> int | None:
        """Open, then ask."""
        return self._open().size(key)

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Open, then read."""
        self._open().read_into(key, offset, *targets, on_progress=on_progress)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Open, then list."""
        return self._open().list(prefix)

    def delete(self, keys: Collection[str]) -> None:
        """Open, then delete."""
        self._open().delete(keys)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Open, then abandon."""
        self._open().abandon(prefix, keep)

    def sign(self, key: str, expires_s: int) -> str:
        """Open, then sign."""
        return self._open().sign(key, expires_s)


class RetryingStore:
    """A `Store` that tries each call up to `tries` times, with a backoff in between."""

    def __init__(
        self, inner: Store, tries: int = 4, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._inner = inner
        self._tries = tries
        self._sleep = sleep

    @property
    def name(self) -> str:
        """The inner store's."""
        return self._inner.name

    @property
    def distant(self) -> bool:
        """The inner store's."""
        return self._inner.distant

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Retry: the same bytes to the same key are idempotent."""
        self._try(lambda: self._inner.send(source, key, reuse))

    def put(self, key: str, data: bytes) -> None:
        """Retry; idempotent."""
        self._try(lambda: self._inner.put(key, data))

    def put_new(self, key: str, data: bytes) -> None:
        """Retry: a first try whose answer was lost is recognised by its bytes."""
        self._try(lambda: self._inner.put_new(key, data))

    def read(self, key: str) -> bytes | None:
        """Retry; idempotent."""
        return self._try(lambda: self._inner.read(key))

    def size(self, key: str) -> int | None:
        """Retry; idempotent."""
        return self._try(lambda: self._inner.size(key))

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Retry: what a failed try wrote is written again, and `on_progress` is called with 0."""

        def read() -> None:
            on_progress(0)
            self._inner.read_into(key, offset, *targets, on_progress=on_progress)

        self._try(read)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Retry: the listing is read in full before the first object is yielded."""
        return iter(self._try(lambda: list(self._inner.list(prefix))))

    def delete(self, keys: Collection[str]) -> None:
        """Retry; idempotent."""
        self._try(lambda: self._inner.delete(keys))

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Retry; idempotent."""
        self._try(lambda: self._inner.abandon(prefix, keep))

    def sign(self, key: str, expires_s: int) -> str:
        """Retry; idempotent."""
        return self._try(lambda: self._inner.sign(key, expires_s))

    def _try(self, call: Callable[[], T]) -> T:
        for failures in range(self._tries - 1):
            try:
                return call()
            except AnsweredTooSlowlyError:
                raise
            except StoreTransientError:
                request_retries.add()
                self._sleep(backoff(failures, random.random()))
        return call()
