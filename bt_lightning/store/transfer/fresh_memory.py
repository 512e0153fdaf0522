"""New memory for bytes that are read, and the pages that it gets: huge or small, what costs less.

To get a page can cost more than to read and hash the bytes for it. A huge page costs a third of 512
small ones where the system has it at hand, and three times as much on a virtual machine whose host
takes back what is free. Nobody can tell beforehand, so the CPU time of each kind is measured.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.libc import libc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HUGE_BYTES: Final = 2 * 1024 * 1024
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of Linux 5.14."""
_STEP_BYTES: Final = 4 * 1024 * 1024
_LEAST_BYTES: Final = 256 * 1024
"""Below this the pages come one by one as they are written."""
_FIRST_TRIAL_BYTES: Final = 64 * 1024 * 1024


def fresh_memory(size: int, phase: int = 0) -> memoryview:
    """New private memory of `size` bytes, without pages yet; it is freed with its last view.

    Its address is congruent to `phase` modulo `HUGE_BYTES`: with the offset of its bytes in a file
    for `phase`, pages of the file lie in pages of the memory. Raises `MemoryError`.
    """
    try:
        memory = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        msg = f"no memory for {size:,} bytes"
        raise MemoryError(msg) from error
    first = (phase - address_of(memory)) % HUGE_BYTES
    return memoryview(memory)[first : first + size]


def address_of(memory: mmap.mmap | memoryview) -> int:
    """The address of writable memory that is not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class PageCosts:
    """Which kind of pages costs less, by what each cost last. Threads may share one."""

    def __init__(self) -> None:
        self._costs: dict[bool, float] = {}
        self._until_trial = self._between = _FIRST_TRIAL_BYTES

    @property
    def untried(self) -> bool | None:
        """The kind that is to be tried next on one huge page's bytes: True for huge; or None."""
        if len(self._costs) < 2:  # noqa: PLR2004 - kinds
            return True not in self._costs
        return not self.huge if self._until_trial <= 0 else None

    @property
    def huge(self) -> bool:
        """Whether huge pages cost less."""
        return self._costs.get(True, 0.0) <= self._costs.get(False, 0.0)

    def note(self, size: int, seconds: float, *, huge: bool) -> None:
        """So many bytes of this kind took so much CPU time."""
        before, known = self.huge, len(self._costs)
        self._costs[huge] = seconds / size
        if known < 2 or self.huge != before:  # noqa: PLR2004
            self._until_trial = self._between = _FIRST_TRIAL_BYTES
        elif huge != before:  # a trial that changed nothing: the next one is further away
            self._between *= 2
            self._until_trial = self._between
        else:
            self._until_trial -= size


_costs: Final = PageCosts()


def give_pages(targets: Iterable[memoryview]) -> None:
    """Give memory that is about to be written its pages, without a fault for each.

    Memory that has pages, as that of a live tensor, stays as it is. Where the system cannot do it,
    or has no memory for it, pages come as they are written. Called by the thread that writes next.
    """
    if sys.platform != "linux":
        return
    for target in targets:
        if len(target) >= _LEAST_BYTES:
            for start, size in _steps(address_of(target), len(target)):
                if not _has_pages(start, size):
                    _give(start, size)


def _steps(address: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the whole pages of some memory into parts that huge pages fill, and others."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    while start < end:
        whole = min(end - start, _STEP_BYTES) // HUGE_BYTES * HUGE_BYTES
        to_next = HUGE_BYTES - start % HUGE_BYTES
        taken = whole if whole and to_next == HUGE_BYTES else min(to_next, end - start)
        yield start, taken
        start += taken


def _has_pages(start: int, size: int) -> bool:
    """Whether the page in the middle is there, by mincore(2): a neighbour may share the outer ones.

    To populate what is there costs nothing: it would be taken for what that kind of pages costs.
    """
    middle = start + size // 2 // mmap.PAGESIZE * mmap.PAGESIZE
    found = ctypes.c_ubyte()
    place, page = ctypes.c_void_p(middle), ctypes.c_size_t(mmap.PAGESIZE)
    return libc().mincore(place, page, ctypes.byref(found)) == 0 and bool(found.value & 1)


def _give(start: int, size: int) -> None:
    """Populate whole pages; those that fill huge pages by the kind that costs less."""
    if start % HUGE_BYTES or size % HUGE_BYTES:
        _advise(start, size, _POPULATE_WRITE)
        return
    trial = _costs.untried
    if trial is not None and size > HUGE_BYTES:
        _give(start, HUGE_BYTES)
        start, size = start + HUGE_BYTES, size - HUGE_BYTES
        trial = _costs.untried
    huge = _costs.huge if trial is None else trial
    _advise(start, size, mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    began = time.thread_time()
    if _advise(start, size, _POPULATE_WRITE):
        _costs.note(size, time.thread_time() - began, huge=huge)
    if not huge:
        _advise(start, size, mmap.MADV_HUGEPAGE)  # the kernel may join them when it has time


def _advise(start: int, size: int, advice: int) -> bool:
    """madvise(2), a hint: whether the kernel took it."""
    return bool(libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice) == 0)
