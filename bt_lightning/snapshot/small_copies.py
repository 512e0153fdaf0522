"""Copies many small tensors with few system calls, if they are adjacent in an arena.

Separate copies would release and take the GIL thousands of times during training, and
`torch._foreach_copy_` holds it while it inspects thousands of tensors. Source: pwritev(2).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.libc import libc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Piece = tuple[int, int, int]
"""(target address, source address, bytes) of contiguous memory."""
_MOST: Final = 1024  # IOV_MAX of Linux


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class SmallCopies:
    """The copies of `pieces` into a file (an arena's memfd) that is mapped at `address`."""

    def __init__(self, pieces: Sequence[Piece], address: int) -> None:
        self._runs = [
            (
                (_Vector * len(run))(*[_Vector(here, size) for _, here, size in run]),
                run[0][0] - address,
                sum(size for _, _, size in run),
                run,
            )
            for run in _runs(pieces)
        ]

    def copy(self, descriptor: int) -> None:
        """Carry out the copies by `descriptor`, that of the file; gives up the GIL meanwhile."""
        for vectors, offset, size, pieces in self._runs:
            place = ctypes.c_int64(offset)
            if libc().pwritev(descriptor, vectors, len(vectors), place) != size:
                for piece in pieces:  # a signal may have interrupted the call
                    ctypes.memmove(*piece)


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Group the pieces, sorted by target address, into runs without gaps."""
    run: list[Piece] = []
    for piece in sorted(pieces):
        if run and (len(run) == _MOST or run[-1][0] + run[-1][2] != piece[0]):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run
