"""Writes a safetensors file of whole tensors from shards: each shard is read once, in its order.

What a shard has goes where it belongs in the file. So no bytes are read twice, whatever the number
of ranks, and memory holds a part of one box.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.direct_io import reserve
from bt_lightning.localdir.fsync import write_all
from bt_lightning.manage.tensor_bytes import item_bytes, whole_bytes
from bt_lightning.sharding.boxes import tiles, whole_box
from bt_lightning.sharding.read_plan import copy_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.manage.serving_weights import TensorFilePlan
    from bt_lightning.manage.tensor_bytes import StoredTensor
    from bt_lightning.manage.verified_blocks import VerifiedBlocks
    from bt_lightning.sharding.read_plan import BoxCopy

_PART_BYTES: Final = 16 * 1024 * 1024
_SHORT_RUN: Final = 1024
_MANY_RUNS: Final = 65536
"""Bytes of a run, and number of runs of a tensor: shorter and more are put together in memory."""


@dataclass(frozen=True, slots=True)
class _Move:
    """What a shard has of a tensor, and where the tensor begins in the file."""

    file: str
    copy: BoxCopy
    begin: int


def write_joined(file: Path, plan: TensorFilePlan, blocks: VerifiedBlocks) -> None:
    """Write the new `file`, durably.

    Raises:
        CheckpointCorruptError: bytes differ from the manifest, or a part of a tensor is missing.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
        OSError: the disk refused.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        reserve(descriptor, plan.size)
        write_all(descriptor, memoryview(plan.header))
        moves, begin = [], len(plan.header)
        for stored in plan.tensors:
            own = list(_moves(stored, begin))
            if _is_choppy(own):
                _write_slabs(descriptor, begin, stored, blocks)
            else:
                moves += own
            begin += stored.tensor.size
        for move in sorted(moves, key=lambda one: (one.file, one.copy.source)):
            _carry_out(descriptor, move, blocks)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _moves(stored: StoredTensor, begin: int) -> Iterator[_Move]:
    """The moves that make a tensor; together each of its items once."""
    tensor = stored.tensor
    whole = whole_box(tensor.shape)
    if not tiles(tensor.shape, (saved.box for saved in stored.boxes)):
        msg = f"the boxes of {tensor.name} overlap, or are not all of it"
        raise CheckpointCorruptError(msg)
    item = item_bytes(tensor)
    for saved in stored.boxes:
        copy = copy_of(saved.box, whole, saved.offset, item)
        if copy is not None:
            yield _Move(saved.file, copy, begin)


def _is_choppy(moves: list[_Move]) -> bool:
    runs = sum(move.copy.size // move.copy.run for move in moves)
    return runs > _MANY_RUNS and any(move.copy.run < _SHORT_RUN for move in moves)


def _write_slabs(descriptor: int, begin: int, stored: StoredTensor, blocks: VerifiedBlocks) -> None:
    for part in whole_bytes(blocks, stored):
        _write_at(descriptor, part, begin)
        begin += len(part)


def _carry_out(descriptor: int, move: _Move, blocks: VerifiedBlocks) -> None:
    """Read a box in parts, and write its runs to their places."""
    copy = move.copy
    for start in range(copy.source, copy.end, _PART_BYTES):
        end = min(copy.end, start + _PART_BYTES)
        blocks.fetch([(move.file, start, end)])
        part = memoryview(bytearray(end - start))
        blocks.read_into(move.file, start, part)
        for inner in copy.within(start, end):
            for source, target in _runs_of(inner):
                data = part[source - start : source - start + inner.run]
                _write_at(descriptor, data, move.begin + target)


def _runs_of(copy: BoxCopy) -> Iterator[tuple[int, int]]:
    """Source and target of each run."""
    places = [(copy.source, copy.target)]
    for loop in copy.loops:
        places = [
            (source + turn * loop.source_step, target + turn * loop.target_step)
            for source, target in places
            for turn in range(loop.count)
        ]
    yield from places


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
