"""How far two tensors of equal shape and dtype are apart, in bounded memory and without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.tensor_files.tensor_headers import DifferenceNorms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NUMPY: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "BOOL": "?",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
}
_PIECE_BYTES: Final = 4 * 1024 * 1024
"""Bytes that are numbers at a time: as doubles they take up to eight times as much."""


def can_measure(dtype: str) -> bool:
    """Whether items of the dtype, in safetensors' names, have norms here."""
    return dtype in _NUMPY or dtype == "BF16"


def difference_norms(
    dtype: str,
    before: Iterator[memoryview],
    after: Iterator[memoryview],
    on_bytes: Callable[[int], object] = int,
) -> DifferenceNorms:
    """Norms of `after - before`, of the items of two tensors in parts, in row-major order.

    Parts may be cut anywhere, also within an item. `on_bytes` is called with the bytes of each
    tensor that were compared. An item that is no number in one of them makes the norms NaN.
    """
    import numpy as np

    squares, own, largest = 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):
        for old, new in _pieces(before, after):
            first, second = _numbers(dtype, old), _numbers(dtype, new)
            apart = np.abs(second - first)
            apart[first == second] = 0.0  # of infinities that are the same
            squares += float(np.dot(apart, apart))
            own += float(np.vdot(first, first).real)
            largest = _larger(largest, float(apart.max(initial=0.0)))
            on_bytes(len(old))
    return DifferenceNorms(math.sqrt(squares), math.sqrt(own), largest)


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _pieces(
    before: Iterator[memoryview], after: Iterator[memoryview]
) -> Iterator[tuple[bytes, bytes]]:
    """The same ranges of both, each of a multiple of 8 bytes but for the last."""
    left, right = bytearray(), bytearray()
    one, other = _short(before), _short(after)
    while True:
        for held, more in ((left, one), (right, other)):
            while len(held) < _PIECE_BYTES and (part := next(more, None)) is not None:
                held.extend(part)
        size = min(len(left), len(right), _PIECE_BYTES)
        if not size:
            return
        yield bytes(left[:size]), bytes(right[:size])
        del left[:size], right[:size]


def _short(parts: Iterator[memoryview]) -> Iterator[memoryview]:
    for part in parts:
        for start in range(0, len(part), _PIECE_BYTES):
            yield part[start : start + _PIECE_BYTES]


def _numbers(dtype: str, data: bytes) -> Any:
    """Items as doubles, or as complex doubles."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a 32-bit float
        halves = np.frombuffer(data, "<u2").astype("<u4") << 16
        return halves.view("<f4").astype(np.float64)
    items = np.frombuffer(data, _NUMPY[dtype])
    return items.astype(np.complex128 if dtype == "C64" else np.float64)
