"""A wrapper of a source that reports the bytes sent, for the progress of an upload."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.interface import Lent
    from bt_lightning.store.transfer.file_source import DescribedSource


class MeteredSource:
    """As the inner source; calls `on_bytes` with a number of bytes after they were sent.

    Called by several threads. Bytes that are sent again are counted again, so a caller that adds
    them up must limit the sum to the size.
    """

    def __init__(self, inner: DescribedSource, on_bytes: Callable[[int], None]) -> None:
        self._inner, self._on_bytes = inner, on_bytes
        self.size, self.digest, self.part_bytes = inner.size, inner.digest, inner.part_bytes
        self.entry: FileEntry = inner.entry

    @contextlib.contextmanager
    def hold(self, offset: int, size: int) -> Iterator[memoryview]:
        """Report the bytes when they are released."""
        with self._inner.hold(offset, size) as view:
            yield view
        self._on_bytes(size)

    @contextlib.contextmanager
    def lend(self, offset: int, size: int) -> Iterator[Lent]:
        """Report the bytes when they are released."""
        with self._inner.lend(offset, size) as lent:
            yield lent
        self._on_bytes(size)
