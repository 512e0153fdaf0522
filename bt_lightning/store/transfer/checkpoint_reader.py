"""Read verified bytes of one committed checkpoint, from a store or from a local directory.

Each block of a range is compared with its XXH3-128 in the manifest when it arrives. The digest of
the whole file is not computed again: the blocks cover every byte once, in order
(`Manifest.from_bytes` checks it), so equal blocks mean an equal file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import (
    damaged_blocks,
)
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, under
from bt_lightning.store.transfer.block_verifier import BlockVerifier, cut, wrong_blocks
from bt_lightning.store.transfer.file_source import PIECE_BYTES
from bt_lightning.store.transfer.fresh_memory import give_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import ReadProgress, Store

_TRIES = 3
"""How often a block is requested in all before it counts as damaged."""
_CONNECTIONS = 6


class CheckpointReader(Protocol):
    """One committed checkpoint in a store or a directory. Used by several threads at once."""

    @property
    def name(self) -> str:
        """The directory or URL, for messages."""

    @property
    def manifest(self) -> Manifest:
        """The checkpoint's manifest."""

    @property
    def piece_bytes(self) -> int:
        """The best size of a read, in bytes: a multiple of `BLOCK_BYTES`."""

    @property
    def gap_bytes(self) -> int:
        """Up to so many bytes that nobody wants are read to save another read."""

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""

    def check(self, entry: FileEntry) -> None:
        """Raise `CheckpointCorruptError` or `CheckpointNotFoundError` unless the size is right."""

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """These bytes of the file are read soon: where it helps, they are fetched until then."""

    def read_copy(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> bool:
        """As `read_into`, from a nearer copy, whose bytes may be wrong; False if there is none."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Fill `targets`, one after the other, with the file's bytes from `offset` on, unverified.

        `on_progress` is as in `Store.read_into`.

        Raises `CheckpointCorruptError` or `StoreError`.
        """


def read_verified(
    reader: CheckpointReader, entry: FileEntry, offset: int, targets: Sequence[memoryview]
) -> None:
    """Fill `targets`, together whole blocks, and verify each; read blocks that differ again.

    Raises:
        CheckpointCorruptError: a block differs after three reads; `targets` hold garbage then.
        StoreError: the store refused.
    """
    give_pages(targets)
    verifier = BlockVerifier(entry, offset, targets)
    if not reader.read_copy(entry, offset, targets, verifier):
        reader.read_into(entry, offset, targets, verifier)
    wrong = verifier.wrong_blocks()
    for _ in range(_TRIES - 1):
        again, wrong = wrong, []
        for block in again:
            start = block * entry.block_bytes
            parts = cut(targets, start - offset, entry.block_bytes)
            reader.read_into(entry, start, parts)
            wrong += wrong_blocks(entry, start, parts)
    if wrong:
        raise CheckpointCorruptError(damaged_blocks(reader.name, entry, wrong))


class NoCopy:
    """Of a reader of the checkpoint itself."""

    def read_copy(self, *_: object) -> bool:
        """There is none."""
        return False


class StoreReader(NoCopy):
    """Reads a checkpoint in a store."""

    piece_bytes = PIECE_BYTES
    gap_bytes = 1024 * 1024  # arrives in less time than the answer to another request
    connections = _CONNECTIONS

    def __init__(self, store: Store, prefix: str, folder: str, *, listed: bool = True) -> None:
        """Read the manifest, and list the folder unless `listed` is false: a store may not list.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError: the manifest is damaged.
            StoreError: the store refused.
        """
        self._store = store
        self._base = under(prefix, folder)
        data = store.read(f"{self._base}/{MANIFEST}")
        if data is None:
            msg = f"no committed checkpoint at {self.name}"
            raise CheckpointNotFoundError(msg)
        self.manifest = Manifest.from_bytes(data, self.name)
        self.manifest_bytes = data
        self._sizes: dict[str, int] | None = None
        if listed:
            self._sizes = {info.key: info.size for info in store.list(self._base)}

    @property
    def name(self) -> str:
        """The folder's URL, without secrets."""
        return f"{self._store.name}/{self._base}"

    def check(self, entry: FileEntry) -> None:
        """Compare the size in the manifest with the object's."""
        key = f"{self._base}/{entry.path}"
        size = self._store.size(key) if self._sizes is None else self._sizes.get(key)
        if size is None:
            msg = f"there is no {self.name}/{entry.path}, which its manifest names"
            raise CheckpointNotFoundError(msg)
        if size != entry.size:
            msg = (
                f"the checkpoint {self.name} is damaged: {entry.path} has {size} bytes, its"
                f" manifest says {entry.size}"
            )
            raise CheckpointCorruptError(msg)

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """A store is asked once."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Read the range in one request."""
        self._store.read_into(
            f"{self._base}/{entry.path}", offset, *targets, on_progress=on_progress
        )
