"""Parallel work with bounded memory: a thread pool, a buffer per thread, and fast copies."""

from __future__ import annotations

import ctypes
import mmap
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_TOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
"""All pages are populated at once: page faults one by one would cost as much as the read."""
_LONG_COPY = 256 * 1024
T = TypeVar("T")
R = TypeVar("R")


def in_parallel(act: Callable[[T], R], items: Collection[T], threads: int) -> list[R]:
    """Call `act` with each of `items`, up to `threads` at a time; return the results in order.

    After the first failure no other call begins; the failure is raised when the running calls have
    ended, so no thread outlives this function. With one thread or one item, this thread does it.
    """
    if min(threads, len(items)) <= 1:
        return [act(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), "bt_lightning store") as pool:
        futures = [pool.submit(act, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
    for future in futures:
        if future in done and (error := future.exception()) is not None:
            raise error
    return [future.result() for future in futures]


class Scratch:
    """One page-aligned buffer per thread, reused."""

    def __init__(self) -> None:
        self._local = threading.local()

    def view(self, size: int) -> memoryview:
        """The first `size` bytes of this thread's buffer; their content is undefined."""
        found: memoryview | None = getattr(self._local, "view", None)
        if found is None or len(found) < max(size, 1):
            self._local.view = None  # free the smaller one first
            found = self._local.view = memoryview(mmap.mmap(-1, max(size, 1), flags=_TOUCHED))
        return found[:size]


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes; large copies release the GIL, since page faults may make them slow."""
    size = len(source)
    if size < _LONG_COPY or len(target) != size or source.readonly:
        target[:] = source
        return
    raw = (ctypes.c_char * size).from_buffer
    ctypes.memmove(raw(target), raw(source), size)


def scatter(source: memoryview, targets: Iterable[memoryview]) -> None:
    """Copy `source` into `targets`, one after the other."""
    for target in targets:
        copy_bytes(target, source[: len(target)])
        source = source[len(target) :]


def fill(
    targets: Iterable[memoryview],
    read: Callable[[memoryview], int | None],
    on_progress: Callable[[int], object],
) -> int:
    """Fill `targets` one after the other by `read`; return the number of bytes.

    `read` fills a part of its argument and returns the number of bytes; 0 ends the call early.
    `on_progress` is called with 0, then after each block.
    """
    filled = reported = 0
    on_progress(0)
    for target in targets:
        rest = target
        while rest:
            count = read(rest[: reported + BLOCK_BYTES - filled])
            if not count:
                return filled
            filled, rest = filled + count, rest[count:]
            if filled - reported == BLOCK_BYTES:  # not for each of many small targets
                on_progress(filled)
                reported = filled
    return filled
