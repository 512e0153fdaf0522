"""The files of a checkpoint whose manifest was not read, since a listing shows other facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, overload

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


def is_distant(files: Sequence[FileEntry]) -> bool:
    """Whether a use of these entries asks a store."""
    return isinstance(files, LateFiles) and files.distant and not files.is_read


def is_named(path: str) -> bool:
    """Whether `KnownOfFiles.named` has the entry of the file at `path`, in whatever folder."""
    return path.rpartition("/")[2] in _NAMED


class KnownOfFiles(NamedTuple):
    """What is known of the files of a manifest that was not read."""

    number: int
    size: int
    """Bytes of all."""
    block_bytes: int
    named: tuple[FileEntry, ...]
    """The entries of those for which `is_named` is true."""


class LateFiles(Sequence["FileEntry"]):
    """The entries of a manifest's files, which are read when one is asked for; as a tuple is.

    May be used by several threads. Every use but `len` and the properties may read, and raise:

    Raises:
        CheckpointNotFoundError: the checkpoint was deleted or replaced since it was listed.
        CheckpointCorruptError: its manifest is damaged.
        StoreError: the store refused.
    """

    __slots__ = ("_files", "_known", "_read", "distant")

    def __init__(
        self, known: KnownOfFiles, read: Callable[[], Sequence[FileEntry]], *, distant: bool
    ) -> None:
        """`read` returns the entries; `distant` says whether it asks a store."""
        self._known, self._read, self.distant = known, read, distant
        self._files: Sequence[FileEntry] | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self._known.size

    @property
    def block_bytes(self) -> int:
        """Size of their blocks."""
        return self._known.block_bytes

    @property
    def is_read(self) -> bool:
        """Whether all entries are known."""
        return self._files is not None

    def to_search(self, path: str) -> Sequence[FileEntry]:
        """As the function `searched`."""
        return self._known.named if is_named(path) else self._all()

    def _all(self) -> Sequence[FileEntry]:
        if self._files is None:
            self._files = tuple(self._read())  # two threads may both read: the same
        return self._files

    def __len__(self) -> int:
        return self._known.number

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
