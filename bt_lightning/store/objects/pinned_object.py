"""An object at one version, and the protocol of those who find and read such objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from bt_lightning.errors import StorePermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.interface import ReadProgress

MOST_OBJECTS: Final = 100_000
"""Objects below one URL; more are refused."""


@dataclass(frozen=True, slots=True)
class PinnedObject:
    """One object at the version that it had when it was found."""

    key: str
    """Path below the URL; empty if the URL is that of the object itself."""
    size: int
    """Bytes."""
    version: str
    """Changes whenever the bytes do, such as an ETag; empty if the source does not tell."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Algorithm (`sha256`, `md5`, `crc32c`, ...) -> hexadecimal digest of all bytes."""
    has_ranges: bool = True
    """Whether a part can be read without the bytes before it."""


class Objects(Protocol):
    """The objects at one URL. `read_into` is called by several threads.

    Each method raises `StoreTransientError` when another try may succeed, and
    `StorePermanentError` or `CheckpointNotFoundError` when it will not.
    """

    @property
    def name(self) -> str:
        """The URL without secrets."""

    @property
    def connections(self) -> int:
        """The best number of threads for reading."""

    def find(self) -> list[PinnedObject]:
        """Every object below the URL, or the one at the URL; at most `MOST_OBJECTS`."""

    def checksums(self, found: PinnedObject) -> Mapping[str, str]:
        """All checksums that the source tells of an object; may ask it."""

    def read_into(
        self, found: PinnedObject, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Fill `target` with the object's bytes from `offset` on; `on_progress` as of `Store`.

        Raises `StorePermanentError` if the object is of another version by now.
        """


def changed(name: str, key: str = "") -> StorePermanentError:
    """The error for an object that was replaced while it was read."""
    what = f"{name}/{key}" if key else name
    return StorePermanentError(f"{what} was replaced while it was read: start again")


def too_many(name: str) -> StorePermanentError:
    """The error for a URL with more than `MOST_OBJECTS` objects."""
    msg = f"{name} has more than {MOST_OBJECTS:,} objects: name a folder in it"
    return StorePermanentError(msg)
