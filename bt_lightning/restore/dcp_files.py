"""The files of a folder that `torch.distributed.checkpoint` wrote, with digests or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.store.transfer.checkpoint_reader import read_verified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.restore.dcp_metadata import DcpPlace
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_KEPT_BLOCKS: Final = 16


class DcpFiles:
    """Reads the files; verified if the reader's manifest has their digests."""

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self._blocks: dict[tuple[str, int], bytes] = {}
        self.name = reader.name
        self.small_bytes = 0
        """Bytes that `bytes_at` read."""
        self.piece_bytes, self.connections = reader.piece_bytes, reader.connections
        self.gap_bytes = reader.gap_bytes

    @property
    def small_reads(self) -> int:
        """How many threads may call `bytes_at` at once."""
        digests = any(entry.blocks for entry in self._reader.manifest.files)
        return 1 if digests else self.connections

    def entry(self, path: str) -> FileEntry:
        """The file."""
        entry = self._reader.manifest.entry(path)
        if entry is None:
            msg = f"{self._reader.name} is damaged: there is no {path}, which its .metadata names"
            raise CheckpointCorruptError(msg)
        return entry

    def front(self, path: str) -> memoryview:
        """Nothing: these files have no header."""
        del path
        return memoryview(b"")

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """These bytes are read soon."""
        self._reader.check(entry)
        self._reader.expect(entry, offset, size)

    def read_blocks(self, entry: FileEntry, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill `targets`, verified if the file has digests."""
        self._reader.check(entry)
        if entry.blocks:
            read_verified(self._reader, entry, offset, targets)
        else:
            self._reader.read_into(entry, offset, targets)

    def content(self, place: DcpPlace) -> bytes:
        """All bytes of a part."""
        self.check(place)
        return self.bytes_at(place.file, place.offset, place.length)

    def check(self, place: DcpPlace) -> None:
        """Raise `CheckpointCorruptError` unless the file is that long."""
        entry = self.entry(place.file)
        if place.offset + place.length > entry.size:
            msg = (
                f"{self._reader.name} is damaged: {place.file} has {entry.size} bytes, and its"
                f" .metadata names bytes up to {place.offset + place.length}"
            )
            raise CheckpointCorruptError(msg)

    def bytes_at(self, path: str, offset: int, size: int) -> bytes:
        """A few bytes of a file."""
        entry = self.entry(path)
        if not entry.blocks:
            data = bytearray(size)
            self.read_blocks(entry, offset, [memoryview(data)])
            self.small_bytes += size
            return bytes(data)
        found = b""
        while size:  # whole blocks, of which the last few are kept
            number, skip = divmod(offset, BLOCK_BYTES)
            part = self._block(entry, number)[skip : skip + size]
            found, offset, size = found + part, offset + len(part), size - len(part)
        return found

    def _block(self, entry: FileEntry, number: int) -> bytes:
        key = (entry.path, number)
        if key not in self._blocks:
            if len(self._blocks) >= _KEPT_BLOCKS:
                self._blocks.clear()
            data = bytearray(min(BLOCK_BYTES, entry.size - number * BLOCK_BYTES))
            self.read_blocks(entry, number * BLOCK_BYTES, [memoryview(data)])
            self.small_bytes += len(data)
            self._blocks[key] = bytes(data)
        return self._blocks[key]
