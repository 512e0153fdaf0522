"""Read ranges of a file past the page cache, into memory that lies as the file does.

A direct read makes no copy of its own, and leaves the page cache to the dataset. What is in the
page cache is not read again from the disk. Source: open(2), mincore(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.localdir.libc import libc
from bt_lightning.store.transfer.block_verifier import cut
from bt_lightning.store.transfer.fresh_memory import address_of
from bt_lightning.store.transfer.parallel_reads import scatter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE: Final = 4096
"""Bytes: offsets, addresses and sizes of direct reads are multiples of it."""
LEAST_BYTES: Final = 1024 * 1024
"""A smaller read takes longer past the page cache, which reads ahead."""
_LEAST_PIECE: Final = 64 * 1024
_MOST_PIECES: Final = 1024
"""What preadv(2) takes at once (IOV_MAX)."""
_EVERY: Final = 16
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class NoDirectReads(OSError):  # noqa: N818 - no error: the page cache is read instead
    """Direct reads of a file are not possible, or do not pay."""


def open_direct(file: int) -> int:
    """Another descriptor of an open file, for direct reads.

    Raises `NoDirectReads` where the system refuses them, and on file systems without a disk, as
    those of a network: their reads ahead hide the way.
    """
    if sys.platform != "linux" or not os.major(os.fstat(file).st_dev):
        raise NoDirectReads
    try:
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        raise NoDirectReads from error


def is_cached(file: int, offset: int, size: int) -> bool:
    """Whether the page cache has at least half of a range; `offset` is a multiple of a page.

    Samples every 16th page. The kernel tells it to those alone who may write the file; to others it
    says yes.
    """
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    at = _map()(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, offset)
    if at == _MAP_FAILED:
        return True
    known = libc().mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), found) == 0
    libc().munmap(ctypes.c_void_p(at), ctypes.c_size_t(size))
    sample = found[::_EVERY]
    return not known or 2 * sum(page & 1 for page in sample) >= len(sample)


@cache
def _map() -> Any:
    """mmap(2), of which the address is needed."""
    function = libc()["mmap"]
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    return function


def read_direct(file: int, offset: int, targets: Sequence[memoryview], buffer: memoryview) -> int:
    """Fill `targets`, one after the other, with a file's bytes from `offset` on, by direct reads.

    Whole pages of targets whose address is congruent to their place in the file are read into them,
    all others into `buffer`, from which they are copied. `offset` is a multiple of `PAGE`, and so
    is the address of `buffer`, which is as large as the targets, rounded up to `PAGE`.

    Returns:
        How many bytes there were: fewer only at the end of the file.

    Raises:
        NoDirectReads: the file system refuses such a read, or the disk failed.
    """
    direct = list(_direct_parts(targets))
    pieces, copied, reached = [], [], 0
    size = sum(map(len, targets))
    for start, part in [*direct, (-(-size // PAGE) * PAGE, memoryview(b""))]:
        if start > reached:
            pieces.append(buffer[reached:start])
            copied.append((reached, start))
        if part:
            pieces.append(part)
        reached = start + len(part)
    count = _read_pieces(file, offset, pieces)
    for start, stop in copied:
        scatter(buffer[start:stop], cut(targets, start, stop - start))
    return min(count, size)


def _direct_parts(targets: Sequence[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """The pages that are read into the targets themselves, and where each begins in the range."""
    if 2 * len(targets) >= _MOST_PIECES:
        return
    begin = 0
    for target in targets:
        end = begin + len(target)
        start, stop = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
        if stop - start >= _LEAST_PIECE and not (address_of(target) - begin) % PAGE:
            yield start, target[start - begin : stop - begin]
        begin = end


def _read_pieces(file: int, offset: int, pieces: list[memoryview]) -> int:
    done = 0
    while pieces:
        try:
            count = os.preadv(file, pieces[:_MOST_PIECES], offset + done)
        except OSError as error:  # a disk that fails fails the read through the cache as well
            raise NoDirectReads from error
        done += count
        if count % PAGE or not count:  # the end of the file
            break
        pieces = cut(pieces, count, sum(map(len, pieces)))
    return done
