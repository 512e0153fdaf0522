"""Digests of a downloaded file, computed in one pass, and their comparison with what is known."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

import xxhash

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.digest import READ_BYTES
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.store.s3.checksums import checksum_named

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

SHA256: Final = "sha256"
GIT: Final = "git"
"""The name of a blob in git: the SHA-1 of a header with the size, and the bytes."""
BLOCKS: Final = "xxh3_128 of blocks"
"""Compared when they were read: the file is joined of parts of others, and has no digest itself."""
_XXH3: Final = "xxh3_128"
_CRCS: Final = frozenset({"crc32", "crc32c", "crc64nvme"})
_BEST: Final = (SHA256, _XXH3, "sha1", GIT, "md5", "crc64nvme", "crc32c", "crc32")


class _Crc:
    def __init__(self, name: str) -> None:
        found = checksum_named(name.upper())
        assert found is not None
        self._kind, self._value = found, 0

    def update(self, data: memoryview) -> None:
        self._value = self._kind.function(data, self._value)

    def hexdigest(self) -> str:
        return self._value.to_bytes(self._kind.width, "big").hex()


def digests_of(file: Path, names: Collection[str]) -> tuple[int, dict[str, str]]:
    """Bytes of `file`, and its digests of these names, as far as they can be computed here."""
    with os.fdopen(open_regular(file), "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        hashers = {name: made for name in names if (made := _hasher(name, size)) is not None}
        buffer = memoryview(bytearray(READ_BYTES))
        read = 0
        while count := stream.readinto(buffer):
            read += count
            for hasher in hashers.values():
                hasher.update(buffer[:count])
    return read, {name: hasher.hexdigest() for name, hasher in hashers.items()}


def compared(what: str, expected: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The best digest that was expected and is right; "size" if none could be compared.

    Raises:
        CheckpointCorruptError: one differs.
    """
    for name, value in expected.items():
        if name in digests and digests[name] != value.lower():
            msg = (
                f"{what} is damaged: its {name} is {digests[name]}, expected {value}; pull again,"
                " and if that does not help, what the source holds is damaged"
            )
            raise CheckpointCorruptError(msg)
    rest = BLOCKS if BLOCKS in expected else "size"
    return next((name for name in _BEST if name in expected and name in digests), rest)


def _hasher(name: str, size: int) -> Any:
    if name == _XXH3:
        return xxhash.xxh3_128()
    if name == GIT:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if name in _CRCS:
        return _Crc(name) if checksum_named(name.upper()) is not None else None
    return hashlib.new(name, usedforsecurity=False) if name in {SHA256, "sha1", "md5"} else None
