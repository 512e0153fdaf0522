"""Several readers at a time, each with a buffer of its own: memory is threads times a buffer."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.manifest import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

HUGE_BYTES = 2 * 1024 * 1024
_FRESH = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_TOUCHED = _FRESH | mmap.MAP_POPULATE
"""Populated at once: faults one by one would cost as much as the reading."""
_LONG_COPY = 256 * 1024
T = TypeVar("T")
R = TypeVar("R")


def in_parallel(act: Callable[[T], R], items: Collection[T], threads: int) -> list[R]:
    """Do `act` for each of `items`, up to `threads` at a time; return the results in order.

    The first failure keeps what has not begun from beginning; it is raised when what had begun is
    over, so no thread outlives the call. With one thread or one item, this thread does it.
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
    """One page-aligned buffer for each thread that asks, used again and again."""

    def __init__(self) -> None:
        self._local = threading.local()

    def view(self, size: int) -> memoryview:
        """`size` bytes of this thread's buffer, from its front; what was in it may be lost."""
        found: memoryview | None = getattr(self._local, "view", None)
        if found is None or len(found) < max(size, 1):
            self._local.view = None  # let go of the smaller one first
            found = self._local.view = memoryview(mmap.mmap(-1, max(size, 1), flags=_TOUCHED))
        return found[:size]


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes; many of them without the interpreter's lock, as they may touch fresh memory."""
    size = len(source)
    if size < _LONG_COPY or len(target) != size or source.readonly:
        target[:] = source
        return
    raw = (ctypes.c_char * size).from_buffer
    ctypes.memmove(raw(target), raw(source), size)


def scatter(source: memoryview, targets: Iterable[memoryview]) -> None:
    """Copy bytes to where they belong, one target after the other."""
    for target in targets:
        copy_bytes(target, source[: len(target)])
        source = source[len(target) :]


def fill(
    targets: Iterable[memoryview],
    read: Callable[[memoryview], int | None],
    on_progress: Callable[[int], object],
) -> int:
    """Fill one target after the other by `read`, which says how many bytes it put where it may.

    Ends early when it put none. `arrived` hears of each block, at first of 0. Returns the bytes.
    """
    filled = told = 0
    on_progress(0)
    for target in targets:
        rest = target
        while rest:
            count = read(rest[: told + BLOCK_BYTES - filled])
            if not count:
                return filled
            filled, rest = filled + count, rest[count:]
            if filled - told == BLOCK_BYTES:  # not for each of many small ones
                on_progress(filled)
                told = filled
    return filled


def in_huge_pages(size: int) -> memoryview:
    """Fresh memory that is its caller's, and is given back with the last view of it.

    It begins with a huge page, where the system has them: touching 4 KiB at a time can cost more
    than reading and hashing what goes there. Raises `MemoryError`.
    """
    try:
        memory = mmap.mmap(-1, size + 2 * HUGE_BYTES, flags=_FRESH)
    except OSError as error:
        msg = f"no memory for {size:,} bytes"
        raise MemoryError(msg) from error
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = -address % HUGE_BYTES
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # of a kernel without them
            memory.madvise(advice, first, round(size / HUGE_BYTES) * HUGE_BYTES)
    return memoryview(memory)[first : first + size]
