"""Checksums of uploaded parts, which the server compares with what it received."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.file_entries import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.store.interface import Lent


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum algorithm of S3."""

    name: str
    """The value of `ChecksumAlgorithm`."""
    width: int
    """Size of a checksum in bytes."""
    function: Callable[[memoryview, int], int]
    """Takes bytes and the checksum of the bytes before them; returns the checksum of all."""

    @property
    def parameter(self) -> str:
        """Name of the checksum in parameters and answers of the API."""
        return f"Checksum{self.name}"

    @property
    def header(self) -> str:
        """Name of the checksum's HTTP header."""
        return f"x-amz-checksum-{self.name.lower()}"

    def of(self, data: Lent) -> str:
        """The checksum of all of `data`, in base64, as S3 writes it."""
        value = 0
        for start in range(0, data.size, BLOCK_BYTES):
            with data.view(start, min(start + BLOCK_BYTES, data.size)) as block:
                value = self.function(block, value)
        return base64.b64encode(value.to_bytes(self.width, "big")).decode("ascii")


def content_md5(data: Lent) -> str:
    """The value of a `Content-MD5` header."""
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, data.size, BLOCK_BYTES):
        with data.view(start, min(start + BLOCK_BYTES, data.size)) as block:
            digest.update(block)
    return base64.b64encode(digest.digest()).decode("ascii")


def installed_checksums() -> tuple[Checksum, ...]:
    """The algorithms that are installed, the fastest first: 18 GB/s with awscrt, 4 GB/s without."""
    crc32 = Checksum("CRC32", 4, zlib.crc32)
    try:
        from awscrt import checksums
    except ImportError:
        return (crc32,)
    crc32c = Checksum("CRC32C", 4, checksums.crc32c)
    try:
        crc64nvme = Checksum("CRC64NVME", 8, checksums.crc64nvme)
    except AttributeError:  # before awscrt 0.23, which botocore may have brought
        return (crc32c, crc32)
    return (crc64nvme, crc32c, crc32)


class ChecksumChoice:
    """The algorithms that the server may support, learned from its answers. Shared by threads."""

    def __init__(self, candidates: tuple[Checksum, ...] | None = None) -> None:
        self._left = installed_checksums() if candidates is None else candidates

    def candidates(self) -> tuple[Checksum | None, ...]:
        """The algorithms to try in this order until the server accepts one; the last is none."""
        return (*self._left, None)

    def settle(self, checksum: Checksum | None) -> None:
        """The server accepted `checksum`, and refused those before it."""
        left = self._left
        if checksum is None:
            self._left = ()
        elif checksum in left:  # else the server ignored it, and it is removed already
            self._left = left[left.index(checksum) :]

    def ignored(self, checksum: Checksum) -> None:
        """The server ignored `checksum`: do not use it for later objects."""
        self._left = tuple(each for each in self._left if each != checksum)


def checksum_named(name: str | None) -> Checksum | None:
    """The algorithm of that name; None if it is not installed."""
    return next((each for each in installed_checksums() if each.name == name), None)
