"""The bytes of whole tensors, of one piece or of many, verified and in bounded memory."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.sharding.boxes import Box
from bt_lightning.sharding.read_plan import plan_reads
from bt_lightning.tensor_files.tensor_headers import BITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bt_lightning.manage.verified_blocks import VerifiedBlocks
    from bt_lightning.sharding.read_plan import BoxCopy, SavedBox
    from bt_lightning.tensor_files.tensor_headers import Tensor

_KEPT_BLOCKS: Final = 24
"""Blocks of files that are kept: what two reads in a row share is read and compared once."""
_LEAST_SLAB: Final = 16 * 1024 * 1024
_MOST_SLAB: Final = 64 * 1024 * 1024
_REQUEST_BLOCKS: Final = 2
_WIDTHS: Final[tuple[tuple[int, Literal["Q", "I", "H", "B"]], ...]] = (
    (8, "Q"),
    (4, "I"),
    (2, "H"),
    (1, "B"),
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A whole tensor of a checkpoint: what it is, and the boxes that hold it, each item once."""

    tensor: Tensor
    boxes: tuple[SavedBox, ...]
    divided: str = ""
    """How it is divided over ranks, for people; empty if it is in one file by design."""


def whole_bytes(blocks: VerifiedBlocks, stored: StoredTensor) -> Iterator[memoryview]:
    """Yield the bytes of a whole tensor in order, row-major, in parts of some 16 to 64 MiB.

    Each part is valid until the next is asked for.

    Raises:
        CheckpointCorruptError: bytes differ from the manifest, or a part of the tensor is missing.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """
    tensor = stored.tensor
    if len(stored.boxes) == 1:
        (saved,) = stored.boxes
        for start in range(0, tensor.size, _LEAST_SLAB):
            begin = saved.offset + start
            end = begin + min(_LEAST_SLAB, tensor.size - start)
            blocks.fetch([(saved.file, begin, end)])
            part = memoryview(bytearray(end - begin))
            blocks.read_into(saved.file, begin, part)
            yield part
        return
    item = item_bytes(tensor)
    most = min(_MOST_SLAB, max(_LEAST_SLAB, len(stored.boxes) * BLOCK_BYTES))
    for slab in slabs(tensor.shape, item, most):
        target = memoryview(bytearray(slab.items * item))
        copies = plan_reads(tensor.name, slab, stored.boxes, item)
        blocks.fetch([(path, copy.source, copy.end) for path, copy in copies])
        for path, copy in copies:
            _put(blocks, path, copy, target)
        yield target


def item_bytes(tensor: Tensor) -> int:
    """Bytes of one item of a tensor that is divided.

    Raises:
        CheckpointCorruptError: its items are of unknown size, or smaller than a byte.
    """
    bits = BITS.get(tensor.dtype, 0)
    if not bits or bits % 8:
        msg = f"{tensor.name} is {tensor.dtype}, whose items cannot be divided over ranks"
        raise CheckpointCorruptError(msg)
    return bits // 8


def slabs(shape: Sequence[int], item: int, most_bytes: int) -> Iterator[Box]:
    """Boxes that follow each other in a row-major tensor and cover it; each of some `most_bytes`.

    All dimensions before one have the size 1, all behind it are whole.
    """
    if not math.prod(shape):
        return
    most = max(item, most_bytes)
    if math.prod(shape) * item <= most:
        yield Box((0,) * len(shape), tuple(shape))
        return
    cut = next(d for d in range(len(shape)) if math.prod(shape[d + 1 :]) * item <= most)
    rest = tuple(shape[cut + 1 :])
    rows = max(1, most // (math.prod(rest) * item))
    for front in itertools.product(*map(range, shape[:cut])):
        for begin in range(0, shape[cut], rows):
            sizes = (*(1,) * cut, min(rows, shape[cut] - begin), *rest)
            yield Box((*front, begin, *(0,) * len(rest)), sizes)


def _put(blocks: VerifiedBlocks, path: str, copy: BoxCopy, target: memoryview) -> None:
    """Read what a slab has of a box, which is one range of its file, and put it into its places."""
    if not copy.loops:
        blocks.read_into(path, copy.source, target[copy.target : copy.target + copy.run])
        return
    source = memoryview(bytearray(copy.end - copy.source))
    blocks.read_into(path, copy.source, source)
    *outer, last = copy.loops
    size = last.count * copy.run
    for turn in itertools.product(*(range(loop.count) for loop in outer)):
        taken = sum(at * loop.source_step for at, loop in zip(turn, outer, strict=True))
        more = sum(at * loop.target_step for at, loop in zip(turn, outer, strict=True))
        part = source[taken : taken + size]
        _spread(part, target, copy.target + more, copy.run, last.target_step)


def _spread(source: memoryview, target: memoryview, begin: int, run: int, stride: int) -> None:
    """Put runs of bytes that follow each other in `source` at every `stride` of `target`."""
    rows = len(source) // run
    sizes = (run, stride, begin, len(target))
    width, form = next(one for one in _WIDTHS if not any(size % one[0] for size in sizes))
    if run // width >= rows:
        for row in range(rows):
            at = begin + row * stride
            target[at : at + run] = source[row * run : (row + 1) * run]
        return
    items, places = source.cast(form), target.cast(form)
    step, width_of_run = stride // width, run // width
    first = begin // width
    end = first + (rows - 1) * step
    for column in range(width_of_run):
        places[first + column : end + column + 1 : step] = items[column::width_of_run]
