"""The files of a checkpoint whose manifest was not read, since a listing shows other facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, overload

from bt_lightning.path_layout import ADAPTER_CONFIG, SHARDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.file_entries import FileEntry

MODEL_CONFIG: Final = "config.json"
_NAMED: Final = frozenset([SHARDS, ADAPTER_CONFIG, MODEL_CONFIG])
"""Names of files whose entries are known without the others."""


def searched(files: Sequence[FileEntry], path: str) -> Sequence[FileEntry]:
    """Entries among which are those of files with the name of `path`, in whatever folder."""
    return files.to_search(path) if isinstance(files, LateFiles) else files


def is_named(path: str) -> bool:
    """Whether `LateFiles.named` has the entry of the file at `path`, in whatever folder."""
    return path.rpartition("/")[2] in _NAMED


class LateFiles(Sequence["FileEntry"]):
    """The entries of a manifest's files, which are read when one is asked for; as a tuple is.

    May be used by several threads. Every use but `len` and the attributes may read, and raise:

    Raises:
        CheckpointNotFoundError: the checkpoint was deleted or replaced since it was listed.
        CheckpointCorruptError: its manifest is damaged.
        StoreError: the store refused.
    """

    __slots__ = ("_files", "_number", "_read", "block_bytes", "named", "size")

    def __init__(
        self,
        number: int,
        size: int,
        block_bytes: int,
        named: tuple[FileEntry, ...],
        read: Callable[[], Sequence[FileEntry]],
    ) -> None:
        """`size` is the bytes of all files; `read` returns the entries, `number` of them."""
        self.size, self.block_bytes, self.named = size, block_bytes, named
        self._number, self._read = number, read
        self._files: Sequence[FileEntry] | None = None

    @property
    def is_read(self) -> bool:
        """Whether all entries are known."""
        return self._files is not None

    def to_search(self, path: str) -> Sequence[FileEntry]:
        """As the function `searched`."""
        return self.named if is_named(path) else self._all()

    def _all(self) -> Sequence[FileEntry]:
        if self._files is None:
            self._files = tuple(self._read())  # two threads may both read: the same
        return self._files

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> FileEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[FileEntry]: ...

    def __getitem__(self, index: int | slice) -> FileEntry | Sequence[FileEntry]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LateFiles):
            return self is other or tuple(self) == tuple(other)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"{len(self)} files"

    def __reduce__(self) -> tuple[object, ...]:
        return tuple, (tuple(self),)
