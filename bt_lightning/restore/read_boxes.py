"""Reads boxes of saved tensors into memory: few reads of whole blocks, each verified."""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from bt_lightning.restore.load_to_device import DeviceMemory
from bt_lightning.sharding.read_plan import BoxCopy, blocks_of
from bt_lightning.snapshot.safetensors_layout import tensor_bytes
from bt_lightning.store.transfer.byte_ranges import ranges
from bt_lightning.store.transfer.parallel_reads import Scratch, in_parallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bt_lightning.file_entries import FileEntry

_AHEAD = 16
"""Ranges that a disk fetches before they are read: 64 MiB of files."""
_LEAST_DIRECT = 4096
"""Bytes of a run that is read directly into its place, not into a buffer and copied."""


@dataclass(frozen=True, slots=True, eq=False)
class BytesPlace:
    """Where a copy of a file's bytes goes."""

    copy: BoxCopy
    memory: torch.Tensor
    """Contiguous, on any device."""


class BlockFiles(Protocol):
    """Files of a checkpoint. Used by several threads at once."""

    @property
    def piece_bytes(self) -> int:
        """The best size of a read, in bytes: a multiple of any block's."""

    @property
    def gap_bytes(self) -> int:
        """Up to so many bytes that nobody wants are read to save another read."""

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""

    def entry(self, path: str) -> FileEntry:
        """The file."""

    def front(self, path: str) -> memoryview:
        """The first bytes of the file, whole blocks, if they are in memory."""

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """These blocks are read soon: where it helps, they are fetched until then."""

    def read_blocks(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets`, together whole blocks, with verified bytes."""


def read_boxes(
    files: BlockFiles,
    places: Mapping[str, Sequence[BytesPlace]],
    buffers: DeviceMemory | None = None,
) -> int:
    """Bring bytes of files to their places: path of the file -> what goes where.

    Each block is read once for all places on the host and on one device. On the host it is read
    directly into them, on a device, or if `buffers` are given, through those. On an error places
    hold garbage.

    Returns:
        Bytes that were read.

    Raises:
        CheckpointCorruptError, StoreError: as `read_verified`.
    """
    devices = {place.memory.device for each in places.values() for place in each}
    elsewhere = sorted((d for d in devices if d.type != "cpu"), key=str)
    read = 0
    for number, device in enumerate(elsewhere or [torch.device("cpu")]):
        mine = {device} | ({torch.device("cpu")} if not number else set())
        part = {p: [x for x in each if x.memory.device in mine] for p, each in places.items()}
        memory = DeviceMemory(device) if elsewhere else buffers
        read += _BoxReads(files, memory).read({p: each for p, each in part.items() if each})
    return read


@dataclass(slots=True)
class _Range:
    entry: FileEntry
    offset: int
    size: int
    places: list[BytesPlace] = field(default_factory=list)


class _BoxReads:
    """The reads for one kind of memory; `memory` is None for the host."""

    def __init__(self, files: BlockFiles, memory: DeviceMemory | None) -> None:
        self._files = files
        self._memory = memory
        self._scratch = Scratch()

    def read(self, places: Mapping[str, Sequence[BytesPlace]]) -> int:
        wanted = [part for path, each in places.items() for part in self._ranges(path, each)]
        for part in wanted[:_AHEAD]:
            self._expect(part)
        ahead = [*wanted[_AHEAD:], *(None for _ in wanted[:_AHEAD])]
        pairs = [*zip(wanted, ahead, strict=True)]
        in_parallel(lambda pair: self._read(*pair), pairs, self._files.connections)
        return sum(part.size for part in wanted)

    def _ranges(self, path: str, places: Sequence[BytesPlace]) -> list[_Range]:
        """Ranges of whole blocks behind the front, each with what it has of the places."""
        entry, front = self._files.entry(path), self._files.front(path)
        _scatter(torch.frombuffer(front, dtype=torch.uint8) if front else None, 0, places)
        size, gap = entry.block_bytes, self._files.gap_bytes
        first = -(-len(front) // size)
        blocks = [x for x in blocks_of([p.copy for p in places], size, gap) if x >= first]
        found = [
            _Range(entry, each.offset, each.size)
            for each in ranges(entry, blocks, self._files.piece_bytes, gap)
        ]
        begins = [part.offset for part in found]
        for place in places:
            touched: dict[int, None] = {}
            for begin, end in place.copy.spans(max(size, gap)):
                if end > len(front):
                    last = bisect.bisect_left(begins, end)
                    touched |= dict.fromkeys(range(max(0, bisect.bisect(begins, begin) - 1), last))
            for index in touched:
                part = found[index]
                part.places += [
                    BytesPlace(copy, place.memory)
                    for copy in place.copy.within(part.offset, part.offset + part.size)
                ]
        return found

    def _expect(self, part: _Range) -> None:
        self._files.expect(part.entry, part.offset, part.size)

    def _read(self, part: _Range, later: _Range | None) -> None:
        if later is not None:
            self._expect(later)
        if self._memory is not None:
            sink: Any = _Sink(part)
            self._memory.receive(
                [sink],
                part.size,
                lambda buffers: self._files.read_blocks(part.entry, part.offset, buffers),
            )
            return
        buffer = self._scratch.view(part.size)
        targets, rest = _targets(part, buffer)
        self._files.read_blocks(part.entry, part.offset, targets)
        if rest:
            _scatter(torch.frombuffer(buffer, dtype=torch.uint8), part.offset, rest)


class _Sink:
    """What `DeviceMemory.receive` copies a range to: all its places."""

    def __init__(self, part: _Range) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.size

    def copy_(self, source: torch.Tensor, *, non_blocking: bool) -> None:
        _scatter(source, self._part.offset, self._part.places, non_blocking=non_blocking)


def _targets(part: _Range, buffer: memoryview) -> tuple[list[memoryview], list[BytesPlace]]:
    """Memory for the bytes of a range in order, and the places that take theirs from `buffer`."""
    ordered = sorted(part.places, key=lambda place: place.copy.source)
    targets, rest, reached, before = [], [], part.offset, 0
    for place, following in zip(ordered, [*ordered[1:], None], strict=True):
        copy = place.copy
        shared = before > copy.source or (following and following.copy.source < copy.end)
        before = max(before, copy.end)
        if copy.loops or copy.run < _LEAST_DIRECT or shared:
            rest.append(place)
            continue
        if copy.source > reached:
            targets.append(buffer[reached - part.offset : copy.source - part.offset])
        targets.append(tensor_bytes(place.memory)[copy.target : copy.target + copy.run])
        reached = copy.end
    end = part.offset + part.size
    if reached < end:
        targets.append(buffer[reached - part.offset :])
    return targets, rest


def _scatter(
    source: torch.Tensor | None,
    offset: int,
    places: Iterable[BytesPlace],
    *,
    non_blocking: bool = False,
) -> None:
    """BoxCopy what `source`, the bytes of a file from `offset` on, has of the places."""
    if source is None:
        return
    on_device: dict[torch.device, torch.Tensor] = {source.device: source}
    for place in places:
        device = place.memory.device
        flat = place.memory.reshape(-1).view(torch.uint8)
        for copy in place.copy.within(offset, offset + len(source)):
            if copy.loops and device not in on_device:  # strided copies are made on the device
                on_device[device] = source.to(device, non_blocking=non_blocking)
            given = on_device[device] if copy.loops else source
            counts = [loop.count for loop in copy.loops]
            taken = given.as_strided(
                [*counts, copy.run],
                [*(loop.source_step for loop in copy.loops), 1],
                given.storage_offset() + copy.source - offset,
            )
            flat.as_strided(
                [*counts, copy.run],
                [*(loop.target_step for loop in copy.loops), 1],
                flat.storage_offset() + copy.target,
            ).copy_(taken, non_blocking=non_blocking)


def by_file(placed: Iterable[tuple[str, BytesPlace]]) -> dict[str, list[BytesPlace]]:
    """Path of a file -> its places."""
    found: defaultdict[str, list[BytesPlace]] = defaultdict(list)
    for path, place in placed:
        found[path].append(place)
    return dict(found)
